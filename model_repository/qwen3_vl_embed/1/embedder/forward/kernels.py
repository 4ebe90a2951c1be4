"""What lies between two matrix products, one kernel each: norm and rotation, sum and norm, SiLU and product, attention.

The kernels are in Triton's language (which has nothing to do with the server) and are compiled on the machine at the
first pass. `operations.py` has what they compute and is what runs where they do not: they are compared at start. Each
is an operator of torch's, so that a pass can be counted and captured like any other. Everything is computed in float32
and rounded once.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn.functional import linear

from .attention import HALF, Bounds
from .operations import FEW, FLOAT8, Norms, Operations, Pair, linear_gelu_at_once, norm

HEADS = 8  # of a token, in one program
COLUMNS = 1024  # of an MLP's row, in one program
FEW_ROWS = 32  # beyond, cuBLAS' product is taken: more were not measured
OUTPUTS, STEP = 64, 64  # of a product of few rows: in one program, and inputs at a time
TILE = 64  # of attention: queries in one program, and keys at a time

_library = torch.library.Library("qwen3_vl_embed", "DEF")
_library.define("rotate(Tensor heads, Tensor cosines, Tensor sines, Tensor[] norms, int queries, float eps) -> Tensor")
_library.define("add_norm(Tensor hidden, Tensor update, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor)")
_library.define("silu_mul(Tensor gate_up) -> Tensor")
_library.define("linear_silu_mul(Tensor inputs, Tensor weight) -> Tensor")
_library.define(
    "short_attention(Tensor qkv, Tensor cosines, Tensor sines, Tensor[] norms, int queries, float eps, Tensor offsets, "
    "float scale) -> Tensor"
)
_library.define("full_attention(Tensor q, Tensor k, Tensor v, Tensor offsets, int longest, float scale) -> Tensor")
_library.define("to_float8(Tensor rows, str activation) -> (Tensor, Tensor)")


@triton.jit
def rotate_kernel(
    heads, cosines, sines, query_norm, key_norm, out, stride, positions_stride, count, queries, eps,
    HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_HEADS: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """One token's next `BLOCK_HEADS` heads."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK)
    inside = (head < count)[:, None] & (column < HALF)[None, :]
    place = head[:, None] * (2 * HALF) + column[None, :]
    a = tl.load(heads + token * stride + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(heads + token * stride + place + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
        known = column < HALF
        is_query = (head < queries)[:, None]
        q_a = tl.load(query_norm + column, mask=known, other=0.0).to(tl.float32)
        q_b = tl.load(query_norm + HALF + column, mask=known, other=0.0).to(tl.float32)
        k_a = tl.load(key_norm + column, mask=known, other=0.0).to(tl.float32)
        k_b = tl.load(key_norm + HALF + column, mask=known, other=0.0).to(tl.float32)
        a = a * scale[:, None] * tl.where(is_query, q_a[None, :], k_a[None, :])
        b = b * scale[:, None] * tl.where(is_query, q_b[None, :], k_b[None, :])
    c = tl.load(cosines + token * positions_stride + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sines + token * positions_stride + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    target = out + token * count * (2 * HALF) + place
    tl.store(target, (a * c - b * s).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (b * c + a * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_kernel(
    hidden, update, weight, bias, total, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr
):
    """One row. The sum is rounded before it is normalised, as the next layer will read it."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(hidden + row + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(update + row + column, mask=inside, other=0.0).to(tl.float32)
    rounded = x.to(total.dtype.element_ty)
    tl.store(total + row + column, rounded, mask=inside)
    x = rounded.to(tl.float32)
    if BIAS:
        x = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    x = x * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + column, x.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """A part of one row."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + 2 * row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + 2 * row + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + column, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def linear_silu_mul_kernel(
    inputs, weight, out, rows, width,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """`OUTPUTS` of all rows. Weights are the left side: tensor cores take 64 of its rows, and any 8 of the right's."""
    output, row, step = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, ROWS), tl.arange(0, STEP)
    gates = weight + output[:, None] * INPUTS + step[None, :]
    given, inside = inputs + row[None, :] * INPUTS + step[:, None], (row < rows)[None, :]
    gate, up = tl.zeros((OUTPUTS, ROWS), tl.float32), tl.zeros((OUTPUTS, ROWS), tl.float32)
    for _ in range(INPUTS // STEP):
        x = tl.load(given, mask=inside, other=0.0)
        gate = tl.dot(tl.load(gates), x, gate)
        up = tl.dot(tl.load(gates + width * INPUTS), x, up)
        gates += STEP
        given += STEP
    gated = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row[None, :] * width + output[:, None], gated.to(out.dtype.element_ty), mask=inside)


@triton.jit
def to_float8_kernel(rows, out, scales, width, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    """One row. `width`: of what is written; 448 and 1e-12 as in `operations.py`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    first = rows + row * width * (2 if ACTIVATION == "silu_mul" else 1)
    x = tl.load(first + column, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu_mul":
        up = tl.load(first + width + column, mask=inside, other=0.0).to(tl.float32)
        x = x / (1 + tl.exp(-x)) * up
    if ACTIVATION == "gelu":  # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x³)
        x = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 448.0
    x = tl.clamp(x / scale, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + row * width + column, x.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def attend_block(
    queries, k, v, k_stride, v_stride, first, length, scale, most, total, acc,
    WIDTH: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The next `TILE` keys, or the last ones of a sequence."""
    key, column = first + tl.arange(0, TILE), tl.arange(0, WIDTH)
    k_at, v_at = k + key[:, None] * k_stride + column[None, :], v + key[:, None] * v_stride + column[None, :]
    if WHOLE:
        keys, values = tl.load(k_at), tl.load(v_at)
    else:
        keys = tl.load(k_at, mask=(key < length)[:, None], other=0.0)
        values = tl.load(v_at, mask=(key < length)[:, None], other=0.0)
    scores = tl.dot(queries, keys.T, input_precision="ieee")
    if not WHOLE:
        scores = tl.where((key < length)[None, :], scores, float("-inf"))
    high = tl.maximum(most, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - high[:, None])
    shrink = tl.exp2(most - high)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return high, total * shrink + tl.sum(weights, 1), acc


@triton.jit(do_not_specialize_on_alignment=["offsets"])
def full_attention_kernel(
    q, k, v, out, offsets, q_stride, k_stride, v_stride, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One head's next `TILE` queries over all keys of their sequence (FlashAttention 2: arXiv 2307.08691, algorithm 1).

    `scale`: with log2(e), for exp2 in place of exp.
    """
    start = tl.load(offsets + tl.program_id(2)).to(tl.int64)
    length = (tl.load(offsets + tl.program_id(2) + 1) - start).to(tl.int32)
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    if tl.program_id(0) * TILE < length:
        inside, token = (row < length)[:, None], (start + row)[:, None]
        queries = tl.load(q + token * q_stride + column[None, :], mask=inside, other=0.0)
        k += start * k_stride + tl.program_id(1) * WIDTH
        v += start * v_stride + tl.program_id(1) * WIDTH
        most = tl.full((TILE,), float("-inf"), tl.float32)
        total, acc = tl.zeros((TILE,), tl.float32), tl.zeros((TILE, WIDTH), tl.float32)
        whole = length // TILE * TILE
        for first in range(0, whole, TILE):
            most, total, acc = attend_block(
                queries, k, v, k_stride, v_stride, first, length, scale, most, total, acc, WIDTH, TILE, True
            )  # fmt: skip
        if whole < length:
            most, total, acc = attend_block(
                queries, k, v, k_stride, v_stride, whole, length, scale, most, total, acc, WIDTH, TILE, False
            )  # fmt: skip
        attended = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + token * (HEADS * WIDTH) + column[None, :], attended, mask=inside)


@triton.jit
def turned(heads, norm, cosines, sines, token, inside, stride, positions_stride, eps, HALF: tl.constexpr):
    """One head of some tokens, normalised and turned as by `rotate_kernel`: its two halves."""
    column = tl.arange(0, HALF)
    place = token[:, None] * stride + column[None, :]
    a = tl.load(heads + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(heads + place + HALF, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
    a = a * scale * tl.load(norm + column).to(tl.float32)[None, :]
    b = b * scale * tl.load(norm + HALF + column).to(tl.float32)[None, :]
    angle = token[:, None] * positions_stride + column[None, :]
    c = tl.load(cosines + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sines + angle, mask=inside, other=0.0).to(tl.float32)
    return (a * c - b * s).to(heads.dtype.element_ty), (b * c + a * s).to(heads.dtype.element_ty)


@triton.jit(do_not_specialize=["tokens", "sequences"], do_not_specialize_on_alignment=["offsets"])
def short_attention_kernel(
    qkv, cosines, sines, query_norm, key_norm, offsets, out, stride, positions_stride, tokens, sequences, scale, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's next `ROWS` queries over all keys there are, of which each sees its own sequence's.

    What is no number becomes none of another sequence's: 0 times infinity is none. `scale`: with log2(e).
    """
    head, first = tl.program_id(0), tl.program_id(1) * ROWS
    shared = QUERIES + head // (QUERIES // KEYS)
    query, key, column = first + tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, 2 * HALF)
    end = tl.load(offsets + 1 + key, mask=key < sequences, other=tokens)[None, :]  # beyond `BLOCK` none has tokens
    of_query, of_key = tl.sum((end <= query[:, None]).to(tl.int32), 1), tl.sum((end <= key[:, None]).to(tl.int32), 1)
    seen = (of_query[:, None] == of_key[None, :]) & (key[None, :] <= query[:, None])
    q_in, k_in = (query < tokens)[:, None], (key < tokens)[:, None]
    q_a, q_b = turned(
        qkv + head * 2 * HALF, query_norm, cosines, sines, query, q_in, stride, positions_stride, eps, HALF
    )  # fmt: skip
    k_a, k_b = turned(
        qkv + shared * 2 * HALF, key_norm, cosines, sines, key, k_in, stride, positions_stride, eps, HALF
    )  # fmt: skip
    place = (shared + KEYS) * 2 * HALF + key[:, None] * stride + column[None, :]
    values = tl.load(qkv + place, mask=k_in, other=0.0)
    finite = tl.abs(values.to(tl.float32)) < float("inf")
    lost = tl.max((seen & (tl.min(finite.to(tl.int32), 1) == 0)[None, :]).to(tl.int32), 1) == 1
    scores = tl.dot(q_b, k_b.T, tl.dot(q_a, k_a.T, input_precision="ieee"), input_precision="ieee")
    scores = tl.where(seen, scores * scale, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    values = tl.where(finite, values, 0.0)
    attended = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    attended = tl.where(lost[:, None], float("nan"), attended).to(out.dtype.element_ty)
    tl.store(out + query[:, None] * (QUERIES * 2 * HALF) + head * 2 * HALF + column[None, :], attended, mask=q_in)


def _rotate(
    heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, norms: list[torch.Tensor], queries: int, eps: float
) -> torch.Tensor:
    tokens, count, width = heads.shape
    out = heads.new_empty(heads.shape)
    query_norm, key_norm = norms or (cosines, cosines)  # nobody reads them
    half, block = width // 2, triton.next_power_of_2(width // 2)
    sizes = {"HALF": half, "BLOCK": block, "BLOCK_HEADS": HEADS, "NORMS": bool(norms), "num_warps": 4}
    given = (heads, cosines, sines, query_norm, key_norm, out, heads.stride(0), cosines.stride(0), count, queries, eps)
    _launch(rotate_kernel, (tokens, triton.cdiv(count, HEADS)), given, sizes)
    return out


def _add_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> Pair:
    total, normed, width = torch.empty_like(hidden), torch.empty_like(hidden), hidden.shape[-1]
    sizes = {"WIDTH": width, "BLOCK": triton.next_power_of_2(width), "BIAS": bias is not None, "num_warps": 8}
    given = (hidden, update, weight, weight if bias is None else bias, total, normed, eps)
    _launch(add_norm_kernel, (hidden.numel() // width,), given, sizes)
    return total, normed


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    grid = (out.numel() // width, triton.cdiv(width, COLUMNS))
    _launch(silu_mul_kernel, grid, (gate_up, out, width), {"BLOCK": COLUMNS, "num_warps": 4})
    return out


def _linear_silu_mul(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    width, count = weight.shape[0] // 2, weight.shape[1]
    rows = inputs.numel() // count
    out = inputs.new_empty((*inputs.shape[:-1], width))
    sizes = {"INPUTS": count, "ROWS": max(16, triton.next_power_of_2(rows)), "OUTPUTS": OUTPUTS, "STEP": STEP}
    given = (inputs.contiguous(), weight, out, rows, width)
    _launch(linear_silu_mul_kernel, (width // OUTPUTS,), given, sizes | {"num_warps": 4, "num_stages": 5})
    return out


def _to_float8(rows: torch.Tensor, activation: str) -> Pair:
    out, scales = _float8_shapes(rows, activation)
    width = out.shape[1]
    block = triton.next_power_of_2(width)
    sizes = {"BLOCK": block, "ACTIVATION": activation, "num_warps": min(16, max(4, block // 1024))}
    _launch(to_float8_kernel, (len(out),), (rows.contiguous(), out, scales, width), sizes)
    return out, scales


def _float8_shapes(rows: torch.Tensor, activation: str) -> Pair:
    width = rows.shape[-1] // (2 if activation == "silu_mul" else 1)
    count = rows.numel() // rows.shape[-1]
    return rows.new_empty(count, width, dtype=FLOAT8), rows.new_empty(count, 1, dtype=torch.float32)


def _short_attention(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    norms: list[torch.Tensor],
    queries: int,
    eps: float,
    offsets: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    tokens, heads, width = qkv.shape
    out, block = qkv.new_empty(tokens, queries, width), max(16, triton.next_power_of_2(tokens))
    rows, warps = (16, 4) if block < FEW else (32, 8)
    sizes = {"QUERIES": queries, "KEYS": (heads - queries) // 2, "HALF": width // 2, "ROWS": rows, "BLOCK": block}
    counts = (qkv.stride(0), cosines.stride(0), tokens, len(offsets) - 1, scale * math.log2(math.e), eps)
    given = (qkv, cosines, sines, *norms, offsets, out, *counts)
    _launch(short_attention_kernel, (queries, triton.cdiv(tokens, rows)), given, sizes | {"num_warps": warps})
    return out


def _full_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    heads, width = q.shape[1:]
    out = q.new_empty(q.shape)
    given = (q, k, v, out, offsets, q.stride(0), k.stride(0), v.stride(0), scale * math.log2(math.e))
    sizes = {"HEADS": heads, "WIDTH": width, "TILE": TILE, "num_warps": 4, "num_stages": 3}
    _launch(full_attention_kernel, (triton.cdiv(longest, TILE), heads, len(offsets) - 1), given, sizes)
    return out


def _launch(kernel: Any, grid: tuple[int, ...], given: tuple[Any, ...], sizes: dict[str, Any]) -> None:
    """On the tensors' own device, which is not always the thread's current one. Nothing for no rows."""
    if grid[0] == 0:
        return
    if given[0].is_cuda:
        with torch.cuda.device(given[0].device):
            kernel[grid](*given, **sizes)
    else:
        kernel[grid](*given, **sizes)  # in Triton's interpreter (TRITON_INTERPRET=1)


for _name, _launches, _shapes in (
    ("rotate", _rotate, lambda heads, *_: heads.new_empty(heads.shape)),
    ("add_norm", _add_norm, lambda hidden, *_: (torch.empty_like(hidden), torch.empty_like(hidden))),
    ("silu_mul", _silu_mul, lambda gate_up: gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))),
    ("linear_silu_mul", _linear_silu_mul, lambda x, weight: x.new_empty((*x.shape[:-1], len(weight) // 2))),
    (
        "short_attention",
        _short_attention,
        lambda qkv, c, s, n, queries, *_: qkv.new_empty(len(qkv), queries, qkv.shape[2]),
    ),
    ("full_attention", _full_attention, lambda q, *_: q.new_empty(q.shape)),
    ("to_float8", _to_float8, _float8_shapes),
):
    _library.impl(_name, _launches, "CUDA")
    _library.impl(_name, _launches, "CPU")
    _library.impl(_name, _shapes, "Meta")


def rotate(
    heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, norms: Norms | None, queries: int, eps: float
) -> torch.Tensor:
    """See `operations.rotate`."""
    return torch.ops.qwen3_vl_embed.rotate(heads, cosines, sines, list(norms or ()), queries, eps)


def add_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> Pair:
    """See `operations.add_norm`."""
    both: Pair = torch.ops.qwen3_vl_embed.add_norm(hidden, update.contiguous(), weight, bias, eps)
    return both


def linear_silu_mul(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See `operations.linear_silu_mul`. With few rows, whose time is that of reading the weights, one kernel."""
    few = 0 < inputs.numel() <= FEW_ROWS * inputs.shape[-1] and inputs.dtype in HALF
    if few and weight.shape[0] % (2 * OUTPUTS) == weight.shape[1] % STEP == 0:
        out: torch.Tensor = torch.ops.qwen3_vl_embed.linear_silu_mul(inputs, weight)
    else:
        out = torch.ops.qwen3_vl_embed.silu_mul(linear(inputs, weight))
    return out


def full_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: Bounds, scale: float) -> torch.Tensor:
    """See `operations.full_attention`; a token's heads lie side by side."""
    offsets = bounds.offsets.to(q.device)  # elsewhere only in a spread checkpoint
    out: torch.Tensor = torch.ops.qwen3_vl_embed.full_attention(q, k, v, offsets, bounds.longest, scale)
    return out


def short_attention(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    norms: Norms,
    queries: int,
    eps: float,
    bounds: Bounds,
    scale: float,
) -> torch.Tensor:
    """See `operations.short_attention`."""
    turning = cosines, sines, list(norms), queries, eps
    out: torch.Tensor = torch.ops.qwen3_vl_embed.short_attention(qkv, *turning, bounds.offsets.to(qkv.device), scale)
    return out


def to_float8(rows: torch.Tensor, activation: str = "") -> Pair:
    """See `operations.to_float8`. For GPUs since sm_89: no older one has these numbers."""
    both: Pair = torch.ops.qwen3_vl_embed.to_float8(rows, activation)
    return both


FUSED = Operations(norm, rotate, add_norm, linear_silu_mul, linear_gelu_at_once, full_attention, short_attention)
