"""The forward pass: transformers' own Qwen3-VL over packed sequences, without language-model head."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from ..checkpoint import Checkpoint
from ..options import Layer
from ..prepare.images import MERGE
from ..prepare.renderer import Tokens
from ..prepare.sequence import Sequence
from .attention import PassContext, Prefix, use_packed_attention, varlen_kernel
from .buckets import WORTH, Bucket, Kind, Recorded, bucket_of
from .budget import product_rate
from .device import to_device
from .fastest import fastest
from .operations import TORCH
from .packing import Packed, PackedImages, pack
from .parts import StillPatchEmbed, add_image_features, at, decoder_layer, fuse, fuse_norms
from .recordings import CudaGraph, States, Trace
from .replay import Replay, single
from .weights import load_model

PREFIXES = 64  # in the prefix cache; `sequence.py` says what they take


class PackedModel:
    """A loaded checkpoint that turns `Packed` into hidden states.

    Runs transformers' own vision tower and decoder layers one after the other. It hands them ready-made what
    `Qwen3VLModel.forward` finds out on the device (positions, lengths, where the images' tokens are). Between the copy
    of the inputs and that of the result, nothing waits for the device.
    """

    def __init__(self, model: PreTrainedModel, mean: list[float], std: list[float], served: bool = False) -> None:
        """`mean`, `std`: of each colour channel, on the scale 0…1 (preprocessor_config.json).

        `served`: with fewer, larger products and fused operations, which rename its weights, and with replayed passes
        of lone inputs (`replay.py`), if the model allows it.
        """
        torch.set_float32_matmul_precision("highest")  # TF32 would round transformers 5.17's rotary angles to 10 bits
        self.attention = use_packed_attention(model)
        model.visual.patch_embed = StillPatchEmbed(model.visual.patch_embed.proj)
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        patch_area = model.config.vision_config.patch_size**2
        per_value = [torch.tensor(v, device=self.device).repeat(patch_area) * 255 for v in (mean, std)]
        self._mean, self._std = per_value  # (patch * patch * 3,) float32, in the order of a patch's values
        fuse_norms(model.language_model)
        self.operations = TORCH
        if served:
            self.operations = fastest(model)
            fuse(model, self.operations)
        self._decoder, self._norm = list(model.language_model.layers), model.language_model.norm
        self._token_work, self._patch_work = map(numbers, (model.language_model.layers, model.visual.blocks))
        self._prefix_cache: dict[tuple[int, ...], Prefix] = {}  # the least recently used first
        self.replay = self._replay() if served and replayable(model) else None
        self._largest: dict[Kind, Bucket] = {}
        self._known = 0  # of the captured passes, those in it

    def _replay(self) -> Replay:
        if self.device.type == "cpu":
            return Replay(self._forward, Trace, single, self.final_norm)

        first: list[CudaGraph] = []

        def record(run: Callable[[], States], packed: Packed) -> CudaGraph:
            constants = packed.images and self._places(packed.images), self._prefixes(packed)  # cached tensors
            graph = CudaGraph(run, self.device, constants, beside=first[0] if first else None)
            first[:] = first or [graph]
            return graph

        return Replay(self._forward, partial(Recorded, record=record), bucket_of, self.final_norm, fatal=True)

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: str, replayed: bool = True) -> Self:
        """`replayed`: whether passes may be captured.

        Raises:
            UnsupportedCheckpoint: see `load_model`.
        """
        packed = cls.of(load_model(checkpoint, dtype, device), checkpoint.processor.image_processor)
        packed.replay = packed.replay if replayed else None
        return packed

    @classmethod
    def of(cls, model: PreTrainedModel, pixels: Any) -> Self:
        """Take over a transformers `Qwen3VLModel` (or its MoE twin) in eval mode; it is changed in place.

        `pixels`: its image processor, transformers' own.
        """
        packed = cls(model, list(pixels.image_mean), list(pixels.image_std), served=True)
        model.requires_grad_(False)
        return packed

    def largest(self, layer: Layer, sequence: Sequence) -> Bucket | None:
        """The largest captured pass that this input could be part of, on a GPU: in it go others of its kind alone.

        None where that is too small to be worth parting with other kinds.
        """
        captured = self.replay.captured if self.replay else {}
        if len(captured) != self._known:
            large = [each for each in captured if isinstance(each, Bucket) and each.tokens >= WORTH]
            self._largest = {each.kind: each for each in sorted(large, key=lambda each: each.tokens)}
            self._known = len(captured)
        grid = sequence.patches.grid if sequence.patches else None
        return self._largest.get(Kind.of(frozenset([layer]), grid, sequence.prefix, sequence.own))

    def capturing(self) -> AbstractContextManager[None]:
        """Within it, passes are captured, to be replayed for every one of their shape: see `replay.py`."""
        return self.replay.capturing() if self.replay else nullcontext()

    @property
    def devices(self) -> set[torch.device]:
        """Where its weights are: several, when one GPU is too small for it."""
        return {weight.device for weight in self.model.parameters()}

    @property
    def bytes(self) -> int:
        """Memory that its weights take."""
        return sum(tensor.nbytes for tensor in chain(self.model.parameters(), self.model.buffers()))

    def token_seconds(self) -> float:
        """What an image's token takes this GPU at best, by the speed of its products; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        return (self._token_work + MERGE**2 * self._patch_work) / product_rate(self.device, self.model.dtype)

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
        return len(self._decoder)

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (P, V) -> float32 (P, V), about -1…1, as transformers' image processor gives them."""
        return (pixels.float() - self._mean) / self._std

    def final_norm(self, rows: torch.Tensor) -> torch.Tensor:
        """The model's own last RMSNorm, (rows, D) -> (rows, D)."""
        return self.operations.norm(rows.to(self._norm.weight.device), self._norm.weight, self._norm.eps)

    def recover(self) -> None:
        """After a pass that failed: give back the memory that it held.

        Raises:
            RuntimeError: the GPU is lost to this process (a sticky CUDA error): no pass will ever work again.
        """
        self._prefix_cache.clear()
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.empty_cache()

    def hidden(
        self, packed: Packed, layers: Iterable[Layer], rows: torch.Tensor | None = None, gradients: bool = False
    ) -> dict[Layer, torch.Tensor]:
        """Each asked layer's states before the final norm, (R, D) in the model's dtype.

        `rows`, (R,) int64: which of the T tokens; None for all. Layers above the highest one asked for do not run. A
        layer's state is what the next one reads, image features that DeepStack adds in between included. They are
        missing from transformers' own `hidden_states` of the first layers. On a GPU the states may be overwritten by
        the next pass.

        `gradients`: record the pass for autograd, whatever torch's mode is; without them it runs in inference mode.

        Raises:
            ValueError: gradients of a pass that leaves prefixes out; `pack(…, reuse=False)` does not.
        """
        if gradients and any(packed.prefixes):
            raise ValueError("gradients need whole sequences: pack them with reuse=False")
        with torch.inference_mode(not gradients):
            run = self._forward if gradients or self.replay is None else self.replay
            return run(packed, frozenset(layers), rows)

    def _forward(self, packed: Packed, asked: frozenset[Layer], rows: torch.Tensor | None) -> dict[Layer, torch.Tensor]:
        return self._decode(packed, PassContext(packed.bounds, self._prefixes(packed), packed.prefixed), asked, rows)

    def _decode(
        self, packed: Packed, context: PassContext, asked: frozenset[Layer], rows: torch.Tensor | None
    ) -> dict[Layer, torch.Tensor]:
        """Embed the tokens, put the images in their places, and run the decoder layers up to the highest one asked."""
        hidden = self.model.get_input_embeddings()(packed.input_ids)  # (1, T, D)
        features: list[torch.Tensor] = []  # what DeepStack adds after each of the first layers, (K, D)
        if packed.images is not None:
            embedded, features = self._vision(packed.images)
            hidden = hidden[0].index_copy(0, packed.images.tokens, embedded.to(hidden.device, hidden.dtype))[None]
        positions = self.model.language_model.rotary_emb(hidden, packed.position_ids)  # cosines, sines
        top = self.layers if "attn" in asked else max(map(int, asked))
        narrows = top > len(features)  # nothing but the asked rows is read after the top layer's attention
        before, added = hidden, None  # a layer's states are their sum; None: `hidden` is
        states: dict[Layer, torch.Tensor] = {}
        for index, layer in enumerate(self._decoder[:top]):
            norm = layer.input_layernorm
            device = norm.weight.device  # elsewhere only where a checkpoint is spread over several GPUs
            positions = tuple(each.to(device) for each in positions)
            if added is None:
                hidden = hidden.to(device)
                normed = self.operations.norm(hidden, norm.weight, norm.eps)
            else:
                parts = before.to(device), added.to(device)
                hidden, normed = self.operations.add_norm(*parts, norm.weight, None, norm.eps)
            if index in asked:
                states[index] = at(hidden, rows)
            narrowed = rows if narrows and index == top - 1 else None
            before, added = decoder_layer(layer, hidden, normed, positions, context, self.operations, narrowed)
            if packed.images is not None and index < len(features):
                hidden, added = add_image_features(before + added, packed.images.tokens, features[index]), None
        if added is not None:
            hidden = before + added
        if not narrows:
            before, hidden = at(before, rows), at(hidden, rows)
        states |= {"attn": before, top: hidden}
        return {layer: states[layer][0] for layer in asked}

    def _vision(self, images: PackedImages) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The vision tower: the images' own embeddings, and DeepStack's features; (K, D) each."""
        visual = self.model.visual
        out = visual(
            self.normalized(images.pixels).to(visual.dtype),
            grid_thw=None,
            cu_seqlens=images.bounds.offsets,
            max_seqlen=images.bounds.longest,
            context=PassContext(images.bounds),
            **{name: torch.cat(tensors) for name, tensors in self._places(images).items()},
        )
        return out.pooler_output, out.deepstack_features

    def _places(self, images: PackedImages) -> dict[str, list[torch.Tensor]]:
        """What the vision tower wants to know of each image's grid."""
        visual = self.model.visual
        each = [
            patch_places(
                grid,
                visual.num_grid_per_side,
                visual.interpolation_mode,
                visual.interpolation_align_corners,
                visual.config.spatial_merge_size,
                visual.device,
            )
            for grid in images.grids
        ]
        return {name: [places[name] for places in each] for name in each[0]}

    def _prefixes(self, packed: Packed) -> tuple[Prefix | None, ...] | None:
        """What stands before each sequence, from the prefix cache; None where nothing does."""
        if not any(packed.prefixes):
            return None
        kept = {ids: self._prefix(ids) for ids in dict.fromkeys(packed.prefixes) if ids}
        return tuple(map(kept.get, packed.prefixes))

    def _prefix(self, ids: tuple[int, ...]) -> Prefix:
        """The keys and values that these tokens leave in every layer. Tokens only look back: nothing changes them."""
        prefix = self._prefix_cache.pop(ids, None)
        if prefix is None:
            packed = pack([Sequence(Tokens(np.array(ids), ()))], self.device)
            prefix = Prefix([])
            self._decode(packed, PassContext(packed.bounds, kept=prefix.layers), frozenset([self.layers]), None)
        self._prefix_cache[ids] = prefix
        if len(self._prefix_cache) > PREFIXES:
            del self._prefix_cache[next(iter(self._prefix_cache))]
        return prefix


@lru_cache(maxsize=256)
def patch_places(
    grid: tuple[int, int], side: int, mode: str, align_corners: bool, merge: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """What Qwen3-VL's vision tower wants to know of an image of so many rows and columns of patches.

    `side`, `mode`, `align_corners`: of its learned position table. `merge`: patches per side of one token.
    """
    thw = torch.tensor([[1, *grid]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        thw, num_grid_per_side=side, mode=mode, align_corners=align_corners, spatial_merge_size=merge
    )
    places = {
        "interp_indices": indices,  # (P, 4) of the position table
        "interp_weights": weights,  # (P, 4)
        "position_ids": get_vision_position_ids(thw, merge),  # (P, 2): row, column
    }
    with torch.inference_mode(False):  # passes with gradients read them too
        return {name: to_device(tensor.numpy(), device) for name, tensor in places.items()}


def numbers(module: nn.Module) -> int:
    """How many weights it has, counted one by one."""
    return sum(weight.numel() for weight in module.parameters())


def replayable(model: PreTrainedModel) -> bool:
    """Whether a pass is the same operations for every input of a shape: experts are chosen by what is in it.

    Nor is it where accelerate has put the model's parts on several devices, or attention calls a kernel a length.
    """
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    by_length = model.device.type == "cuda" and varlen_kernel(model.device, model.dtype) is None
    return not spread and not by_length and not hasattr(model.config.text_config, "num_experts")
