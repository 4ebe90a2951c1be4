"""Check 7: the token budget against the true peak, and a pass that runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

from embedder import Embedder, EmbedInput
from embedder.forward.budget import text_bytes, vision_bytes
from embedder.parity import least_cosine
from embedder.prepare.images import MERGE
from lab.benchmarks import inputs, subject
from lab.benchmarks.gpu import forget_peak, peak_bytes
from lab.benchmarks.gpu_checks.bench import Bench, full
from lab.benchmarks.gpu_checks.figures import Figure, fast, right, skipped, told
from lab.benchmarks.subject import vectors

TIMES = 8  # the budget, for the pass that must run out


def memory(bench: Bench) -> Iterator[Figure]:
    """Check 7."""
    embedder, budget = bench.embedder, bench.embedder.batch_tokens
    yield told("token budget", budget, "tokens")
    for kind in ("name", "swatch", bench.sizes.large[0]):
        batch = full(embedder, kind)
        vectors(embedder, batch)  # what a first pass allocates for good is not a pass'
        forget_peak(bench.device)
        before = torch.cuda.memory_allocated(bench.device) if bench.on_gpu else peak_bytes(bench.device)
        vectors(embedder, batch)
        peak = peak_bytes(bench.device) - before
        tokens = sum(tokens for tokens, _ in subject.shapes(embedder, batch))
        what = f"a full pass of {kind}, {tokens:,} tokens, {peak / 2**20:,.0f} MiB: share of the estimate"
        yield right(what, peak / (tokens * bytes_of_a_token(embedder)), most=1.0)
    yield from _large_photos(bench)
    yield from _running_out(bench, embedder, budget)


def _large_photos(bench: Bench) -> Iterator[Figure]:
    """Of 12 megapixels: four times as many in a call take hardly more memory."""
    peaks = []
    for count in bench.sizes.photos:
        batch = [EmbedInput(image=inputs.picture(inputs.TWELVE_MEGAPIXELS, seed % 4)) for seed in range(count)]
        forget_peak(bench.device)
        before = torch.cuda.memory_allocated(bench.device) if bench.on_gpu else peak_bytes(bench.device)
        took, _ = subject.timed(bench.embedder, batch)
        peaks.append(peak_bytes(bench.device) - before)
        yield told(f"{count} photos of 12 megapixels, {peaks[-1] / 2**20:,.0f} MiB", took, "s")
    few, many = bench.sizes.photos
    if bench.on_gpu:
        bench.found["photo_memory"] = peaks[1] / peaks[0]
        yield right(f"memory of {many} of them, over {few}", peaks[1] / peaks[0], most=1.5)
    else:
        yield skipped(f"memory of {many} of them, over {few}")


def bytes_of_a_token(embedder: Embedder) -> int:
    """What the budget counts with."""
    config, item_bytes = embedder.model.model.config, embedder.model.model.dtype.itemsize
    return text_bytes(config.text_config, item_bytes) + MERGE**2 * vision_bytes(config.vision_config, item_bytes)


def _running_out(bench: Bench, embedder: Embedder, budget: int) -> Iterator[Figure]:
    kind = bench.sizes.large[0]
    batch = inputs.batch(kind, TIMES * len(full(embedder, kind)))
    started = perf_counter()
    expected = vectors(embedder, batch)
    usual = perf_counter() - started
    halved, failed = (embedder.counts[name] for name in ("halved_passes", "failed_inputs"))
    embedder.batch_tokens = TIMES * budget
    try:
        with _scarce(bench, embedder, budget * bytes_of_a_token(embedder), budget):
            started = perf_counter()
            found = vectors(embedder, batch)
            took = perf_counter() - started
            shrunk = embedder.batch_tokens
    finally:
        embedder.batch_tokens = budget
    after, _ = subject.timed(embedder, batch)
    yield right(f"passes of {TIMES} budgets, halved", embedder.counts["halved_passes"] - halved, least=1)
    yield right("inputs that failed in them", embedder.counts["failed_inputs"] - failed, most=0)
    yield right("their least cosine to those of ordinary passes", least_cosine(found, expected), least=0.999)
    if bench.on_gpu:
        yield right("the budget afterwards, of the one that ran out", shrunk / (TIMES * budget), most=0.9)
    yield told("they took", took / usual, "times as long as ordinary passes")
    yield fast("ordinary passes afterwards", after / usual, "times as long as before", most=1.3)


@contextmanager
def _scarce(bench: Bench, embedder: Embedder, more: int, budget: int) -> Iterator[None]:
    """Within it the device has `more` bytes left for this process: torch's own limit, so that it raises its own error.

    A CPU has no such limit: there a pass of more than `budget` tokens raises the same error in the language model.
    """
    if bench.on_gpu:
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved(bench.device)
        whole = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + more) / whole), bench.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        return

    def refuse(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given[0].shape[1] > budget:
            raise torch.OutOfMemoryError("planted: more tokens than the budget")

    hook = embedder.model.model.language_model.rotary_emb.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()
