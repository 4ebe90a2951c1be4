"""Check 2: attention over packed sequences against softmax in float64, and how fast its kernels are."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from embedder.forward.attention import Bounds, PassContext, Prefix, Prefixed, flash, packed_attention
from embedder.forward.device import to_device
from embedder.forward.packing import after_prefixes
from lab.benchmarks.gpu_checks.bench import Bench
from lab.benchmarks.gpu_checks.figures import Figure, fast, right, skipped, told
from lab.benchmarks.gpu_checks.timing import device_seconds, host_seconds

PREFIX = 22  # tokens: Qwen3-VL-Embedding's own system turn
ERROR = {torch.bfloat16: 1e-2, torch.float32: 1e-4}  # ‖out − exact‖ / ‖exact‖ of a sequence; TF32 has 3e-4 and more

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Heads:
    """The 4B's two kinds of attention."""

    name: str
    queries: int
    keys: int
    width: int
    causal: bool

    @property
    def scale(self) -> float:
        return self.width**-0.5

    def draw(self, tokens: int, bench: Bench, dtype: torch.dtype) -> Tensors:
        """(1, heads, tokens, width) each, as they lie in memory in the model: in vision all three in one tensor."""
        like = {"device": bench.device, "dtype": dtype}
        if self.causal:
            drawn = [torch.randn(tokens, heads, self.width, **like) for heads in (self.queries, self.keys, self.keys)]
        else:
            drawn = list(torch.randn(tokens, 3, self.queries, self.width, **like).unbind(1))
        q, k, v = (each.transpose(0, 1)[None] for each in drawn)
        return q, k, v

    @property
    def module(self) -> torch.nn.Module:
        """What transformers hands to an attention function."""
        module = torch.nn.Module()
        module.is_causal, module.layer_idx = self.causal, 0
        return module


TEXT = Heads("text, 32 heads on 8 of 128, causal", 32, 8, 128, True)
VISION = Heads("vision, 16 heads of 64", 16, 16, 64, False)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Softmax attention of one sequence in float64, head by head: (heads, Q, width), (kv heads, K, width) twice.

    Where there are more keys than queries, the last query sees the last key. Returns (Q, heads, width).
    """
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    if heads.causal:
        seen = seen.tril(k.shape[1] - q.shape[1])
    out = []
    for head, query in enumerate(q.double()):
        shared = head * heads.keys // heads.queries
        scores = (query @ k[shared].double().T * heads.scale).masked_fill(~seen, float("-inf"))
        out.append(scores.softmax(-1) @ v[shared].double())
    return torch.stack(out, dim=1)


def error(ours: torch.Tensor, exactly: list[torch.Tensor]) -> float:
    """The worst sequence's ‖ours − exact‖ / ‖exact‖; `ours` (T, heads, width). NaN stays NaN."""
    parts = ours.split([len(each) for each in exactly])
    errors = [(part.double() - each).norm() / each.norm() for part, each in zip(parts, exactly, strict=True)]
    return float(torch.stack(errors).max())


@torch.inference_mode()
def kernels(bench: Bench) -> Iterator[Figure]:
    """Check 2."""
    for heads in (TEXT, VISION):
        for dtype in (torch.bfloat16, torch.float32):
            yield _packed(bench, heads, dtype)
    for dtype in (torch.bfloat16, torch.float32):
        yield _after_a_prefix(bench, dtype)
    if bench.on_gpu:
        yield _more_keys_than_queries(bench)
    else:
        yield skipped("varlen kernel with more keys than queries")
    for heads, expected in ((VISION, bench.card(h100=240, h200=240)), (TEXT, None)):
        yield from _speed(bench, heads, expected)


def _packed(bench: Bench, heads: Heads, dtype: torch.dtype) -> Figure:
    lengths = list(bench.sizes.lengths)
    q, k, v = heads.draw(sum(lengths), bench, dtype)
    bounds = Bounds.of(lengths, bench.device)
    ours, _ = packed_attention(heads.module, q, k, v, None, heads.scale, PassContext(bounds))
    parts = zip(*(each[0].split(lengths, dim=1) for each in (q, k, v)), strict=True)
    exactly = [exact(query, key, value, heads) for query, key, value in parts]
    return right(f"{heads.name}, {_name(dtype)}: error", error(ours[0], exactly), most=ERROR[dtype])


def _after_a_prefix(bench: Bench, dtype: torch.dtype) -> Figure:
    lengths = [5, 5, 12, 40]
    q, k, v = TEXT.draw(sum(lengths), bench, dtype)
    _, k_before, v_before = TEXT.draw(PREFIX, bench, dtype)
    prefixes = (Prefix([(k_before, v_before)]),) * len(lengths)
    keys, index = after_prefixes((tuple(range(PREFIX)),) * len(lengths), lengths)
    prefixed = Prefixed(Bounds.of(keys, bench.device), to_device(index, bench.device))
    context = PassContext(Bounds.of(lengths, bench.device), prefixes, prefixed)
    ours, _ = packed_attention(TEXT.module, q, k, v, None, TEXT.scale, context)
    exactly = [
        exact(query, torch.cat([k_before[0], key], dim=1), torch.cat([v_before[0], value], dim=1), TEXT)
        for query, key, value in zip(*(t[0].split(lengths, dim=1) for t in (q, k, v)), strict=True)
    ]
    return right(f"text after a prefix, {_name(dtype)}: error", error(ours[0], exactly), most=ERROR[dtype])


def _more_keys_than_queries(bench: Bench) -> Figure:
    """What a prefix rests on: the last query sees the last key."""
    queries, keys = [5, 5, 12, 40], [27, 5, 34, 62]
    q, _, _ = TEXT.draw(sum(queries), bench, torch.bfloat16)
    _, k, v = TEXT.draw(sum(keys), bench, torch.bfloat16)
    flat_q, flat_k, flat_v = (each[0].transpose(0, 1) for each in (q, k, v))
    seen, there = (Bounds.of(lengths, bench.device) for lengths in (queries, keys))
    ours = flash(flat_q, flat_k, flat_v, seen, there, TEXT.scale, TEXT.causal)
    parts = zip(q[0].split(queries, dim=1), k[0].split(keys, dim=1), v[0].split(keys, dim=1), strict=True)
    exactly = [exact(query, key, value, TEXT) for query, key, value in parts]
    return right("varlen kernel with more keys than queries: error", error(ours, exactly), most=ERROR[torch.bfloat16])


def four_long(bench: Bench, heads: Heads) -> tuple[str, Tensors, Bounds, float]:
    """Four long sequences: what they are, drawn, where each ends, and the operations of their attention."""
    lengths = [bench.sizes.long] * 4
    flop = 4 * heads.queries * heads.width * sum(length**2 for length in lengths) / (2 if heads.causal else 1)
    drawn = heads.draw(sum(lengths), bench, bench.dtype)
    return f"{heads.name}, 4 sequences of {bench.sizes.long:,}", drawn, Bounds.of(lengths, bench.device), flop


def _speed(bench: Bench, heads: Heads, expected: float | None) -> Iterator[Figure]:
    """TFLOP/s and host time. Check 9 has what could be served instead."""
    what, (q, k, v), bounds, flop = four_long(bench, heads)

    def served() -> object:
        return packed_attention(heads.module, q, k, v, None, heads.scale, PassContext(bounds))

    took = device_seconds(served, bench.device)
    yield fast(f"{what}: as served", flop / took / 1e12, "TFLOP/s", least=expected)
    yield told(f"{what}: host time of a call", host_seconds(served, bench.device) * 1e6, "µs", "a GPU: 20 or less")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
