"""What goes into the model and what comes out of it, one item at a time.

Knows nothing of HTTP or of Triton: these are the two things that the modules of the adapter hand to each other.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """One thing to embed: UTF-8 text, or an encoded image file's bytes."""

    kind: Literal["text", "image"]
    content: bytes
    options: bytes = b""  # canonical JSON; empty when the caller set none
    param: str = "input"  # what an error calls it
    digest: bytes = field(init=False)  # of the content, so that the cache keeps no contents

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha256(self.content).digest())

    @property
    def identity(self) -> tuple[str, bytes, bytes]:
        """Equal for two items exactly when one model gives them the same vector."""
        return self.kind, self.digest, self.options


@dataclass(frozen=True, slots=True)
class Embedding:
    """One vector, the model that made it, and what it cost."""

    vector: np.ndarray  # (D,) float32, read-only
    model: dict[str, Any]  # as the model describes itself; `model["id"]` changes whenever vectors may change
    computed: bool = False  # for this request; otherwise it was there or under way already, and cost nothing
    tokens: int = 0
    queue_ms: float = 0.0  # at Triton, less the next two
    preprocess_ms: float = 0.0
    forward_ms: float = 0.0
