"""The forward pass: transformers' own Qwen3-VL over packed sequences, without language-model head. Knows no prompts."""

from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from embedder.attention import use_packed_attention
from embedder.checkpoint import Checkpoint, load_model
from embedder.packing import Packed


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

    def hidden(self, packed: Packed) -> torch.Tensor:
        """The last layer's states after the final norm, (T, D) in the model's dtype; the caller turns gradients off."""
        output = self.model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            pixel_values=None if packed.pixels is None else self.normalized(packed.pixels),
            image_grid_thw=packed.grids,
            use_cache=False,  # a cache would also switch off the handling of packed sequences
            text_bounds=packed.bounds,
            text_longest=packed.longest,
        )
        return output.last_hidden_state[0]
