"""Check 8: every kind of input at several batch sizes, and where the device's time goes."""

from collections.abc import Iterator
from functools import partial

from lab.benchmarks import forward, inputs
from lab.benchmarks.gpu_checks.bench import Bench, full
from lab.benchmarks.gpu_checks.figures import Figure, fast, skipped, told
from lab.benchmarks.gpu_checks.timing import device_seconds, profile

LONGEST = 4.0  # seconds of a call; larger batches are left out
TOLERANCE = 0.85  # of what is predicted


def throughput(bench: Bench) -> Iterator[Figure]:
    """Check 8. Predicted are shares of the measured ceiling (MFU), from traffic and operations counted per input."""
    predicted = {
        "swatch": bench.card(h100=0.67, h200=0.71),
        "512×512": bench.card(h100=0.65, h200=0.68),
        "1024×1024": bench.card(h100=0.59, h200=0.62),
    }
    for kind in inputs.KINDS:
        sizes = sorted({*bench.sizes.batches, len(full(bench.embedder, kind))})
        rows = list(forward.rows(bench.embedder, bench.config, kind, sizes, bench.sizes.calls, LONGEST))
        bench.found["rows"] = [*bench.found.get("rows", []), *(row.figures(bench.ceiling) for row in rows)]
        if kind == "name":
            lone, most = forward.lone_name(rows[0], bench.config, bench.ceiling), bench.card(h100=2.0, h200=2.0)
            bench.found["lone_name"] = lone
            yield fast("a lone name, of the time to read the weights once", lone["times_the_bound"], "times", most=most)
        best = max(rows, key=lambda row: row.flop / row.forward_s)
        figures = best.figures(bench.ceiling)
        rates = ", ".join(f"{row.batch}: {row.batch / row.forward_s:.4g}" for row in rows)
        yield told(f"{kind}: items/s of the forward pass by batch", rates)
        items = figures["items_per_s"] / figures["forward_per_s"]
        yield told(f"{kind}: items/s with decoding and tokenizing, of that", items)
        least = predicted.get(kind)
        yield fast(
            f"{kind}, batch {best.batch}: MFU",
            figures["mfu"],
            least=least and TOLERANCE * least,
            expected=f"predicted {least:g}" if least else "",
        )
    yield from _split(bench)


def _split(bench: Bench) -> Iterator[Figure]:
    """A pass under torch's profiler; the time without it tells what no kernel fills."""
    embedder, kernels = bench.embedder, bench.found.setdefault("kernels", {})
    passes = {f"a full pass of {kind}": full(embedder, kind) for kind in ("name", "swatch", "512×512", "1024×1024")}
    for what, items in ({"a lone name": inputs.batch("name", 1)} | passes).items():
        prepared = [embedder.prepare(item) for item in items]
        whole = device_seconds(partial(embedder.embed_each, prepared), bench.device, budget=1.0)
        found = profile(partial(embedder.embed_each, prepared), bench.device)
        kernels[what] = found.longest
        shares = ", ".join(f"{part} {took / found.seconds:.0%}" for part, took in found.parts.items())
        elementwise = found.parts["elementwise"] / found.seconds
        yield told(f"{what}: {shares}; elementwise", elementwise, "", "images on a GPU 0.1 to 0.2")
        if bench.on_gpu:
            yield told(f"{what}: in no kernel", 1 - found.seconds / whole, "of the time", "0.04 to 0.08")
        else:
            yield skipped(f"{what}: in no kernel")
