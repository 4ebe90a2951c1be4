"""Check 8: every kind of input at several batch sizes, and where the device's time goes."""

from collections.abc import Iterator
from functools import partial

from lab.benchmarks import forward, inputs
from lab.benchmarks.gpu_checks.bench import Bench, full
from lab.benchmarks.gpu_checks.figures import Figure, fast, skipped, told
from lab.benchmarks.gpu_checks.timing import device_seconds, profile

LONGEST = 1.0  # seconds of a call; larger batches are left out
TOLERANCE = 0.85  # of what is expected


def throughput(bench: Bench) -> Iterator[Figure]:
    """Check 8. Usual shares of the measured ceiling (MFU): an H200 as measured (docs/log.md), an H100 as predicted."""
    usual = {
        "swatch": bench.card(h100=0.67, h200=0.78),
        "512×512": bench.card(h100=0.65, h200=0.73),
        "1024×1024": bench.card(h100=0.59, h200=0.67),
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
        least = usual.get(kind)
        yield fast(
            f"{kind}, batch {best.batch}: MFU",
            figures["mfu"],
            least=least and TOLERANCE * least,
            expected=f"usual: {least:g}" if least else "",
        )
    yield from _split(bench)


def _split(bench: Bench) -> Iterator[Figure]:
    """A pass under torch's profiler; the time without it tells what no kernel fills."""
    embedder = bench.embedder
    kernels, split = bench.found.setdefault("kernels", {}), bench.found.setdefault("split", [])
    passes = {f"a full pass of {kind}": full(embedder, kind) for kind in ("name", "swatch", "512×512", "1024×1024")}
    for what, items in ({"a lone name": inputs.batch("name", 1)} | passes).items():
        prepared = [embedder.prepare(item) for item in items]
        whole = device_seconds(partial(embedder.embed_each, prepared), bench.device)
        found = profile(partial(embedder.embed_each, prepared), bench.device)
        kernels[what] = found.longest
        split.append({"what": what, "items": len(items), "seconds": whole, "parts": found.parts})
        shares = ", ".join(f"{part} {took / found.seconds:.0%}" for part, took in found.parts.items())
        elementwise = found.parts["elementwise"] / found.seconds
        yield told(f"{what}: {shares}; elementwise", elementwise, "", "an H200: 0.09 to 0.13")
        if bench.on_gpu:
            yield told(
                f"{what}: in no kernel", 1 - found.seconds / whole, "of the time", "an H200: 0 to 0.09; lone 0.2"
            )
        else:
            yield skipped(f"{what}: in no kernel")
