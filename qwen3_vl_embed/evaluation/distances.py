"""How far matched pairs are apart, and how far what does not belong together.

The mean matched distance is the colour benchmark's metric, and can be had for nothing: vectors that all point the same
way have none. Only beside the unmatched distance does it say anything.
"""

from functools import partial

import numpy as np

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean, median, pair_mean, std
from qwen3_vl_embed.evaluation.space import TIE, Space


def figures(space: Space, resampling: Resampling) -> dict[str, Figure]:
    """Cosine distances (1 - cosine, 0…2) of text against image, and how well they tell matched from unmatched."""
    distances = 1 - space.text_to_image
    matched = np.diag(distances).copy()
    return {
        "matched_mean": resampling.figure(partial(mean, values=matched)),
        "matched_median": resampling.figure(partial(median, values=matched)),
        "matched_std": resampling.figure(partial(std, values=matched)),
        "matched_min": Figure(float(matched.min())),  # a bootstrap of an extreme never exceeds it
        "matched_max": Figure(float(matched.max())),
        "unmatched_mean": resampling.figure(partial(pair_mean, matrix=distances)),
        "ratio": resampling.figure(partial(_ratio, distances=distances), chance=1.0),
        "auc": resampling.figure(partial(mean, values=placements(distances)), chance=0.5),
        "d_prime": resampling.figure(partial(_d_prime, distances=distances), chance=0.0),
    }


def placements(distances: FloatArray) -> FloatArray:
    """For each matched pair the share of unmatched ones that are farther apart, ties half: float64 (N,).

    Its mean is the area under the ROC curve (Mann-Whitney); unlike sklearn's roc_auc_score it can be resampled.
    """
    ordered = np.sort(distances[~np.eye(len(distances), dtype=bool)])
    below, not_above = (np.searchsorted(ordered, np.diag(distances) + slack) for slack in (-TIE, TIE))
    return 1 - (below + not_above) / (2 * len(ordered))


def _ratio(counts: FloatArray, distances: FloatArray) -> FloatArray:
    """Matched over unmatched mean; NaN where all distances are nought."""
    unmatched = pair_mean(counts, distances)
    return mean(counts, np.diag(distances)) / np.where(unmatched < TIE, np.nan, unmatched)


def _d_prime(counts: FloatArray, distances: FloatArray) -> FloatArray:
    """How many standard deviations lie between the two means; the two variances are averaged."""
    far = pair_mean(counts, distances)
    far_variance = pair_mean(counts, (distances - distances.mean()) ** 2) - (far - distances.mean()) ** 2
    near = np.diag(distances)
    spread = np.sqrt((std(counts, near) ** 2 + np.maximum(far_variance, 0)) / 2)
    return (far - mean(counts, near)) / np.where(spread < TIE, np.nan, spread)
