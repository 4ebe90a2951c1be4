"""The shape of the cloud: does everything point one way, are texts and images apart."""

from collections.abc import Callable
from functools import partial

import numpy as np
from sklearn.decomposition import PCA

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean, pair_mean
from qwen3_vl_embed.evaluation.space import TIE, Space, View

MODALITIES = ("text", "image")
Shape = Callable[[FloatArray, View], FloatArray]  # counts (B, M) of the view's own pairs -> values (B,)


def figures(space: Space, resampling: Resampling) -> dict[str, Figure]:
    """Anisotropy (length of the mean unit vector) and top principal share of each modality, and the gap between them.

    Beside them what as many random directions have (for the share: all axes alike).
    What is judged in two views is the mean of the two: their residual means point opposite ways and would cancel.
    """
    judged = len(space.views[0].rows)
    one, two, even = judged**-0.5, (2 / judged) ** 0.5, 1 / min(judged - 1, space.views[0].text.shape[1])
    shapes: dict[str, tuple[Shape, float]] = {"modality_gap": (_gap, two)}
    for side in MODALITIES:
        shapes[f"anisotropy_{side}"] = partial(_anisotropy, modality=side), one
        shapes[f"top_share_{side}"] = partial(_top_share, modality=side), even
    return {
        name: resampling.figure(partial(_over_views, space=space, shape=shape), chance)
        for name, (shape, chance) in shapes.items()
    }


def _over_views(counts: FloatArray, space: Space, shape: Shape) -> FloatArray:
    return np.mean([shape(counts[:, view.rows], view) for view in space.views], axis=0)


def _anisotropy(counts: FloatArray, view: View, modality: str) -> FloatArray:
    return _mean_length(counts, getattr(view, modality)[view.rows])


def _gap(counts: FloatArray, view: View) -> FloatArray:
    return _mean_length(counts, (view.text - view.image)[view.rows])


def _mean_length(counts: FloatArray, rows: FloatArray) -> FloatArray:
    """Length of the mean of `rows` (M, D) in each resample: (B,).

    From the products of different rows: the mean of a resample, which holds some rows twice, is longer by chance.
    """
    products = rows @ rows.T
    own = np.trace(products) / len(rows)
    return np.sqrt(np.maximum((own + (len(rows) - 1) * pair_mean(counts, products)) / len(rows), 0))


def _top_share(counts: FloatArray, view: View, modality: str) -> FloatArray:
    """Share of the variance along the first principal axis, which stays that of all pairs in every resample."""
    rows = getattr(view, modality)[view.rows]
    rows = rows - rows.mean(axis=0)
    along = rows @ PCA(n_components=1, random_state=0).fit(rows).components_[0]
    total = mean(counts, (rows**2).sum(axis=1)) - ((counts @ rows / counts.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return (mean(counts, along**2) - mean(counts, along) ** 2) / np.where(total < TIE, np.nan, total)
