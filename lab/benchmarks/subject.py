"""What is measured: the embedder as it is loaded by default, its answers checked, and how much work an input is."""

from time import perf_counter

import numpy as np

from embedder import Embedder, EmbedderConfig, EmbedInput
from lab.benchmarks.gpu import synchronize


def load(folder: str, device: str, dtype: str = "auto") -> Embedder:
    """The embedder with its default settings."""
    return Embedder.load(EmbedderConfig.model_validate({"checkpoint": folder, "device": device, "dtype": dtype}))


def vectors(embedder: Embedder, batch: list[EmbedInput]) -> np.ndarray:
    """float32 (N, D); raises the first error among the answers."""
    return np.stack([answer.vector for answer in embedder.embed(batch)])


def timed(embedder: Embedder, batch: list[EmbedInput]) -> tuple[float, float]:
    """(seconds of the whole call, seconds of its forward passes)."""
    synchronize(embedder.config.device)
    started = perf_counter()
    answers = embedder.embed(batch)
    took = perf_counter() - started
    return took, sum({answer.forward_ms for answer in answers}) / 1e3  # each pass once, whatever the inputs in it


def shapes(embedder: Embedder, batch: list[EmbedInput]) -> list[tuple[int, int]]:
    """(tokens, patches) of each input."""
    sequences = [embedder.prepare(item).sequence for item in batch]
    return [(len(each), each.patches.grid[0] * each.patches.grid[1] if each.patches else 0) for each in sequences]
