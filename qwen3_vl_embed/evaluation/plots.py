"""The plots of a report: distances, distance against colour difference, a map, what is found by colour.

Each function draws on axes that it is given (`svg.draw`).
"""

from collections.abc import Mapping

import colour
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from scipy.stats import binned_statistic
from sklearn.decomposition import PCA

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.retrieval import ranks
from qwen3_vl_embed.evaluation.space import Space
from qwen3_vl_embed.evaluation.svg import INK

MATCHED, UNMATCHED = "#d1495b", "#7a8ba6"  # legible on white and on black
EDGE = "#888888"  # around points in their own colours: some are as white or as black as the page
BINS = 12
SHARES = np.linspace(0, 1, 401)
MAPPED = 200  # pairs on the map: of more, no line can be followed


def distances(axes: Axes, spaces: Mapping[str, Space]) -> None:
    """How many matched and unmatched pairs are nearer than each distance, raw and (dashed) centred."""
    for kind, line in (("raw", "-"), ("centred", "--")):
        values = 1 - spaces[kind].text_to_image
        own = np.eye(len(values), dtype=bool)
        for words, mask, colour_ in (("matched", own, MATCHED), ("unmatched", ~own, UNMATCHED)):
            label = words if kind == "raw" else None
            axes.plot(np.quantile(values[mask], SHARES), SHARES, line, color=colour_, linewidth=2, label=label)
    axes.set(xlabel="cosine distance, text to image", ylabel="share of pairs that are nearer", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(axes)


def against_difference(axes: Axes, cosines: FloatArray, differences: FloatArray) -> None:
    """All pairs as a density, with the median distance along CIEDE2000."""
    off = ~np.eye(len(cosines), dtype=bool)
    x, y = differences[off], 1 - cosines[off]
    axes.hexbin(x, y, gridsize=45, bins="log", cmap="viridis", mincnt=1, linewidths=0, rasterized=True)
    medians, edges, _ = binned_statistic(x, y, "median", bins=24, range=(0, x.max()))
    held = np.isfinite(medians)  # of a bin that holds nothing there is none
    axes.plot(((edges[:-1] + edges[1:]) / 2)[held], medians[held], color=MATCHED, linewidth=2, label="median")
    axes.set(xlabel="colour difference, CIEDE2000", ylabel="cosine distance")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the plot, where it hides no point."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0)


def projection(space: Space) -> tuple[FloatArray, FloatArray]:
    """Texts and images on the two principal axes of all together: float64 (N, 2) each."""
    text, image = space.rows("text"), space.rows("image")
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant vector has no variance to share out
        axes = PCA(n_components=2, random_state=0).fit(np.concatenate([text, image]))
    return axes.transform(text), axes.transform(image)


def vector_map(axes: Axes, space: Space, rgb: NDArray[np.uint8] | None) -> None:
    """Both modalities on one plane, in their own colours where they have one, and what belongs together joined."""
    shown = np.random.default_rng(0).permutation(len(space.rows("text")))[:MAPPED]
    text, image = (points[shown] for points in projection(space))
    colours = UNMATCHED if rgb is None else rgb[shown] / 255
    axes.add_collection(LineCollection(np.stack([text, image], axis=1), colors=colours, linewidths=1.2))
    for kind, marker, points in (("texts", "o", text), ("images", "s", image)):
        x, y = points.T
        axes.scatter(x, y, s=22, marker=marker, c=colours, edgecolors=EDGE, linewidths=0.4, zorder=2)
        axes.scatter([], [], marker=marker, c="none", edgecolors=INK, label=kind)
    axes.set(xlabel="first principal axis", ylabel="second principal axis")
    _legend(axes)


def found_by(axes: Axes, space: Space, rgb: NDArray[np.uint8], lab: FloatArray, quality: str) -> None:
    """Share of names whose own swatch comes first, or among ten, by hue, lightness or saturation."""
    x, words, limits = qualities(lab)[quality]
    rank = ranks(space.text_to_image)
    edges = np.linspace(*limits, BINS + 1)
    bins = np.digitize(x, edges[1:-1])
    held = np.unique(bins)
    first, ten = ([(rank[bins == each] <= most).mean() for each in held] for most in (1, 10))
    colours = [rgb[bins == each].mean(axis=0) / 255 for each in held]
    centers = (edges[:-1] + edges[1:])[held] / 2
    axes.bar(centers, first, 0.9 * (edges[1] - edges[0]), color=colours, edgecolor=EDGE, linewidth=0.5, label="first")
    axes.plot(centers, ten, "o-", color=INK, linewidth=1.5, markersize=4, label="among ten")
    axes.set(xlabel=words, ylabel="share of names", xlim=limits, ylim=(0, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(axes)


def qualities(lab: FloatArray) -> dict[str, tuple[FloatArray, str, tuple[float, float]]]:
    """Values (N,), words and range of what CIELAB says of each colour. Saturation is CIE's, chroma to lightness."""
    lightness, chroma, hue = colour.models.Lab_to_LCHab(lab).T
    saturation = chroma / np.maximum(np.hypot(chroma, lightness), 1e-9)
    return {
        "hue": (hue, "hue, CIELAB degrees", (0, 360)),
        "lightness": (lightness, "lightness L*", (0, 100)),
        "saturation": (saturation, "saturation C* / √(C*² + L*²)", (0, 1)),
    }
