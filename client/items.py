"""What goes into the model and what comes out of it, one item at a time.

These two are what the modules of the adapter hand to each other.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALL_PIXELS = 512 * 512  # up to here an image costs about what a text costs: some milliseconds (the model's bound too)
LONG_TEXT, PIXELS_A_BYTE = 2**16, 32  # bytes from which a text is slow to be cut into tokens, and what each then costs


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """One thing to embed: UTF-8 text, an encoded image file's bytes, or both for one vector."""

    text: bytes = b""
    image: bytes = b""
    options: bytes = b""  # canonical JSON; empty when the caller set none
    param: str = "input"  # what an error calls it
    pixels: int = 0  # what its image costs, decoded or made by enlarging, and its text, if that is long
    digest: bytes = field(init=False)  # 32 bytes, equal for two items exactly when one model gives them the same vector

    def __post_init__(self) -> None:
        digest = sha256()
        for part in (self.text, self.image, self.options):
            digest.update(len(part).to_bytes(8, "little"))  # where one ends is part of it
            digest.update(part)
        object.__setattr__(self, "digest", digest.digest())

    @property
    def large(self) -> int:
        """Its pixels, if they are so many that others should not wait for it; else 0. A long text has some too."""
        return self.pixels if self.pixels > SMALL_PIXELS else 0


WARNINGS = {1: "dimensions: this checkpoint was not trained for vectors that are cut"}  # by the model's bits


class Recipe(NamedTuple):
    """How the model made a vector, by the id that it gives, in hex; and what is doubtful about that, in sentences."""

    id: str
    warnings: tuple[str, ...] = ()


class Embedding(NamedTuple):
    """One vector, the model and the recipe that made it, and what it cost."""

    vector: NDArray[np.float32]  # (D,) float32, read-only
    model: dict[str, Any]  # as the model describes itself; `model["id"]`, in hex, changes whenever vectors may
    recipe: Recipe
    computed: bool = False  # for this request; otherwise it was there or under way already, and cost nothing
    tokens: int = 0  # of the whole sequence, prompt included
    queue_ms: float = 0.0  # at Triton, less the next two
    preprocess_ms: float = 0.0
    forward_ms: float = 0.0
    batch_items: int = 0  # in its forward pass
    json: dict[str, Any] | None = None  # in place of a vector: the sequence itself, for an item that asked for it
