"""One input as the model will see it: token ids, and an image's patches."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..poolings import POOLINGS, Span
from .images import MERGE, Patches
from .renderer import Tokens

# The prefix cache holds prefixes of these lengths, in tokens. Shorter ones cost less than their bookkeeping: `eol` has
# one token before a text, four before an image. Longer ones would fill the memory: 64 are kept, of 147 kB a token for
# the 4B in bfloat16, 2.4 GB at most.
REUSED_FROM, REUSED_TO = 8, 256
SHAPES = 128  # whose positions are kept: 24 bytes a token, 25 MB if each has 8,192


@dataclass(frozen=True)
class Sequence:
    """The T tokens of one input and, for an image, its patches."""

    tokens: Tokens
    patches: Patches | None = None

    def __len__(self) -> int:
        return len(self.tokens.ids)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids that stand before the content, where the prefix cache takes them; else empty."""
        length = self.tokens.prefix
        return tuple(self.tokens.ids[:length].tolist()) if REUSED_FROM <= length <= REUSED_TO else ()

    @property
    def own(self) -> int:
        """Tokens without the prefix."""
        return len(self) - len(self.prefix)

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 (3, T): time, height and width of M-RoPE. Shared by all sequences of this shape, so not to write to."""
        return _positions(len(self), self.tokens.image, self.patches.grid if self.patches else None)

    def pooled(self, pooling: str) -> tuple[Span, ...]:
        """The tokens that make the vector, half-open ranges."""
        return POOLINGS[pooling].tokens(len(self), self.tokens.content)


@lru_cache(SHAPES)
def _positions(length: int, image: Span | None, grid: tuple[int, int] | None) -> NDArray[np.int64]:
    """The closed form of transformers' `Qwen3VLModel.get_rope_index` for one image or none: text counts up.

    The image keeps its time while its rows and columns count from there. What follows starts after the longer side.
    """
    spatial = np.empty((3, length), np.int64)
    spatial[:] = np.arange(length)
    if image is not None and grid is not None:
        start, stop = image
        rows, columns = (side // MERGE for side in grid)
        time, row, column = spatial[:, start:stop].reshape(3, rows, columns)  # a view
        time[:], row[:], column[:] = start, start + np.arange(rows)[:, None], start + np.arange(columns)
        spatial[:, stop:] += max(rows, columns) - (stop - start)
    spatial.flags.writeable = False
    return spatial
