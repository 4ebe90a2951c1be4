"""Attention over packed sequences, plugged into transformers for the vision tower and the language model alike.

Every sequence attends to itself only; nothing is padded and no block mask is built. FlashAttention's varlen kernel in
half precision on a GPU, and elsewhere one SDPA call for each run of equally long sequences.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from .device import to_device

# transformers hands over the whole packed sequence only if the name holds "flash" (is_flash_attention_requested).
NAME = "packed_flash"
HALF = (torch.bfloat16, torch.float16)  # what the varlen kernel computes in

KeysValues = tuple[torch.Tensor, torch.Tensor]


def offsets(lengths: list[int]) -> NDArray[np.int32]:
    """Where sequences of these lengths start, and where the last one ends: (N + 1,)."""
    return np.cumsum([0, *lengths], dtype=np.int32)


@dataclass(frozen=True)
class Bounds:
    """Where N packed sequences start and end. Known on the CPU, so that no kernel is waited for to learn a length."""

    lengths: tuple[int, ...]  # (N,)
    offsets: torch.Tensor  # (N + 1,) int32, on the model's device

    @classmethod
    def of(cls, lengths: list[int], device: torch.device | str = "cpu") -> "Bounds":
        return cls(tuple(lengths), to_device(offsets(lengths), device))

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)


@dataclass(frozen=True, eq=False)
class Prefix:
    """What P tokens left behind in every layer, for all the sequences that begin with them.

    `layers`: the keys and the values of each, (1, kv_heads, P, head_dim).
    """

    layers: list[KeysValues]


@dataclass(frozen=True, eq=False)
class Prefixed:
    """The keys of N sequences of which some begin with a prefix, P tokens of M different prefixes in all."""

    bounds: Bounds  # of the keys: each sequence's prefix and its own tokens
    index: torch.Tensor  # (K,) int64: which of the P + T tokens, the prefixes' first, they are


@dataclass(frozen=True, eq=False)
class PassContext:
    """All that a pass tells the attention of its layers; transformers hands it down as the keyword `context`."""

    bounds: Bounds  # of the texts' tokens, or of the images' patches
    prefixes: tuple[Prefix | None, ...] | None = None  # what stands before each sequence; None where nothing does
    prefixed: Prefixed | None = None  # with prefixes: for the varlen kernel
    kept: list[KeysValues] | None = None  # gets each layer's keys and values


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head_dim)
    key: torch.Tensor,  # (1, kv_heads, T, head_dim)
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    context: PassContext,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Softmax attention within each sequence, causal in the language model; returns (1, T, heads, head_dim)."""
    bounds, prefixes = context.bounds, context.prefixes
    if context.kept is not None:
        context.kept.append((key.contiguous(), value.contiguous()))
    kernel = varlen_kernel(query.device, query.dtype)
    if kernel is None:
        each = prefixes or (None,) * len(bounds.lengths)
        before = [prefix.layers[module.layer_idx] if prefix else None for prefix in each]
        return _grouped(query, key, value, bounds.lengths, before, scaling, module.is_causal), None
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, head_dim)
    keys = bounds
    if prefixes is not None and context.prefixed is not None:
        keys, index = context.prefixed.bounds, context.prefixed.index.to(query.device)
        old = [prefix.layers[module.layer_idx] for prefix in dict.fromkeys(prefixes) if prefix]
        olds = ([each[0].transpose(0, 1) for each in tensors] for tensors in zip(*old, strict=True))  # keys, values
        k, v = (torch.cat([*before, own]).index_select(0, index) for before, own in zip(olds, (k, v), strict=True))
    return kernel(q, k, v, bounds, keys, scaling, module.is_causal)[None], None


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Bounds, Bounds, float, bool], torch.Tensor]


@cache
def varlen_kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel that takes packed sequences whole, where there is one: in half precision, since Ampere.

    On the meta device, where nothing is computed, what a GPU would run.
    """
    if dtype not in HALF or device.type not in ("cuda", "meta"):
        return None
    return None if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else flash


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Bounds, keys: Bounds, scale: float, causal: bool
) -> torch.Tensor:
    """FlashAttention 2 (arXiv 2307.08691), as torch has it, for packed sequences: (T, heads, head_dim).

    Fewer heads of keys than of queries are shared among them. With more keys than queries the last query sees the last
    key. It is the operator below torch's `varlen_attn`, which costs 145 µs of CPU time a call. Its first eleven
    parameters are the same in torch 2.11 and 2.12.
    """
    offsets = [bounds.offsets.to(q.device) for bounds in (queries, keys)]  # elsewhere only in a spread checkpoint
    return torch.ops.aten._flash_attention_forward(
        q, k, v, *offsets, queries.longest, keys.longest, 0.0, causal, False, scale=scale
    )[0]


def within(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: Bounds, scale: float, causal: bool
) -> torch.Tensor:
    """Softmax attention within each sequence, by torch's kernels: (T, heads, head_dim) each, and what comes out."""
    if kernel := varlen_kernel(q.device, q.dtype):
        return kernel(q, k, v, bounds, bounds, scale, causal)
    q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
    return _grouped(q, k, v, bounds.lengths, (None,) * len(bounds.lengths), scale, causal)[0]


def _grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    before: SequenceOf[KeysValues | None],  # keys and values that stand before each sequence's own
    scaling: float,
    causal: bool,
) -> torch.Tensor:
    """One SDPA call for each run of neighbours of one length and prefix; packing sorts by length, so runs are long."""
    outputs, start = [], 0
    for (length, _), run in groupby(zip(lengths, before, strict=True), lambda each: (each[0], id(each[1]))):
        members = list(run)
        stop = start + length * len(members)
        q, k, v = (
            tensor[0, :, start:stop].unflatten(1, (-1, length)).transpose(0, 1) for tensor in (query, key, value)
        )  # (sequences, heads, length, head_dim)
        out = _attend(q, k, v, members[0][1], scaling, causal)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (tokens of the run, heads, head_dim)
        start = stop
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: KeysValues | None, scaling: float, causal: bool
) -> torch.Tensor:
    if before is not None:
        k, v = (torch.cat([old.expand(len(q), -1, -1, -1), own], 2) for old, own in zip(before, (k, v), strict=True))
    if q.is_cuda and q.dtype not in HALF:  # no kernel but the one that keeps every score takes fewer heads of keys
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
    gqa = bool(q.shape[1] != k.shape[1])
    if before is None:
        return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=gqa)
    mask = causal_lower_right(q.shape[2], k.shape[2])  # the last query sees the last key
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=gqa)


def use_packed_attention(model: PreTrainedModel) -> str:
    """Plug it in, in place. Returns the kernel's name for people."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation({"text_config": NAME, "vision_config": NAME})  # a plain string would ask the hub
    return "sdpa, grouped by length" if varlen_kernel(model.device, model.dtype) is None else "torch varlen"
