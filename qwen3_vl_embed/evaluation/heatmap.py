"""The sweep as a picture: layers against poolings, norms and calibrations, a panel for each prompt."""

from typing import IO

import matplotlib
import numpy as np

from qwen3_vl_embed.evaluation.sweep import CALIBRATIONS, MEANS, Row, ranking

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

COLUMNS = 2  # panels beside each other, where there are several


def draw(rows: list[Row], file: IO[bytes]) -> None:
    """Write a PNG: the test half's MRR as colour and number; the chosen recipe has a frame."""
    panels = list(dict.fromkeys((row.prompt, row.max_pixels) for row in rows))
    layers = [*sorted({row.layer for row in rows if isinstance(row.layer, int)}), "attn", *MEANS]
    found = {(row.pooling, row.final_norm, row.calibration) for row in rows}
    ways = sorted(found, key=lambda way: (way[0], not way[1], CALIBRATIONS.index(way[2])))
    labels = [
        f"{pooling}, {'norm' if norm else 'no norm'}{'' if calibration == 'none' else f', {calibration}'}"
        for pooling, norm, calibration in ways
    ]
    best = ranking(rows)[0]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(columns * (0.5 * len(layers) + 3), lines * (0.25 * len(ways) + 1.6) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (prompt, max_pixels) in zip(axes.flat, panels, strict=False):
        of_panel = [row for row in rows if (row.prompt, row.max_pixels) == (prompt, max_pixels)]
        values = np.full((len(ways), len(layers)), np.nan)
        for row in of_panel:
            way, layer = ways.index((row.pooling, row.final_norm, row.calibration)), layers.index(row.layer)
            values[way, layer] = row.test_mrr
            if row == best:
                frame = Rectangle((layer - 0.5, way - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2.5)
                axis.add_patch(frame)
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for way, layer in zip(*np.nonzero(np.isfinite(values)), strict=True):
            light = "white" if values[way, layer] < 0.6 else "black"
            axis.text(layer, way, f"{values[way, layer]:.2f}", ha="center", va="center", color=light, fontsize=7)
        axis.set_xticks(range(len(layers)), [str(layer).replace("+", "+\n") for layer in layers], fontsize=8)
        axis.set_yticks(range(len(ways)), labels, fontsize=8)
        axis.set_xlabel("layer (0 is the input), and means over layers")
        axis.set_title(f"prompt {prompt!r}" + (f", at most {max_pixels} pixels" if max_pixels else ""), loc="left")
        figure.colorbar(image, ax=axis, label="MRR", pad=0.01)
    figure.suptitle("Mean reciprocal rank of text ↔ image, test half; red: chosen on the other half", fontsize=10)
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
