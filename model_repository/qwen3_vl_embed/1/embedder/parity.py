"""Whether 8-bit weights give a checkpoint's vectors: asked at start, before anybody is served by them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .checkpoint import line
from .errors import EmbedError, UnsupportedCheckpoint
from .forward import float8
from .inputs import EmbedInput
from .prepare.preparer import Prepared
from .warmup import LARGE, SWATCH, png

if TYPE_CHECKING:
    from .embedder import Embedder

LEAST = 0.99  # cosine
TEXTS = ("red", "a small bird on a wet branch", "東京の夜景", "Which of these are darker than #336699, and why?")
COLOURS = ("red", "navy", "beige")


def to_float8(embedder: "Embedder") -> None:
    """Round the layers' weights, in place, and compare our own inputs' vectors before and after; `info` has the result.

    Nothing may have been captured yet (`PackedModel.capturing`).

    Raises:
        UnsupportedCheckpoint: its vectors move too far, or it cannot be computed so.
    """
    name, model = embedder.checkpoint.name, embedder.model
    if len(model.devices) > 1:
        raise UnsupportedCheckpoint(
            f"{name} is spread over {len(model.devices)} GPUs, which EMBED_WEIGHTS=float8 is not for: leave it unset"
        )
    prepared = [item for each in own() if isinstance(item := embedder.preparer.attempt(each), Prepared)]
    exact = vectors(embedder, prepared)
    float8.convert(model.model)
    model.recover()  # its cached prefixes are of the weights before
    least = least_cosine(
        vectors(embedder, prepared, "; by bfloat16 weights it did not: leave EMBED_WEIGHTS unset"), exact
    )
    if not least >= LEAST:
        raise UnsupportedCheckpoint(
            f"{name}: with EMBED_WEIGHTS=float8 a vector of our own inputs has cosine {least:.4f} to that by the "
            f"unrounded weights, and {LEAST} is the least that is served: leave EMBED_WEIGHTS unset"
        )
    embedder.info["weights_cosine"] = round(least, 6)


def own() -> list[EmbedInput]:
    """Short texts, flat colours, and slopes of all colours, small and large."""
    slope = Image.linear_gradient("L")
    slopes = Image.merge("RGB", [slope, slope.rotate(90), Image.radial_gradient("L")])
    images = [*(Image.new("RGB", SWATCH, colour) for colour in COLOURS), slopes, slopes.resize(LARGE)]
    return [*(EmbedInput(text=text) for text in TEXTS), *(EmbedInput(image=png(image)) for image in images)]


def vectors(embedder: "Embedder", prepared: list[Prepared], advice: str = "") -> NDArray[np.float64]:
    """(N, D). Raises: UnsupportedCheckpoint; its sentence ends with the advice."""
    try:
        return np.stack([each.vector for each in embedder.embed(prepared)]).astype(np.float64)
    except EmbedError as failure:
        why = line(failure.__cause__ or failure)
        raise UnsupportedCheckpoint(f"{embedder.checkpoint.name} fails on its first inputs: {why}{advice}") from failure


def least_cosine(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Of (N, D) each, row by row. NaN where a row has no direction."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / norms).min())
