"""Attention over packed sequences, plugged into transformers for the vision tower and the language model alike.

Knows tensors and sequence lengths; not Qwen's layers. Every sequence attends to itself only; nothing is padded and no
block mask is built.
"""

from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # not every GPU has it, no CPU does
    flash_attn_varlen_func = None

# transformers hands over the whole packed sequence only if the name holds "flash" (is_flash_attention_requested).
NAME = "packed_flash"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head_dim)
    key: torch.Tensor,  # (1, kv_heads, T, head_dim)
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    text_bounds: torch.Tensor | None = None,  # (sequences + 1,) int32: where each starts and ends; `PackedModel.hidden`
    text_longest: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,  # the same of the images' patches, from transformers' vision tower
    max_length_q: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Softmax attention within each sequence, causal in the language model; returns (1, T, heads, head_dim).

    The language model's bounds have names of their own, since transformers before 5.23 hands every keyword to the
    vision tower as well.
    """
    in_text = module.is_causal
    bounds, longest = (text_bounds, text_longest) if in_text else (cu_seq_lens_q, max_length_q)
    assert bounds is not None
    if query.is_cuda and flash_attn_varlen_func is not None:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, head_dim)
        bounds = bounds.to(query.device)
        out = flash_attn_varlen_func(
            q, k, v, bounds, bounds, longest, longest, softmax_scale=scaling, causal=in_text
        )
        return out[None], None
    return _grouped(query, key, value, bounds.diff().tolist(), scaling, in_text), None


def _grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float, causal: bool
) -> torch.Tensor:
    """One kernel call for each run of equally long neighbours (packing sorts by length, so runs are long)."""
    gqa = query.shape[1] != key.shape[1]
    outputs, start = [], 0
    for length, run in groupby(lengths):
        stop = start + length * len(list(run))
        q, k, v = (
            tensor[0, :, start:stop].unflatten(1, (-1, length)).transpose(0, 1) for tensor in (query, key, value)
        )  # (sequences, heads, length, head_dim)
        out = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=gqa)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (tokens of the run, heads, head_dim)
        start = stop
    return torch.cat(outputs)[None]


def use_packed_attention(model: PreTrainedModel) -> str:
    """Plug it in, in place. Returns the kernel's name for people."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation({"text_config": NAME, "vision_config": NAME})  # a plain string would ask the hub
    on_gpu = model.device.type == "cuda" and flash_attn_varlen_func is not None
    return "flash-attn varlen" if on_gpu else "sdpa, grouped by length"
