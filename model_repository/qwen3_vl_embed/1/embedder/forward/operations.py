"""What lies between two matrix products, by torch's own operators. `kernels.py` has the same, one kernel each.

Memory traffic is all that these cost on a GPU, but for the images' attention. By transformers' own code it is a third
of an image's time (docs/performance.md, "What a pass asks of a GPU").
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu

from .attention import Bounds, within

FLOAT8 = torch.float8_e4m3fn  # 4 bits of exponent, 3 of mantissa, no infinity (arXiv 2209.05433)
FLOAT8_MAX = 448.0
LEAST_ROW = 1e-12  # a row's largest number counts as no less: a row of zeros has a scale too

FEW = 128  # tokens whose keys of one head are held at once
Norms = tuple[torch.Tensor, torch.Tensor]  # the RMSNorms' weights of the queries' and of the keys' heads, (D,) each
Pair = tuple[torch.Tensor, torch.Tensor]
Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Operations:
    """One way to do each; the tensors' dtype in and out."""

    norm: Norm
    rotate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Norms | None, int, float], torch.Tensor]
    add_norm: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], Pair]
    linear_silu_mul: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    linear_gelu: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    full_attention: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Bounds, float], torch.Tensor]
    short_attention: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, Norms, int, float, Bounds, float], torch.Tensor
    ]

    @property
    def fused(self) -> list[str]:
        """The names of those that are not torch's own operators."""
        return [each.name for each in fields(self) if getattr(self, each.name) is not getattr(TORCH, each.name)]


def norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (arXiv 1910.07467) of the last dimension, in float32 within."""
    return rms_norm(hidden, weight.shape, weight, eps)


def rotate(
    heads: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    norms: Norms | None,
    queries: int,
    eps: float,
    norm: Norm = norm,
) -> torch.Tensor:
    """Queries and keys, each head normalised (where there are `norms`) and turned by its token's position.

    `heads`: (T, H, D), the queries' heads first, `queries` of them; the last dimension is dense. `cosines`, `sines`:
    (T, D), whose two halves are equal, in float32 or in the heads' dtype. RoFormer (arXiv 2104.09864), in the form of
    transformers' `apply_rotary_pos_emb`: a number and the one half a head further are a plane. By `addcmul` into the
    two halves of the result: no half is turned, joined or widened in memory.
    """
    if norms is not None:
        q, k = heads.split([queries, heads.shape[1] - queries], dim=1)
        parts = [norm(part, weight, eps) for part, weight in zip((q, k), norms, strict=True)]
    else:
        parts = [heads]
    half = heads.shape[2] // 2
    c, s = cosines[:, None, :half], sines[:, None, :half]
    if torch.is_grad_enabled() and heads.requires_grad:  # what is written into a given tensor has no gradient
        turned = [torch.cat([a * c - b * s, b * c + a * s], dim=2) for a, b in (part.chunk(2, 2) for part in parts)]
        return torch.cat(turned, dim=1).to(heads.dtype)
    out, first = heads.new_empty(heads.shape), 0
    for part in parts:
        a, b = part.chunk(2, dim=2)
        target = out[:, first : first + part.shape[1]]
        torch.addcmul(a * c, b, s, value=-1, out=target[..., :half])  # in the promoted dtype, rounded on the way out
        torch.addcmul(b * c, a, s, out=target[..., half:])
        first += part.shape[1]
    return out


def add_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> Pair:
    """hidden + update, and that sum normalised: (…, D) each; LayerNorm with a `bias`."""
    hidden = hidden + update
    if bias is None:
        return hidden, norm(hidden, weight, eps)
    return hidden, layer_norm(hidden, weight.shape, weight, bias, eps)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of each row, times its second half: (…, 2 F) -> (…, F). SwiGLU (arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def linear_silu_mul(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`silu_mul` of a product: (…, I), (2 F, I) -> (…, F)."""
    return silu_mul(linear(inputs, weight))


def linear_gelu(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU in tanh's form (arXiv 1606.08415) of a product and its bias: (R, I), (O, I), (O,) -> (R, O)."""
    return gelu(linear(inputs, weight, bias), approximate="tanh")


def linear_gelu_at_once(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same by cuBLASLt's epilogue, which writes the product once. Only CUDA's is tanh's form."""
    return torch._addmm_activation(bias, inputs, weight.t(), use_gelu=True)


def to_float8(rows: torch.Tensor, activation: str = "") -> Pair:
    """Numbers as 8-bit floats, and what their row is multiplied with again: (…, I) -> float8 (R, I), float32 (R, 1).

    The largest of a row becomes 448, the largest 8-bit float. `activation` comes before it: `gelu`, tanh's form, or
    `silu_mul`, (…, 2 I) -> (…, I); in float32. NaN stays NaN, and a row with an infinite number becomes NaN.
    """
    numbers = rows.flatten(0, -2).float()
    if activation == "silu_mul":
        numbers = silu_mul(numbers)
    elif activation == "gelu":
        numbers = gelu(numbers, approximate="tanh")
    scale = numbers.abs().amax(dim=1, keepdim=True).clamp(min=LEAST_ROW) / FLOAT8_MAX
    return (numbers / scale).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), scale


def full_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: Bounds, scale: float) -> torch.Tensor:
    """Softmax attention of every token to all of its sequence: (T, H, D) each, and what comes out."""
    return within(q, k, v, bounds, scale, causal=False)


def short_attention(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    norms: Norms,
    queries: int,
    eps: float,
    bounds: Bounds,
    scale: float,
    norm: Norm = norm,
) -> torch.Tensor:
    """`rotate`, and causal softmax attention within each sequence: `FEW` tokens at most.

    `qkv`: (T, H, D), the queries' heads first, then the keys' and as many of the values. Returns (T, queries, D).
    """
    keys = (qkv.shape[1] - queries) // 2
    turned = rotate(qkv[:, : queries + keys], cosines, sines, norms, queries, eps, norm)
    return within(turned[:, :queries], turned[:, queries:], qkv[:, queries + keys :], bounds, scale, causal=True)


TORCH = Operations(norm, rotate, add_norm, linear_silu_mul, linear_gelu, full_attention, short_attention)
