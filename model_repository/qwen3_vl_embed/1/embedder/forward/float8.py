"""Layers whose weights are 8-bit floats, and whose products are of such numbers: FP8, e4m3 (arXiv 2209.05433).

A scale for each row of the weights, found once, and one for each row that they are multiplied with, found as it comes.
Tensor cores since sm_89 multiply these numbers at twice the rate of bfloat16, and read half the bytes. Embeddings,
norms, the patch embedding, mergers and attention stay as they are.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PretrainedConfig, PreTrainedModel

from . import operations
from .operations import FLOAT8, Pair

logger = logging.getLogger(__name__)

TRIED = 512  # rows: up to so many each product is tried
MULTIPLE = 16  # of which both sides of a matrix must be a multiple (torch, aten/src/ATen/native/cuda/ScaledBlas.cpp)


class Float8Linear(nn.Module):
    """`nn.Linear` by 8-bit floats: x Wᵀ + b, in the dtype that its weights had (a GPU wants bfloat16).

    `weight`: float8_e4m3fn (O, I). `scale`: float32 (1, O), what each of its rows is multiplied with again.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = operations.to_float8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias, self.dtype = linear.bias, linear.weight.dtype
        self._to_float8 = rounding(weight.device)
        self.fewest = 1  # rows of a product; fewer are filled up with zeros
        if weight.device.type != "cpu":
            self.fewest = fewest_rows(*weight.shape, self.bias is not None, self.dtype, weight.device)

    def forward(self, given: torch.Tensor, activation: str = "") -> torch.Tensor:
        """Of what is given, or of an activation of it (see `operations.to_float8`): (…, I) -> (…, O).

        Sums stay in the tensor cores' own registers, `use_fast_accum`: some 14 bits (arXiv 2412.19437, 3.3.2).
        """
        rows = given.flatten(0, -2)
        count = len(rows)
        if count < self.fewest:
            rows = pad(rows, (0, 0, 0, self.fewest - count))
        out = product(*self._to_float8(rows, activation), self.weight, self.scale, self.bias, self.dtype)
        return out[:count].unflatten(0, given.shape[:-1])


class Float8MLP(nn.Module):
    """Two of them and an activation between, which is computed and rounded at once: (…, D) -> (…, D)."""

    def __init__(self, first: nn.Linear, second: nn.Linear, activation: str) -> None:
        super().__init__()
        self.first, self.second, self.activation = Float8Linear(first), Float8Linear(second), activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(hidden), self.activation)


def product(
    rows: torch.Tensor,
    rows_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """float8 (R, I) and (O, I), float32 (R, 1) and (1, O), (O,) -> (R, O)"""
    return torch._scaled_mm(rows, weight.t(), rows_scale, scale, bias, out_dtype=dtype, use_fast_accum=True)


@cache
def fewest_rows(outputs: int, inputs: int, bias: bool, dtype: torch.dtype, device: torch.device) -> int:
    """Rows from which on this device multiplies such a matrix: one more than the most, up to `TRIED`, that it does not.

    cuBLAS may have no product by rows' scales for few rows of many numbers. On an H100 somebody found none for 256 rows
    of 9,216 and fewer (pytorch/ao issue 4582).
    """
    rows, weight = (torch.zeros(each, inputs, dtype=FLOAT8, device=device) for each in (TRIED, outputs))
    rows_scale, scale = torch.ones(TRIED, 1, device=device), torch.ones(1, outputs, device=device)
    added = torch.zeros(outputs, dtype=dtype, device=device) if bias else None
    failed = 0
    for count in range(1, TRIED + 1):
        try:
            product(rows[:count], rows_scale[:count], weight, scale, added, dtype)
        except RuntimeError:
            failed = count
    if failed:
        logger.warning("products of 8-bit floats, %d × %d, are filled up to %d rows", outputs, inputs, failed + 1)
    return failed + 1


def rounding(device: torch.device) -> Callable[[torch.Tensor, str], Pair]:
    """`operations.to_float8` as one kernel on a GPU. By torch's operators it takes as long as it saves."""
    if device.type == "cpu":
        return operations.to_float8
    try:
        from .kernels import to_float8
    except ImportError as error:
        logger.warning("no kernel for 8-bit floats: %s; passes will take longer", error)
        return operations.to_float8
    return to_float8


def refusal(config: PretrainedConfig) -> str | None:
    """Why a checkpoint of this configuration has no layers of 8-bit floats; None where it can have them."""
    text, vision = config.text_config, config.vision_config
    if hasattr(text, "num_experts"):
        return "has experts, whose weights are not served as 8-bit floats"
    if (text.hidden_act, vision.hidden_act) != ("silu", "gelu_pytorch_tanh"):
        return (
            f"has the activations {text.hidden_act} and {vision.hidden_act}; 8-bit floats are for silu and tanh's GELU"
        )
    heads = {
        f"{kind} × head_dim": getattr(text, kind) * text.head_dim
        for kind in ("num_attention_heads", "num_key_value_heads")
    }
    sizes = {name: getattr(text, name) for name in ("hidden_size", "intermediate_size")} | heads
    sizes |= {f"the vision tower's {name}": getattr(vision, name) for name in ("hidden_size", "intermediate_size")}
    for name, size in sizes.items():
        if size % MULTIPLE:
            return f"has {name} {size}; 8-bit floats are multiplied in multiples of {MULTIPLE}"
    return None


def convert(model: PreTrainedModel) -> None:
    """Round the layers' weights, in place, after `parts.fuse`. Both forms are in memory for one layer at a time."""
    for layer in model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.qkv, attention.o_proj = Float8Linear(attention.qkv), Float8Linear(attention.o_proj)
        layer.mlp = Float8MLP(mlp.gate_up, mlp.down_proj, "silu_mul")
    for block in model.visual.blocks:
        attention, mlp = block.attn, block.mlp
        attention.qkv, attention.proj = Float8Linear(attention.qkv), Float8Linear(attention.proj)
        block.mlp = Float8MLP(mlp.linear_fc1, mlp.linear_fc2, "gelu")
