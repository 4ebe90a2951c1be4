"""Figures with bootstrap intervals: every figure is a function of how often each pair is counted.

Counting every pair once gives the value. Counting pairs as often as they were drawn, with replacement, gives what the
value might have been with other pairs. So a value and its interval can never come from two definitions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qwen3_vl_embed.evaluation import FloatArray

SEED = 0
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percent: the middle 95 % of the resamples

Statistic = Callable[[FloatArray], FloatArray]  # counts (B, N) -> values (B,)


@dataclass(frozen=True)
class Figure:
    """A value, its 95 % bootstrap interval (None where a bootstrap means nothing) and what pure chance would give."""

    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Resampling:
    """Draws of N pairs out of N. Without any, a figure is its value alone."""

    pairs: int
    resamples: int = RESAMPLES

    @cached_property
    def counts(self) -> FloatArray:
        """How often each resample holds each pair, float64 (resamples, N)."""
        rng = np.random.default_rng(SEED)
        return rng.multinomial(self.pairs, np.full(self.pairs, 1 / self.pairs), self.resamples).astype(float)

    def figure(self, statistic: Statistic, chance: float | None = None) -> Figure:
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is an honest NaN: a ratio in a collapsed space
            value = float(statistic(np.ones((1, self.pairs)))[0])
            if not self.resamples:
                return Figure(value, chance=chance)
            low, high = np.percentile(statistic(self.counts), INTERVAL)
        return Figure(value, float(low), float(high), chance)


def mean(counts: FloatArray, values: FloatArray) -> FloatArray:
    """Mean of `values` (N,) in each resample: (B,)."""
    return counts @ values / counts.sum(axis=1)


def std(counts: FloatArray, values: FloatArray) -> FloatArray:
    """Population standard deviation (divided by N, as numpy and the benchmark do): (B,)."""
    center = values.mean()  # moved to zero first: the difference of two squares loses no digits
    return np.sqrt(np.maximum(mean(counts, (values - center) ** 2) - mean(counts, values - center) ** 2, 0))


def median(counts: FloatArray, values: FloatArray) -> FloatArray:
    """Median of `values` (N,) in each resample: (B,)."""
    order = np.argsort(values)
    below = counts[:, order].cumsum(axis=1)
    total = below[:, -1:]
    lower, upper = (values[order][(below > middle).argmax(axis=1)] for middle in ((total - 1) // 2, total // 2))
    return (lower + upper) / 2


def pair_mean(counts: FloatArray, matrix: FloatArray) -> FloatArray:
    """Mean of `matrix` (N, N) off its diagonal, row i and column j counted as often as pairs i and j: (B,).

    A pair drawn twice is never compared with itself.
    """
    diagonal = np.diag(matrix)
    both = ((counts @ matrix) * counts).sum(axis=1) - (counts**2) @ diagonal
    return both / (counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1))
