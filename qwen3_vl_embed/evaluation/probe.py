"""What can be read off a vector by a ridge regression: its colour, or the words of its caption.

A constant vector cannot game it, and it does not ask texts and images to agree: it tells what each side knows.
"""

import re
from functools import partial

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean
from qwen3_vl_embed.evaluation.space import Space

PENALTIES = np.logspace(-3, 5, 17)
COMMON = 0.05  # share of the captions that hold a word, and of those that do not, at least


def figures(space: Space, wanted: FloatArray, resampling: Resampling) -> dict[str, Figure]:
    """R² (the mean over what is `wanted`, (N, K)) of pairs that the regression was not fitted on; 0 is guessing."""
    found = {}
    for modality in ("text", "image"):
        score = partial(r2, wanted=wanted, errors=errors(space.rows(modality), wanted))
        found[f"probe_{modality}"] = resampling.figure(score, chance=0.0)
    return found


def wanted(pairs: Pairs) -> FloatArray | None:
    """What is to be read off: CIELAB (N, 3), or which of K common words a caption holds, (N, K); None without any."""
    if pairs.rgb is not None:
        return pairs.lab
    captions = [set(re.findall(r"\w+", name.lower())) for name in pairs.names]
    vocabulary = sorted(set().union(*captions))
    held = np.array([[word in caption for word in vocabulary] for caption in captions], dtype=float)
    common = abs(held.mean(axis=0) - 0.5) <= 0.5 - COMMON
    return held[:, common] if common.any() else None


def errors(vectors: FloatArray, wanted: FloatArray) -> FloatArray:
    """Squared errors of rows that were left out one by one, float64 (N, K); each column has its best penalty."""
    scaled = StandardScaler().fit_transform(vectors)
    found = RidgeCV(PENALTIES, store_cv_results=True).fit(scaled, wanted).cv_results_  # (N, K, penalties)
    return found[:, np.arange(found.shape[1]), found.mean(axis=0).argmin(axis=1)]


def r2(counts: FloatArray, wanted: FloatArray, errors: FloatArray) -> FloatArray:
    """In each resample: (B,)."""
    shares = []
    for truth, error in zip(wanted.T, errors.T, strict=True):
        center = mean(counts, truth)
        variance = mean(counts, (truth - truth.mean()) ** 2) - (center - truth.mean()) ** 2
        shares.append(1 - mean(counts, error) / np.where(variance > 0, variance, np.nan))
    known = np.isfinite(shares)  # (K, B); a resample may hold nobody who has a rare word
    return np.where(known, shares, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
