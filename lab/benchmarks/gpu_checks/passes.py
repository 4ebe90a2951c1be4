"""Checks 5 and 6: what one pass costs the CPU and the device, called kernel by kernel and replayed."""

import json
import subprocess
from collections.abc import Generator, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from embedder import Embedder, EmbedInput, Options
from embedder.errors import CAPTURE_FAILED
from embedder.forward.device import to_device
from embedder.forward.packing import pack
from embedder.forward.replay import CAPACITY, Replay
from embedder.parity import least_cosine
from lab.benchmarks import inputs, subject
from lab.benchmarks.gpu_checks import faults
from lab.benchmarks.gpu_checks.bench import Bench, eager
from lab.benchmarks.gpu_checks.figures import Figure, fast, right, skipped, told
from lab.benchmarks.gpu_checks.timing import Work, device_seconds, host_seconds, profile
from lab.benchmarks.subject import vectors

INSTRUCTION = Options(instruction="Name the colour of what is shown, in one word.")
# cuBLAS adds a memset to many of its products, or sums the parts of one that it has split.
COUNTED = "an H200 at first: texts 413 to 449, images 888, of 378 and 638 operators"
# Cosine of a replayed vector and of a pass as it is. For a bucket's rows, which are more, cuBLAS takes other kernels.
# Their roundings add up over 36 layers.
SAME = {torch.float32: 0.9999, torch.bfloat16: 0.999}
CHILD_SECONDS = 90.0  # to start, to load and to fail


def one_pass(bench: Bench) -> Iterator[Figure]:
    """Check 5: passes that are called kernel by kernel."""
    kind, count = bench.sizes.large
    batch = bench.sizes.batch
    cases = (
        ("a name", inputs.batch("name", 1), bench.card(h100=45, h200=30)),
        (f"{batch} names", inputs.batch("name", batch), bench.card(h100=45, h200=30)),
        (f"{batch} swatches", inputs.batch("swatch", batch), bench.card(h100=145, h200=105)),
        (f"{count} images of {kind}", inputs.batch(kind, count), bench.card(h100=620, h200=460)),
    )
    for what, items, most in cases:
        work = prepared_pass(bench.embedder, items)
        with eager(bench.embedder.model), torch.inference_mode():
            took = device_seconds(work, bench.device, budget=1.0) * 1e3
            host = host_seconds(work, bench.device) * 1e3
            profiled = profile(work, bench.device)
        yield fast(f"{what}: time on the device", took, "ms", most=most)
        yield told(f"{what}: host time to launch it", host, "ms", "16 CPU cores: texts 16 to 19, images 40 to 65")
        if bench.on_gpu:
            yield told(f"{what}: kernels, memsets and copies", profiled.kernels, "", COUNTED)
            yield told(f"{what}: in no kernel", 1 - profiled.seconds * 1e3 / took, "of the time")
        else:
            yield skipped(f"{what}: kernels and gaps")


def prepared_pass(embedder: Embedder, items: list[EmbedInput]) -> Work:
    """The forward pass over inputs that are on the device already, without the copy of its result."""
    model = embedder.model
    packed = pack([embedder.prepare(item).sequence for item in items], model.device)
    last = to_device(np.array(packed.ends) - 1, model.device)
    return lambda: model.hidden(packed, [model.layers], last)


def graphs(bench: Bench) -> Iterator[Figure]:
    """Check 6: what is captured is right, quick to make, small and quick to replay."""
    name, swatch = inputs.batch("name", 1)[0], inputs.batch("swatch", 1)[0]
    replayed_ms = yield from _captured(bench, "a name", name, bench.card(h100=5, h200=5))
    yield from _captured(bench, "a swatch", swatch)
    yield from _captured(bench, "a name after a prefix", EmbedInput(name.text, None, INSTRUCTION))
    yield from _together(bench, replayed_ms)
    yield from _many_shapes(bench)
    yield from _failed_capture(bench)


def _captured(bench: Bench, what: str, item: EmbedInput, most: float | None = None) -> Generator[Figure, None, float]:
    """Returns the milliseconds of a replayed pass."""
    embedder = bench.embedder
    replay = _replay(embedder)
    with eager(embedder.model):
        expected = vectors(embedder, [item])
        as_it_is = median(subject.timed(embedder, [item])[1] for _ in range(5))
    before, held = len(replay.captured), _held(bench)
    with embedder.model.capturing():
        took = subject.timed(embedder, [item])[1]
    yield right(f"{what}: captured passes", len(replay.captured) - before, least=1)
    yield fast(f"{what}: making it", took - as_it_is, "s", most=0.2 if bench.on_gpu else None)
    if bench.on_gpu:
        yield told(f"{what}: memory more", (_held(bench) - held) / 2**20, "MiB")
    yield right(
        f"{what}: cosine of replayed and not",
        least_cosine(vectors(embedder, [item]), expected),
        least=SAME[bench.dtype],
    )
    yield told(f"{what}: a pass as it is", as_it_is * 1e3, "ms")
    replayed = median(subject.timed(embedder, [item])[1] for _ in range(20)) * 1e3
    yield fast(f"{what}: a pass replayed", replayed, "ms", most=most)
    return replayed


def _together(bench: Bench, replayed_ms: float) -> Iterator[Figure]:
    """A small batch is replayed too (on a GPU), so that company is never slower than a turn for each."""
    ratios = bench.found.setdefault("names_together", {})
    for count in (2, 4, 8, 16):
        batch = inputs.batch("name", count)
        with bench.embedder.model.capturing():
            vectors(bench.embedder, batch)
        together = median(subject.timed(bench.embedder, batch)[1] for _ in range(5)) * 1e3
        what = f"{count} names together: {together:.3g} ms, that over {count} replays"
        ratios[str(count)] = together / (count * replayed_ms)
        yield fast(what, ratios[str(count)], "", most=1.0 if bench.on_gpu else None)


def _many_shapes(bench: Bench) -> Iterator[Figure]:
    embedder = bench.embedder
    texts = [EmbedInput(text=" ".join(["red"] * count)) for count in range(1, bench.sizes.shapes + 1)]
    held, started = _held(bench), perf_counter()
    with eager(embedder.model):
        expected = np.concatenate([vectors(embedder, [text]) for text in texts])
    with embedder.model.capturing():
        for text in texts:
            vectors(embedder, [text])
    found = np.concatenate([vectors(embedder, [text]) for text in texts])
    shapes = len({len(embedder.prepare(text).sequence) for text in texts})
    yield right(
        f"{shapes} lengths in turn: least cosine to a pass as it is",
        least_cosine(found, expected),
        least=SAME[bench.dtype],
    )
    captured = len(_replay(embedder).captured)
    least = 1 if bench.on_gpu else min(CAPACITY, shapes)  # there a bucket is good for many lengths
    yield right("captured passes held", captured, least=least, most=CAPACITY)
    yield told("all of it", perf_counter() - started, "s")
    if bench.on_gpu:
        yield fast("memory of the captured passes", (_held(bench) - held) / 2**20, "MiB", most=1024)
    else:
        yield skipped("memory of the captured passes")


def _failed_capture(bench: Bench) -> Iterator[Figure]:
    """A capture that is made to fail, in a process of its own: it ends on CUDA, and elsewhere goes on, and rightly."""
    command = faults.command("capture", bench.device)
    child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS)
    status = child.returncode
    became = faults.last_line(child.stderr) if status else "the process goes on"
    wanted = CAPTURE_FAILED if bench.on_gpu else 0  # on CUDA nothing that comes after it can be trusted
    yield right(f"a failed capture ({became}): exit status", status, least=wanted, most=wanted)
    if status == 0:
        told_by_it: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
        yield right("after a failed capture: captured passes", told_by_it["captured"], most=0)
        yield right("after a failed capture: least cosine", told_by_it["least_cosine"], least=SAME[bench.dtype])


def _replay(embedder: Embedder) -> Replay:
    replay = embedder.model.replay
    assert replay is not None
    return replay


def _held(bench: Bench) -> int:
    """Bytes that torch holds on the device when it has given back what it can."""
    if not bench.on_gpu:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(bench.device)
