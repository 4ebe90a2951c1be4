"""Fit a calibration: what all texts and all images of a recipe share, from data that no evaluation here asks about.

The texts are CSS colour names that the XKCD survey does not have, the images swatches of random colours; or a caller's
own. The arithmetic is `embedder.calibration`'s.
"""

from typing import Any

import numpy as np
from matplotlib.colors import CSS4_COLORS
from numpy.typing import NDArray

from embedder import Embedder, EmbedInput, Options
from embedder.prepare.calibration import Kind, fit
from qwen3_vl_embed.evaluation.colours import png, swatch, xkcd

SEED = 7
SWATCHES = 500


def default_texts() -> list[str]:
    """CSS colour names without those of the survey."""
    survey = {name.replace(" ", "") for name in xkcd().names}
    return [name for name in CSS4_COLORS if name not in survey]


def default_images() -> list[bytes]:
    """Solid swatches of random colours as PNG files, none of them one of the survey's."""
    taken = {tuple(rgb) for rgb in xkcd().rgb.tolist()}
    drawn = np.random.default_rng(SEED).integers(0, 256, (SWATCHES, 3)).tolist()
    return [png(swatch(tuple(rgb))) for rgb in drawn if tuple(rgb) not in taken]


def calibrate(
    embedder: Embedder, texts: list[str], images: list[bytes], options: Options, method: str
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Embed and fit; returns what the file says about itself, and its arrays.

    Raises:
        EmbedError: an input or an option cannot be embedded.
        ValueError: no such method, or one that leaves nothing of these.
    """
    options = options.model_copy(update={"center": False, "normalize": True, "dimensions": None})
    inputs: dict[Kind, list[EmbedInput]] = {
        "text": [EmbedInput(text=text, options=options) for text in texts],
        "image": [EmbedInput(image=image, options=options) for image in images],
    }
    rows = {kind: np.stack([answer.vector for answer in embedder.embed(items)]) for kind, items in inputs.items()}
    about = {
        "method": method,
        "forward": embedder.prepare(inputs["text"][0]).recipe.forward,
        "weights": embedder.checkpoint.fingerprint,
        "samples": {kind: len(items) for kind, items in inputs.items()},
    }
    return about, fit(rows, method)
