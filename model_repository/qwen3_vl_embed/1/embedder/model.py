"""The forward pass: transformers' own Qwen3-VL over packed sequences, without language-model head. Knows no prompts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from embedder.attention import use_packed_attention
from embedder.checkpoint import Checkpoint, load_model
from embedder.packing import Packed
from embedder.recipes import Layer


class StillPatchEmbed(nn.Module):
    """The vision tower's patch embedding of a still image as one matrix product.

    A still image is its own second frame, so the convolution's kernel is summed over time once, instead of every patch
    being repeated: (P, 3 * patch * patch) -> (P, hidden). Conv3d is 10 to 1000 times slower on some builds.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        weight = conv.weight.detach().float().sum(dim=2).flatten(1)  # (hidden, 3 * patch * patch)
        self.proj = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        self.proj.weight.data = weight.to(conv.weight.dtype)
        self.proj.bias.data = conv.bias.detach()

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.proj(patches.to(self.proj.weight.dtype))


class PackedModel:
    """A loaded checkpoint that turns `Packed` into hidden states."""

    def __init__(self, model: PreTrainedModel, mean: list[float], std: list[float]) -> None:
        """`mean`, `std`: of each colour channel, on the scale 0…1 (preprocessor_config.json)."""
        self.attention = use_packed_attention(model)
        model.visual.patch_embed = StillPatchEmbed(model.visual.patch_embed.proj)
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        patch_area = model.config.vision_config.patch_size**2
        per_value = [torch.tensor(v, device=self.device).repeat_interleave(patch_area) * 255 for v in (mean, std)]
        self._mean, self._std = per_value  # (3 * patch * patch,) float32, in the order of a patch's values

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Self:
        pixels = checkpoint.preprocessor
        return cls(load_model(checkpoint, dtype, device), pixels["image_mean"], pixels["image_std"])

    @property
    def dimension(self) -> int:
        """D, the text model's hidden size: 2560 for the 4B."""
        return self.model.config.text_config.hidden_size

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (P, V) -> float32 (P, V), about -1…1, as transformers' image processor gives them."""
        return (pixels.float() - self._mean) / self._std

    @property
    def layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.model.language_model.layers)

    def final_norm(self, rows: torch.Tensor) -> torch.Tensor:
        """The model's own last RMSNorm, (rows, D) -> (rows, D)."""
        norm = self.model.language_model.norm
        return norm(rows.to(norm.weight.device))

    def hidden(self, packed: Packed, layers: Iterable[Layer]) -> dict[Layer, torch.Tensor]:
        """Each asked layer's states before the final norm, (T, D) in the model's dtype; the caller turns gradients off.

        A layer's state is what the next one reads, image features that DeepStack adds in between included (they are
        missing from transformers' own `hidden_states` of the first layers).
        """
        with self._captured(layers) as states:
            self._run(packed)
        return states

    @contextmanager
    def _captured(self, layers: Iterable[Layer]) -> Iterator[dict[Layer, torch.Tensor]]:
        """Within it, a forward pass leaves the asked states in the dictionary."""
        states: dict[Layer, torch.Tensor] = {}

        def keep(layer: Layer, arguments: tuple) -> None:
            states[layer] = arguments[0][0]

        hooks = [
            self._reader(layer).register_forward_pre_hook(lambda _, arguments, layer=layer: keep(layer, arguments))
            for layer in set(layers)
        ]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def _reader(self, layer: Layer) -> nn.Module:
        """The module whose input is that layer's state."""
        text = self.model.language_model
        if layer == "attn":
            return text.layers[-1].post_attention_layernorm
        return text.norm if layer == self.layers else text.layers[layer]

    def _run(self, packed: Packed) -> None:
        self.model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            pixel_values=None if packed.pixels is None else self.normalized(packed.pixels),
            image_grid_thw=packed.grids,
            use_cache=False,  # a cache would also switch off the handling of packed sequences
            text_bounds=packed.bounds,
            text_longest=packed.longest,
        )
