"""The sweep as a picture: layers against poolings and norms, a panel for each prompt."""

from typing import IO

import matplotlib
import numpy as np

from qwen3_vl_embed.evaluation.sweep import Row, ranking

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle


def draw(rows: list[Row], file: IO[bytes]) -> None:
    """Write a PNG: the test half's MRR as colour and number; the chosen recipe has a frame."""
    panels = sorted({(row.prompt, row.max_pixels) for row in rows}, key=str)
    layers = [*sorted({row.layer for row in rows if row.layer != "attn"}), "attn"]
    ways = list(dict.fromkeys((row.pooling, row.final_norm, row.center) for row in rows))
    labels = [
        f"{pooling}, {'norm' if norm else 'no norm'}{', centred' if center else ''}" for pooling, norm, center in ways
    ]
    best = ranking(rows)[0]
    height = 0.42 * len(ways) + 1.3
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(max(7, 0.62 * len(layers) + 3.2), height * len(panels) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for axis, (prompt, max_pixels) in zip(axes[:, 0], panels, strict=True):
        of_panel = [row for row in rows if (row.prompt, row.max_pixels) == (prompt, max_pixels)]
        values = np.full((len(ways), len(layers)), np.nan)
        for row in of_panel:
            way, layer = ways.index((row.pooling, row.final_norm, row.center)), layers.index(row.layer)
            values[way, layer] = row.test_mrr
            if row == best:
                frame = Rectangle((layer - 0.5, way - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2.5)
                axis.add_patch(frame)
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for way, layer in np.ndindex(values.shape):
            light = "white" if values[way, layer] < 0.6 else "black"
            axis.text(layer, way, f"{values[way, layer]:.2f}", ha="center", va="center", color=light, fontsize=7)
        axis.set_xticks(range(len(layers)), layers)
        axis.set_yticks(range(len(ways)), labels)
        axis.set_xlabel("layer (0 is the input)")
        axis.set_title(f"prompt {prompt!r}" + (f", at most {max_pixels} pixels" if max_pixels else ""), loc="left")
        figure.colorbar(image, ax=axis, label="MRR", pad=0.01)
    figure.suptitle("Mean reciprocal rank of name ↔ swatch, test half; red: chosen on the other half", fontsize=10)
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
