"""FlashAttention's varlen kernel in plain torch, so that the path of a GPU runs on a CPU too."""

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from embedder.forward.attention import Bounds


def varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Bounds, keys: Bounds, scale: float, causal: bool
) -> torch.Tensor:
    """By the offsets alone, as on a GPU: (T, heads, D)."""
    assert (len(queries.offsets), len(queries.offsets)) == (len(keys.offsets), len(keys.offsets))
    assert queries.longest >= int(queries.offsets.diff().max()), "the kernel leaves out what is beyond the longest"
    assert keys.longest >= int(keys.offsets.diff().max())
    out = torch.full_like(q, torch.nan)  # where the kernel leaves memory as it was
    at, of = queries.offsets.tolist(), keys.offsets.tolist()
    for start, stop, first, last in zip(at, at[1:], of, of[1:], strict=False):
        if stop > start:
            mine, theirs, values = (t[None].transpose(1, 2) for t in (q[start:stop], k[first:last], v[first:last]))
            mask = causal_lower_right(stop - start, last - first) if causal else None
            gqa = q.shape[1] != k.shape[1]
            attended = scaled_dot_product_attention(mine, theirs, values, attn_mask=mask, scale=scale, enable_gqa=gqa)
            out[start:stop] = attended[0].transpose(0, 1)
    return out


def use_varlen(patch: pytest.MonkeyPatch) -> None:
    """On every device, from here on."""
    patch.setattr("embedder.forward.attention.varlen_kernel", lambda *_: varlen)
