"""The plots of a report: distances, distance against colour difference, a map, ranks by colour.

Each function draws on axes that it is given (`svg.draw`). Knows colours and cosines; not the page.
"""

import colour
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.retrieval import ranks
from qwen3_vl_embed.evaluation.space import Space
from qwen3_vl_embed.evaluation.svg import INK

MATCHED, UNMATCHED = "#d1495b", "#7a8ba6"  # legible on white and on black
EDGE = "#888888"  # around points in their own colours: some are as white or as black as the page
BINS = 12


def distances(axes: Axes, space: Space) -> None:
    """How far matched and unmatched pairs are apart, as densities."""
    values = 1 - space.text_to_image
    own = np.eye(len(values), dtype=bool)
    edges = np.histogram_bin_edges(values, bins=int(np.clip(len(values) / 4, 12, 60)))
    for kind, mask, colour_ in (("unmatched", ~own, UNMATCHED), ("matched", own, MATCHED)):
        weights = np.full(mask.sum(), 1 / mask.sum())
        axes.hist(values[mask], edges.tolist(), weights=weights, color=colour_, alpha=0.75, label=kind)
    axes.set(xlabel="cosine distance, text to image", ylabel="share of pairs")
    _legend(axes)


def against_difference(axes: Axes, cosines: FloatArray, differences: FloatArray) -> None:
    """All pairs as a density, with the median distance along CIEDE2000."""
    off = ~np.eye(len(cosines), dtype=bool)
    x, y = differences[off], 1 - cosines[off]
    axes.hexbin(x, y, gridsize=45, bins="log", cmap="viridis", mincnt=1, linewidths=0, rasterized=True)
    centers, medians = binned_median(x, y, np.linspace(0, x.max(), 25))
    axes.plot(centers, medians, color=MATCHED, linewidth=2, label="median")
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
    """Both modalities on one plane, in their own colours where they have one."""
    text, image = projection(space)
    for kind, marker, plain, points in (("texts", "o", UNMATCHED, text), ("images", "s", MATCHED, image)):
        x, y = points.T
        colours = plain if rgb is None else rgb / 255
        axes.scatter(x, y, s=18, marker=marker, c=colours, edgecolors=EDGE, linewidths=0.3, rasterized=True)
        axes.scatter([], [], marker=marker, c="none" if rgb is not None else plain, edgecolors=INK, label=kind)
    axes.set(xlabel="first principal axis", ylabel="second principal axis")
    _legend(axes)


def rank_by(axes: Axes, space: Space, rgb: NDArray[np.uint8], lab: FloatArray, quality: str) -> None:
    """Rank of each name's own swatch against hue, lightness or saturation, with the median."""
    x, words, limits = qualities(lab)[quality]
    rank = ranks(space.text_to_image)
    axes.scatter(x, rank, s=18, c=rgb / 255, edgecolors=EDGE, linewidths=0.3, rasterized=True)
    axes.plot(*binned_median(x, rank, np.linspace(*limits, BINS + 1)), color=INK, linewidth=2, label="median")
    axes.set(xlabel=words, ylabel="rank of the name's own swatch", yscale="log", xlim=limits)
    axes.set_ylim(0.8, max(10, 1.3 * rank.max()))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
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


def binned_median(x: FloatArray, y: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Centers of the bins that hold anything, and the median of `y` in them."""
    bin_of = np.digitize(x, edges[1:-1])
    held = [index for index in range(len(edges) - 1) if (bin_of == index).any()]
    centers = (edges[:-1] + edges[1:]) / 2
    return centers[held], np.array([np.median(y[bin_of == index]) for index in held])
