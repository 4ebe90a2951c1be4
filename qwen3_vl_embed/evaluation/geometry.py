"""The shape of the cloud: does everything point one way, are texts and images apart, how many directions are there."""

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
    """Anisotropy (length of the mean unit vector), top principal share, intrinsic dimension of each modality; the gap.

    Beside them what as many random directions have (for the share: all axes alike).
    What is judged in two views is the mean of the two: their residual means point opposite ways and would cancel.
    """
    judged = len(space.views[0].rows)
    one, two, even = judged**-0.5, (2 / judged) ** 0.5, 1 / min(judged - 1, space.views[0].text.shape[1])
    shapes: dict[str, tuple[Shape, float | None]] = {"modality_gap": (_gap, two)}
    for side in MODALITIES:
        shapes[f"anisotropy_{side}"] = partial(_anisotropy, modality=side), one
        shapes[f"top_share_{side}"] = partial(_top_share, modality=side), even
        shapes[f"intrinsic_dimension_{side}"] = partial(_intrinsic_dimension, modality=side), None
    return {
        name: resampling.figure(partial(_over_views, space=space, shape=shape), chance)
        for name, (shape, chance) in shapes.items()
    }


def intrinsic_dimension(space: Space, modality: str) -> float:
    """The figure of that name alone."""
    shape = partial(_intrinsic_dimension, modality=modality)
    return Resampling(space.pairs, resamples=0).figure(partial(_over_views, space=space, shape=shape)).value


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


def _intrinsic_dimension(counts: FloatArray, view: View, modality: str) -> FloatArray:
    """In how many directions neighbours differ: TwoNN (Facco et al. 2017, doi 10.1038/s41598-017-11873-y).

    The ratio r of the second to the first neighbour's distance is distributed as d·r^(-d-1), however dense the points
    are. So log r has the mean 1/d, and (n - 1) / Σ log r is free of bias (Denti et al. 2022, doi
    10.1038/s41598-022-20991-1). Neighbours are those of the whole; a point that has a twin is left out.
    """
    rows = getattr(view, modality)[view.rows]
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    second, first = 1 - np.partition(cosines, len(rows) - 2, axis=1)[:, -2:].T  # half of the squared distances
    alone = first >= TIE
    ratios = np.zeros(len(rows))
    ratios[alone] = np.log(second[alone] / first[alone]) / 2
    total = counts @ ratios
    return (counts @ alone - 1) / np.where(total > 0, total, np.nan)
