"""Checks 10 and 11: the pipeline under a load, in this process; and a GPU that is lost, in another."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from threading import Semaphore
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import torch

from embedder import Abandoned, Answer, Embedding, EmbedInput
from embedder.embedder import WORKERS
from embedder.errors import LOST
from embedder.forward.model import PackedModel
from embedder.parity import least_cosine
from embedder.pipeline import Pipeline, Request
from lab.benchmarks import gpu, inputs, subject
from lab.benchmarks.gpu_checks import faults
from lab.benchmarks.gpu_checks.bench import Bench
from lab.benchmarks.gpu_checks.figures import Figure, fast, right, skipped, told
from lab.benchmarks.subject import vectors

CALLERS = 8
CAPACITY = 128  # as under Triton: twice its largest batch
COMPARED = 64  # inputs whose vectors are compared with those of an ordinary batch
LOADS: dict[str, Callable[[int], list[EmbedInput]]] = {
    "swatches": lambda count: inputs.batch("swatch", count),
    "half and half": inputs.half_and_half,
    "photos": lambda count: inputs.batch("photos", count),
}
BUSY = "swatches: a pass is on the device"  # the figure that targets.py reads
AHEAD = 1.3  # times the device's rate: what prepares at the same rate makes it wait whenever it is held up
GONE_SECONDS = 5.0  # after the fault, the process must have ended


def pipeline(bench: Bench) -> Iterator[Figure]:
    """Check 10: what Triton would do, without Triton: many requests of one input, answered as they are ready."""
    started = perf_counter()
    bench.embedder.warm_up()  # as before it is served
    yield told("warming up", perf_counter() - started, "s")
    model = bench.embedder.model
    for load, count in bench.sizes.served.items():
        items = LOADS[load](count)
        batch = items[:COMPARED]
        expected = vectors(bench.embedder, batch)
        alone = len(batch) / median(subject.timed(bench.embedder, batch)[1] for _ in range(3))
        if load == "swatches":
            yield _prepared(bench, items[: 8 * COMPARED], alone)
        serving = Pipeline(bench.embedder_of(model), CAPACITY)
        try:
            with _busy(bench, model) as busy, gpu.busy(bench.device) as by_nvidia_smi:
                seconds, answers = _drive(serving, items)
        finally:
            serving.close()
        failed = [answer for answer in answers if not isinstance(answer, Embedding)]
        yield right(f"{load}: {len(answers):,} answers, errors", len(failed), most=0)
        found = np.stack([answer.vector for answer in answers[:COMPARED] if isinstance(answer, Embedding)])
        yield right(f"{load}: least cosine to an ordinary batch", least_cosine(found, expected), least=0.999)
        what = f"{load}: {len(items) / seconds:,.4g} items/s, of the forward pass alone"
        yield fast(what, len(items) / seconds / alone, "", least=0.9 if bench.on_gpu else None)
        if bench.on_gpu:
            yield fast(BUSY.replace("swatches", load), sum(busy), "of the time", least=0.9)
            yield told(f"{load}: GPU busy, by nvidia-smi", sum(by_nvidia_smi) if by_nvidia_smi else "it does not say")
        else:
            yield skipped(BUSY.replace("swatches", load))
    yield from _given_up_and_closed(bench)


def _prepared(bench: Bench, items: list[EmbedInput], alone: float) -> Figure:
    """What the preparing threads alone reach, over the forward pass' `alone` items a second."""
    started = perf_counter()
    prepared = list(bench.embedder.threads.map(bench.embedder.preparer.attempt, items))
    rate = len(prepared) / (perf_counter() - started)
    what = f"swatches: {rate:,.4g} prepared a second by {WORKERS} threads alone, of the forward pass alone"
    return fast(what, rate / alone, "", least=AHEAD if bench.on_gpu else None)


def _drive(serving: Pipeline, items: list[EmbedInput]) -> tuple[float, list[Answer]]:
    """(seconds until the last answer, each item's answer): a request an item, from several threads."""
    answers: dict[int, Answer] = {}
    answered = Semaphore(0)

    def send(index: int) -> None:
        def reply(found: list[Answer]) -> None:
            answers[index] = found[0]
            answered.release()

        serving.submit(Request([items[index]], reply, lambda: False))

    started = perf_counter()
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(send, range(len(items))))
    for _ in items:
        answered.acquire()
    return perf_counter() - started, [answers[index] for index in range(len(items))]


@contextmanager
def _busy(bench: Bench, model: PackedModel) -> Iterator[list[float]]:
    """Within it, events mark each pass; after it, the list holds the share of the time that they cover (CUDA only)."""
    found: list[float] = []
    if not bench.on_gpu:
        yield found
        return
    passes: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def marked(*given: Any, **named: Any) -> Any:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        states = PackedModel.hidden(model, *given, **named)
        ended.record()
        passes.append((began, ended))
        return states

    model.hidden = marked  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del model.hidden
    torch.cuda.synchronize(bench.device)
    found.append(sum(began.elapsed_time(ended) for began, ended in passes) / passes[0][0].elapsed_time(passes[-1][1]))


def _given_up_and_closed(bench: Bench) -> Iterator[Figure]:
    """Nobody waits for the first; the others are inside when the pipeline is closed."""
    serving = Pipeline(bench.embedder_of(bench.embedder.model), CAPACITY)
    answers: list[Answer] = []
    for index in range(CAPACITY):
        given_up = index < CAPACITY // 2
        since = monotonic() - (60 if given_up else 0)
        item = inputs.half_and_half(2)[index % 2]
        serving.submit(Request([item], answers.extend, lambda given_up=given_up: given_up, since))  # type: ignore[misc]
    started = perf_counter()
    serving.close()
    yield told("closing a full pipeline", perf_counter() - started, "s")
    abandoned = sum(isinstance(answer, Abandoned) for answer in answers)
    embedded = sum(isinstance(answer, Embedding) for answer in answers)
    half = CAPACITY // 2
    yield right(f"requests that nobody waits for, of {half}: not computed", abandoned, least=half, most=half)
    yield right(f"requests inside when it was closed, of {half}: answered", embedded, least=half, most=half)


def lost_device(bench: Bench) -> Iterator[Figure]:
    """Check 11: the process must end, so that its watcher starts another; callers of a living one wait for ever."""
    command = faults.command("lost", bench.device)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.readline().strip()
        started = perf_counter()
        _, errors = child.communicate(timeout=2 * faults.GONE_SECONDS)
        took = perf_counter() - started
    if said != faults.BREAKING:
        raise RuntimeError(f"the process failed before its device did: {faults.last_line(errors)}")
    why = "lost by a device-side assertion" if bench.on_gpu else "said to be lost"
    yield right(f"a device that is {why}: exit status", child.returncode, least=LOST, most=LOST)
    yield right("from the fault to the end", took, "s", most=GONE_SECONDS)
