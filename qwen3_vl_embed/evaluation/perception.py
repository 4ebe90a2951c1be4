"""Does the space see colours as people do: CIEDE2000 of what is found, and of everything against everything.

XKCD's names are near-duplicates of each other, so the second best answer is often as good as the first. The colour
difference of the first answer gives credit where recall does not.
"""

from functools import partial

import numpy as np
from scipy.stats import rankdata

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean, pair_mean
from qwen3_vl_embed.evaluation.space import TIE, Space

NEAR = 10.0  # CIEDE2000: the same colour to most people who name it


def figures(space: Space, differences: FloatArray, resampling: Resampling) -> dict[str, Figure]:
    """`differences`: CIEDE2000 of each colour with each, (N, N)."""
    near = (differences <= NEAR).astype(float)
    found: dict[str, Figure] = {}
    for direction in ("text_to_image", "image_to_text"):
        for name, worth in (("first_delta_e", differences), ("first_near", near)):
            values = of_first(getattr(space, direction), worth)
            found[f"{direction}_{name}"] = resampling.figure(partial(mean, values=values), float(worth.mean()))
    for kind in ("image_to_image", "text_to_text", "text_to_image"):
        agreement = partial(_spearman, cosines=ranked(getattr(space, kind)), differences=ranked(-differences))
        found[f"spearman_{kind}"] = resampling.figure(agreement, chance=0.0)
    return found


def of_first(similarity: FloatArray, worth: FloatArray) -> FloatArray:
    """What each query's first answer is worth, from `worth` (Q, C); the mean over all that tie for the first place."""
    first = similarity >= similarity.max(axis=1, keepdims=True) - TIE
    return (worth * first).sum(axis=1) / first.sum(axis=1)


def ranked(matrix: FloatArray) -> FloatArray:
    """Ranks of everything off the diagonal, ties averaged, scaled to -0.5…0.5: float64 (N, N); 0 on the diagonal."""
    off = ~np.eye(len(matrix), dtype=bool)
    ranks = np.zeros(matrix.shape)
    ranks[off] = rankdata(np.round(matrix[off], 7)) / off.sum() - 0.5
    return ranks


def _spearman(counts: FloatArray, cosines: FloatArray, differences: FloatArray) -> FloatArray:
    """Pearson's correlation of the ranks. Resamples keep the ranks of the whole: ranking 900,000 pairs takes long."""
    x, y, xy, xx, yy = (
        pair_mean(counts, m) for m in (cosines, differences, cosines * differences, cosines**2, differences**2)
    )
    spread = np.sqrt(np.maximum(xx - x**2, 0) * np.maximum(yy - y**2, 0))
    return (xy - x * y) / np.where(spread < TIE, np.nan, spread)
