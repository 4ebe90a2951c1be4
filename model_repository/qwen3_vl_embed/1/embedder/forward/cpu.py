"""What lies between two matrix products, on a CPU: the same formulas in fewer operators and fewer ways through memory.

torch's RMSNorm is eight operators there, and its GELU in tanh's form takes five times as long as the exact one. With
what is here batches of the shipped checkpoint are 1.2 to 1.7 times as fast (docs/log.md, 2026-11-26).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad, silu

from . import operations
from .operations import TORCH, Pair

WORTH = 2**16  # numbers of a product; with fewer, oneDNN takes longer to call than it saves


def norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `operations.norm`."""
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(constant(eps), length, length, value=1 / len(weight)).rsqrt_()  # (…, 1)
    return (hidden * scale).mul_(weight).to(hidden.dtype)


@cache
def constant(value: float) -> torch.Tensor:
    """float32, ()"""
    with torch.inference_mode(False):
        return torch.tensor(value)


def add_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> Pair:
    """See `operations.add_norm`."""
    if bias is not None:
        return operations.add_norm(hidden, update, weight, bias, eps)
    hidden = hidden + update
    return hidden, norm(hidden, weight, eps)


def filled(rows: torch.Tensor) -> torch.Tensor:
    """(…, R, I) with zeros below, up to a sixteenth more: few different numbers of rows.

    oneDNN writes a program for each number of rows, of up to 2 MB, and does not give it back.
    """
    count = rows.shape[-2]
    return pad(rows, (0, 0, 0, -count % max(1, 2 ** (int(count).bit_length() - 5))))


def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`linear`; float32's is MKL's, which keeps nothing."""
    if inputs.dtype == torch.float32:
        return linear(inputs, weight, bias)
    return linear(filled(inputs), weight, bias)[..., : inputs.shape[-2], :]


class Linear(nn.Linear):
    """By `product`."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, R, I) -> (…, R, O)"""
        return product(inputs, self.weight, self.bias)


def linear_silu_mul(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See `operations.linear_silu_mul`; the product is written where SiLU was."""
    gate, up = product(inputs, weight).chunk(2, dim=-1)
    return silu(gate).mul_(up)


def linear_gelu(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """See `operations.linear_gelu`; by oneDNN, which applies it to what it is about to write."""
    if len(inputs) * len(weight) < WORTH:
        return operations.linear_gelu(inputs, weight, bias)
    return scripted()(filled(inputs), weight, bias)[: len(inputs)]


@cache
def scripted() -> Callable[..., torch.Tensor]:
    """In TorchScript, since a trace records no list of numbers, not even an empty one."""
    unit = torch.jit.CompilationUnit("""
def linear_gelu(inputs, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "gelu", [], "tanh")
""")
    return unit.linear_gelu  # type: ignore[no-any-return]


def unless_recorded(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`fast`; `plain` while autograd records a pass, since what works in place has no gradient."""

    def either(*given: object) -> Any:
        return plain(*given) if torch.is_grad_enabled() else fast(*given)

    return either


FAST: dict[str, Callable[..., Any]] = {
    "norm": norm,
    "rotate": partial(operations.rotate, norm=norm),
    "add_norm": add_norm,
    "linear_silu_mul": linear_silu_mul,
    "linear_gelu": linear_gelu,
    "short_attention": partial(operations.short_attention, norm=norm),
}
CPU = replace(TORCH, **{name: unless_recorded(fast, getattr(TORCH, name)) for name, fast in FAST.items()})
