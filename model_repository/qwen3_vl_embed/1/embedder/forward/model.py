"""The forward pass: transformers' own Qwen3-VL over packed sequences, without language-model head. Knows no prompts."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from ..checkpoint import Checkpoint
from ..prepare.recipes import Layer
from ..prepare.renderer import Tokens
from .attention import KeysValues, Prefix, use_packed_attention
from .device import to_device
from .packing import Packed, Sequence, pack
from .parts import StillPatchEmbed, TopLayer, add_image_features, at, fuse_norms
from .recordings import Graph, Pass, Trace
from .replay import Replay
from .weights import load_model


class PackedModel:
    """A loaded checkpoint that turns `Packed` into hidden states.

    Runs transformers' own vision tower and language model one after the other, and hands them ready-made what
    `Qwen3VLModel.forward` finds out on the device (positions, lengths, where the images' tokens are): between the copy
    of the inputs and that of the result, nothing waits for the device.
    """

    def __init__(self, model: PreTrainedModel, mean: list[float], std: list[float]) -> None:
        """`mean`, `std`: of each colour channel, on the scale 0…1 (preprocessor_config.json)."""
        self.attention = use_packed_attention(model)
        model.visual.patch_embed = StillPatchEmbed(model.visual.patch_embed.proj)
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        patch_area = model.config.vision_config.patch_size**2
        per_value = [torch.tensor(v, device=self.device).repeat(patch_area) * 255 for v in (mean, std)]
        self._mean, self._std = per_value  # (patch * patch * 3,) float32, in the order of a patch's values
        text = model.language_model
        text._deepstack_process = add_image_features
        fuse_norms(text)
        self._layers, self._norm = list(text.layers), text.norm
        text.norm = nn.Identity()  # `final_norm` is for those who ask, and for the tokens that they read
        self._token_work, self._patch_work = map(numbers, (text.layers, model.visual.blocks))
        self._pass: Pass = self._states
        self._stack_of = lru_cache(maxsize=None)(self._stack)
        self._grid_of = lru_cache(maxsize=256)(self._grid)
        self._prefix_of = lru_cache(maxsize=64)(self._prefix)

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Self:
        """Raises: UnsupportedCheckpoint: see `load_model`."""
        return cls.of(load_model(checkpoint, dtype, device), checkpoint.processor.image_processor)

    @classmethod
    def of(cls, model: PreTrainedModel, pixels: Any) -> Self:
        """Take over a transformers `Qwen3VLModel` (or its MoE twin) in eval mode; it is changed in place.

        `pixels`: its image processor, transformers' own.
        """
        packed = cls(model, list(pixels.image_mean), list(pixels.image_std))
        model.requires_grad_(False)
        if replayable(model):
            on_gpu = packed.device.type == "cuda"
            packed._pass = Replay(packed._states, partial(Graph, constants=packed._constants) if on_gpu else Trace)
        return packed

    def recording(self) -> AbstractContextManager[None]:
        """Within it, lone passes are recorded, to be replayed for every input of their shape."""
        return self._pass.recording() if isinstance(self._pass, Replay) else nullcontext()

    @property
    def devices(self) -> set[torch.device]:
        """Where its weights are: several, when one GPU is too small for it."""
        return {weight.device for weight in self.model.parameters()}

    @property
    def bytes(self) -> int:
        """Memory that its weights take."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def work(self, packed: Packed) -> int:
        """Multiply-adds of a pass, about: a token meets the language model's weights, a patch the vision tower's."""
        patches = sum(packed.images.bounds.lengths) if packed.images else 0
        return sum(packed.bounds.lengths) * self._token_work + patches * self._patch_work

    @property
    def dimension(self) -> int:
        """D, the text model's hidden size: 2560 for the 4B."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self._layers)

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (P, V) -> float32 (P, V), about -1…1, as transformers' image processor gives them."""
        return (pixels.float() - self._mean) / self._std

    def final_norm(self, rows: torch.Tensor) -> torch.Tensor:
        """The model's own last RMSNorm, (rows, D) -> (rows, D)."""
        return self._norm(rows.to(self._norm.weight.device))

    def recover(self) -> None:
        """After a pass that failed: give back the memory that it held.

        Raises:
            RuntimeError: the GPU is lost to this process (a sticky CUDA error): no pass will ever work again.
        """
        self._prefix_of.cache_clear()
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.empty_cache()

    def hidden(
        self, packed: Packed, layers: Iterable[Layer], rows: torch.Tensor | None = None
    ) -> dict[Layer, torch.Tensor]:
        """Each asked layer's states before the final norm, (R, D) in the model's dtype.

        `rows`, (R,) int64: which of the T tokens; None for all. The caller turns gradients off. Layers above the
        highest one asked for do not run. A layer's state is what the next one reads, image features that DeepStack adds
        in between included (they are missing from transformers' own `hidden_states` of the first layers). On a GPU they
        may be overwritten by the next pass.
        """
        return self._pass(packed, frozenset(layers), rows)

    def _states(self, packed: Packed, asked: frozenset[Layer], rows: torch.Tensor | None) -> dict[Layer, torch.Tensor]:
        top = self.layers if "attn" in asked else max(asked)
        text = self.model.language_model
        prefixes = self._prefixes(packed)  # before the layers are chosen: it may have to run all of them
        text.layers, narrows = self._stack_of(top)
        embeds, features = self._inputs(packed)
        with self._captured(asked - {top}, rows, narrows) as states:
            out = text(
                inputs_embeds=embeds,
                position_ids=packed.position_ids,
                use_cache=False,
                visual_pos_masks=packed.images and packed.images.tokens,
                deepstack_visual_embeds=features,
                bounds=packed.bounds,
                prefixes=prefixes,
                rows=rows,
            ).last_hidden_state
        states[top] = out if narrows else at(out, rows)
        return {layer: states[layer][0] for layer in asked}

    def _prefixes(self, packed: Packed) -> tuple[Prefix | None, ...] | None:
        """What stands before each sequence, where anything does."""
        if not any(packed.prefixes):
            return None
        return tuple(self._prefix_of(ids) if ids else None for ids in packed.prefixes)

    def _prefix(self, ids: tuple[int, ...]) -> Prefix:
        """The keys and values that these tokens leave in every layer. Tokens only look back: nothing changes them."""
        packed = pack([Sequence(Tokens(np.array(ids), ()))], self.device)
        text = self.model.language_model
        kept: list[KeysValues] = []
        text.layers, _ = self._stack_of(self.layers)
        embeds, _ = self._inputs(packed)
        text(
            inputs_embeds=embeds,
            position_ids=packed.position_ids,
            use_cache=False,
            bounds=packed.bounds,
            rows=None,
            kept=kept,
        )
        return Prefix(kept)

    def _constants(self, packed: Packed) -> object:
        """The cached tensors that a pass reads."""
        return self._grids(packed), self._prefixes(packed)

    def _stack(self, top: int) -> tuple[nn.ModuleList, bool]:
        """The first `top` layers, and whether the last of them leaves only the asked rows.

        It does not where DeepStack adds features after it, nor in a model spread over several devices (accelerate's
        hooks move tensors between whole layers only).
        """
        layers = self._layers[:top]
        narrows = top > len(self.model.visual.deepstack_visual_indexes) and not spread(self.model)
        if narrows:
            layers[-1] = TopLayer(layers[-1])
        return nn.ModuleList(layers), narrows

    def _inputs(self, packed: Packed) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """(1, T, D) with the images in their places, and what DeepStack adds after the first layers, (K, D) each."""
        embeds = self.model.get_input_embeddings()(packed.input_ids)
        images = packed.images
        if images is None:
            return embeds, None
        grids = self._grids(packed)
        features = self.model.visual(
            self.normalized(images.pixels).to(self.model.visual.dtype),
            grid_thw=None,
            cu_seqlens=images.bounds.offsets,
            max_seqlen=images.bounds.longest,
            bounds=images.bounds,
            **{name: torch.cat([grid[name] for grid in grids]) for name in grids[0]},
        )
        image_embeds = features.pooler_output.to(embeds.device, embeds.dtype)
        return embeds[0].index_copy(0, images.tokens, image_embeds)[None], features.deepstack_features

    def _grids(self, packed: Packed) -> list[dict[str, torch.Tensor]]:
        return [self._grid_of(grid) for grid in packed.images.grids] if packed.images else []

    def _grid(self, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        """What the vision tower wants to know of an image of so many rows and columns of patches, on its device."""
        visual = self.model.visual
        thw, merge = torch.tensor([[1, *grid]]), visual.config.spatial_merge_size
        indices, weights = get_vision_interpolation_indices_and_weights(
            thw,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        inputs = {
            "interp_indices": indices,  # (P, 4) of the learned position table
            "interp_weights": weights,  # (P, 4)
            "position_ids": get_vision_position_ids(thw, merge),  # (P, 2): row, column
        }
        return {name: to_device(tensor.numpy(), visual.device) for name, tensor in inputs.items()}

    @contextmanager
    def _captured(
        self, layers: Iterable[Layer], rows: torch.Tensor | None, narrows: bool
    ) -> Iterator[dict[Layer, torch.Tensor]]:
        """Within it, a forward pass leaves the rows of the asked states in the dictionary, (1, R, D) each."""
        states: dict[Layer, torch.Tensor] = {}

        def keep(layer: Layer, arguments: tuple[torch.Tensor, ...]) -> None:
            states[layer] = at(arguments[0], None if narrows and layer == "attn" else rows)

        hooks = [
            self._reader(layer).register_forward_pre_hook(lambda _, arguments, layer=layer: keep(layer, arguments))
            for layer in layers
        ]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def _reader(self, layer: Layer) -> nn.Module:
        """The module whose input is that layer's state."""
        return self._layers[-1].post_attention_layernorm if layer == "attn" else self._layers[layer].input_layernorm


def numbers(module: nn.Module) -> int:
    """How many weights it has, counted one by one."""
    return sum(weight.numel() for weight in module.parameters())


def replayable(model: PreTrainedModel) -> bool:
    """Whether a pass is the same operations for every input of a shape: experts are chosen by what is in it."""
    return not spread(model) and not hasattr(model.config.text_config, "num_experts")


def spread(model: PreTrainedModel) -> bool:
    """Whether accelerate has put its parts on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1
