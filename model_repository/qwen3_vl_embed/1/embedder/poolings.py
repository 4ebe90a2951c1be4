"""The poolings: which states of a sequence make its vector. A new one is an entry here, then `make options`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]  # half-open range of tokens


@dataclass(frozen=True)
class Pooling:
    """A weighted mean of the last hidden states of some tokens.

    `tokens`: from the sequence's length and the spans of the caller's own tokens to the spans that are pooled.
    `weights`: float32 (n,) for n pooled tokens in their order; only their proportions count.
    """

    description: str
    tokens: Callable[[int, tuple[Span, ...]], tuple[Span, ...]]
    append: str | None = None  # a special token that ends the sequence
    weights: Callable[[int], NDArray[np.float32]] = lambda n: np.ones(n, dtype=np.float32)


def last(length: int, content: tuple[Span, ...]) -> tuple[Span, ...]:
    return ((length - 1, length),)


def own(length: int, content: tuple[Span, ...]) -> tuple[Span, ...]:
    return content


POOLINGS = {
    "last": Pooling("the last token", last),
    "mean": Pooling("the mean of the content's own tokens, none of the prompt's", own),
    # Qwen3-VL-Embedding's technical report appends this token and pools its state.
    "eos": Pooling("an appended `<|endoftext|>`", last, append="<|endoftext|>"),
}

if TYPE_CHECKING:
    PoolingName = str
else:
    PoolingName = Literal[tuple(POOLINGS)]  # pydantic refuses others, and names these
