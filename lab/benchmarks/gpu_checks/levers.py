"""Check 9: what is served against what could be: fused operations, larger products, and other attention kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, linear

from embedder.forward import fastest, float8
from embedder.forward.attention import Bounds, flash
from embedder.forward.hardware import Card, no_float8
from embedder.forward.operations import TORCH, Operations, linear_gelu_at_once
from lab.benchmarks import inputs
from lab.benchmarks.gpu_checks.attention import TEXT, VISION, error, exact, four_long
from lab.benchmarks.gpu_checks.bench import Bench, eager
from lab.benchmarks.gpu_checks.figures import Figure, fast, skipped, told
from lab.benchmarks.gpu_checks.passes import prepared_pass
from lab.benchmarks.gpu_checks.timing import Work, device_seconds, host_seconds, replayed_seconds

# By the bytes that each form moves. A sum and its norm are five tensors against four, 1.25; the fifth, the sum that
# torch's norm reads again, may still be in the cache (1,024 wide it is 34 MB, an H200's cache has 50).
TIMES = {
    "rotate": 2.0,
    "add_norm": 1.1,
    "linear_silu_mul": 1.02,
    "linear_gelu": 1.05,
    "full_attention": 1.2,
    "short_attention": 1.5,
}


@torch.inference_mode()
def levers(bench: Bench) -> Iterator[Figure]:
    """Check 9."""
    yield from _operations(bench)
    yield from _whole_passes(bench)
    yield from _products(bench)
    yield from _attention(bench)
    yield from _float8(bench)
    bench.release()


def _operations(bench: Bench) -> Iterator[Figure]:
    """Each, at the model's widths and a full pass' rows, or as few as it is for: torch's form over the fused one."""
    model = bench.embedder.model
    fused = fastest.fused_operations() if bench.on_gpu else TORCH
    for name in TIMES:
        for given in fastest.samples(name, model.model, bench.sizes.rows[-1]):
            took = [replayed_seconds(partial(getattr(each, name), *given), bench.device) for each in (TORCH, fused)]
            what = f"{name}, {given[0].shape[-1]} wide, {max(given[0].shape[:-1]):,} rows"
            if bench.on_gpu:
                host = host_seconds(partial(getattr(fused, name), *given), bench.device) * 1e6
                what += f": fused {took[1] * 1e6:.0f} µs, host {host:.0f} µs; torch's form"
                yield fast(what, took[0] / took[1], "times as long", least=TIMES[name])
            else:
                yield skipped(f"{what}: fused")
    names = sorted(TIMES.keys() - model.operations.fused)
    yield told("served by torch's own operators", ", ".join(names) or "none", expected="a GPU: none")


def _whole_passes(bench: Bench) -> Iterator[Figure]:
    embedder = bench.embedder
    served = embedder.model.operations
    without = replace(TORCH, linear_gelu=linear_gelu_at_once if bench.on_gpu else TORCH.linear_gelu)
    kind, count = bench.sizes.large
    for what, items in (
        ("a name", inputs.batch("name", 1)),
        (f"{bench.sizes.batch} swatches", inputs.batch("swatch", bench.sizes.batch)),
        (f"{count} images of {kind}", inputs.batch(kind, count)),
    ):
        work = prepared_pass(embedder, items)
        with eager(embedder.model):
            ours = device_seconds(work, bench.device)
            with _by(bench, without):
                theirs = device_seconds(work, bench.device)
        assert embedder.model.operations is served
        yield told(f"{what}: a pass by torch's operators, over one as served", theirs / ours, "", "images 1.2 to 1.4")


@contextmanager
def _by(bench: Bench, operations: Operations) -> Iterator[None]:
    model = bench.embedder.model
    parts = [part for part in (model, *model.model.modules()) if hasattr(part, "operations")]
    before = [part.operations for part in parts]
    for part in parts:
        part.operations = operations
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.operations = own


def _products(bench: Bench) -> Iterator[Figure]:
    """Queries, keys and values; gate and up: one product each, and one for each matrix."""
    text = bench.config["text_config"]
    width, head = text["hidden_size"], text["head_dim"]
    queries, keys = (text[f"num_{name}_heads"] * head for name in ("attention", "key_value"))
    like = {"device": bench.device, "dtype": bench.dtype}
    for name, sizes in (("q, k, v", [queries, keys, keys]), ("gate, up", [text["intermediate_size"]] * 2)):
        whole = torch.randn(sum(sizes), width, **like)
        parts = whole.split(sizes)
        for rows in bench.sizes.rows:
            given = torch.randn(rows, width, **like)
            one = replayed_seconds(partial(linear, given, whole), bench.device)
            several = sum(replayed_seconds(partial(linear, given, part), bench.device) for part in parts)
            yield told(f"{name}, {rows:,} rows: separate products, over one", several / one, "", "a few rows 1.1 to 2")


def _float8(bench: Bench) -> Iterator[Figure]:
    """Passes in CUDA graphs, before and after the layers' weights are 8-bit floats: nothing may use the model later."""
    if bench.on_gpu and (why := no_float8(Card.seen()[0], "bfloat16")):
        yield told("weights as 8-bit floats", f"not here: {why}")
        return
    if not bench.on_gpu and torch.__version__ < (2, 12):
        yield told("weights as 8-bit floats", "not here: before torch 2.12 a CPU multiplies them by one scale")
        return
    yield from _rounding(bench)
    model, (kind, count) = bench.embedder.model, bench.sizes.large
    swatches = f"{bench.sizes.batch} swatches"
    works = {
        "a name": prepared_pass(bench.embedder, inputs.batch("name", 1)),
        swatches: prepared_pass(bench.embedder, inputs.batch("swatch", bench.sizes.batch)),
        f"{count} images of {kind}": prepared_pass(bench.embedder, inputs.batch(kind, count)),
    }
    before = {what: _timed(bench, work) for what, work in works.items()}
    float8.convert(model.model)
    model.recover()
    fewest = max(each.fewest for each in model.model.modules() if isinstance(each, float8.Float8Linear))
    yield told("8-bit weights: rows that products are filled up to", fewest, "", "1, or what cuBLAS wants")
    for what, work in works.items():
        took, states = _timed(bench, work)
        cosine = float(cosine_similarity(states, before[what][1]).min())
        least = 1.3 if bench.on_gpu and what == swatches else None
        said = f"{what}: {took * 1e3:.3g} ms by 8-bit weights (random ones: least cosine {cosine:.4f}); by its own"
        yield fast(said, before[what][0] / took, "times as long", least=least)


def _timed(bench: Bench, work: Work) -> tuple[float, torch.Tensor]:
    """Seconds of a pass, and its states after the final norm: float32 (N, D)."""
    model = bench.embedder.model
    with eager(model):
        states: Any = work()
        vectors = model.final_norm(states[model.layers]).float()
        return replayed_seconds(work, bench.device, calls=1), vectors


def _rounding(bench: Bench) -> Iterator[Figure]:
    """The one kernel that numbers go through before a product of 8-bit floats."""
    text, vision = bench.config["text_config"], bench.config["vision_config"]
    rows, rounded = bench.sizes.rows[-1], float8.rounding(torch.device(bench.device))
    for activation, width, read in (
        ("", text["hidden_size"], 1),
        ("silu_mul", text["intermediate_size"], 2),
        ("gelu", vision["intermediate_size"], 1),
    ):
        given = torch.randn(rows, read * width, device=bench.device, dtype=bench.dtype)
        took = replayed_seconds(partial(rounded, given, activation), bench.device)
        rate = rows * width * (read * given.itemsize + 1) / took / 1e9
        what = f"{activation or 'numbers'} to 8-bit floats, {width} wide, {rows:,} rows: {rate:,.0f} GB/s"
        yield told(what, took * 1e6, "µs")


Other = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Bounds, float, bool], torch.Tensor]


def _cudnn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: Bounds, scale: float, causal: bool
) -> torch.Tensor:
    """It has no shared heads, and plans anew for every shape."""
    cudnn = torch.ops.aten._cudnn_attention_forward
    each = (bounds.offsets, bounds.offsets, bounds.longest, bounds.longest)
    return cudnn(q, k, v, None, *each, False, 0.0, causal, False, scale=scale)[0]


def _flash_4(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: Bounds, scale: float, causal: bool
) -> torch.Tensor:
    """FlashAttention 4 for Hopper and Blackwell; of the package flash-attn-4, a beta."""
    from flash_attn.cute import flash_attn_varlen_func

    offsets = {"cu_seqlens_q": bounds.offsets, "cu_seqlens_k": bounds.offsets}
    out = flash_attn_varlen_func(q, k, v, **offsets, softmax_scale=scale, causal=causal)
    return out[0] if isinstance(out, tuple) else out


def _attention(bench: Bench) -> Iterator[Figure]:
    """Over four long sequences: TFLOP/s, the error against float64 and host time."""
    for heads in (VISION, TEXT):
        what, drawn, bounds, flop = four_long(bench, heads)
        if not bench.on_gpu:
            yield skipped(f"{what}: FlashAttention 2, cuDNN, FlashAttention 4")
            continue
        q, k, v = (each[0].transpose(0, 1) for each in drawn)
        first_q, first_k, first_v = (each[0][:, : bench.sizes.long] for each in drawn)
        exactly = [exact(first_q, first_k, first_v, heads)]
        kernels: dict[str, Other] = {
            "FlashAttention 2, as served": lambda q, k, v, bounds, *rest: flash(q, k, v, bounds, bounds, *rest),
            "FlashAttention 4": _flash_4,
        }
        kernels |= {} if heads.causal else {"cuDNN": _cudnn}
        for name, kernel in kernels.items():
            work = partial(kernel, q, k, v, bounds, heads.scale, heads.causal)
            try:
                off = error(work()[: bench.sizes.long], exactly)
                rate = flop / device_seconds(work, bench.device) / 1e12
                host = host_seconds(work, bench.device) * 1e6
            except Exception as problem:  # nothing that is served depends on it
                yield told(f"{what}: {name}", f"not here: {(str(problem).splitlines() or [type(problem).__name__])[0]}")
            else:
                yield told(f"{what}: {name}, error {off:.2g}, host {host:.3g} µs", rate, "TFLOP/s")
            torch.cuda.synchronize(bench.device)  # raises, when the device is lost to this process
