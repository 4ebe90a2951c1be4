"""The vectors as figures see them: as they are (`raw`), with each modality's mean removed (`centred`), or else moved.

What is fitted flatters when it is fitted on what is then judged. So it is cross-fitted. The pairs are cut into two
random halves. What is asked of a pair is computed with means from the half that the pair is not in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.pairs import Pairs

SEED = 0
TIE = 1e-7  # cosines of float32 vectors are not known better: what is nearer together than this is a tie
NOTHING_LEFT = 1e-6  # a unit vector in float32 is only known to about this: what centring leaves below it is rounding


@dataclass(frozen=True)
class View:
    """All N vectors under one centring (zero or unit rows), and the pairs it may judge."""

    rows: NDArray[np.int64]  # int (M,): indices of the judged pairs
    text: FloatArray  # float64 (N, D)
    image: FloatArray

    def alone(self) -> "Space":
        """Of the judged pairs only: the others are no candidates either."""
        return Space((View(np.arange(len(self.rows)), self.text[self.rows], self.image[self.rows]),))


@dataclass(frozen=True)
class Space:
    """Every pair is judged in exactly one view. In the matrices (N, N) of cosines a row is a query, in its own view."""

    views: tuple[View, ...]

    @cached_property
    def text_to_image(self) -> FloatArray:
        return self._cosines("text", "image")

    @cached_property
    def image_to_text(self) -> FloatArray:
        return self._cosines("image", "text")

    @cached_property
    def text_to_text(self) -> FloatArray:
        return self._cosines("text", "text")

    @cached_property
    def image_to_image(self) -> FloatArray:
        return self._cosines("image", "image")

    @property
    def pairs(self) -> int:
        """N."""
        return len(self.views[0].text)

    def rows(self, modality: str) -> FloatArray:
        """Each pair's vector in its own view: (N, D). `modality` is "text" or "image"."""
        return self._assembled([getattr(view, modality) for view in self.views])

    def _cosines(self, queries: str, candidates: str) -> FloatArray:
        return self._assembled([getattr(view, queries) @ getattr(view, candidates).T for view in self.views])

    def _assembled(self, of_view: list[FloatArray]) -> FloatArray:
        assembled = np.empty_like(of_view[0])
        for view, values in zip(self.views, of_view, strict=True):
            assembled[view.rows] = values[view.rows]
        return assembled


def raw(pairs: Pairs) -> Space:
    """One view: the vectors, scaled to length 1."""
    return Space((View(np.arange(len(pairs)), unit(pairs.text), unit(pairs.image)),))


def centred(pairs: Pairs) -> Space:
    """Two views, one for each half, with the other half's mean taken off each modality."""
    return Space(cross_fitted(pairs, without_means))


Move = Callable[[FloatArray], FloatArray]  # unit vectors (N, D) of a modality -> (N, D)
Fit = Callable[[FloatArray, FloatArray], tuple[Move, Move]]  # from texts and images: what moves either


def without_means(text: FloatArray, image: FloatArray) -> tuple[Move, Move]:
    return (lambda rows: rows - text.mean(axis=0)), (lambda rows: rows - image.mean(axis=0))


def cross_fitted(pairs: Pairs, fit: Fit) -> tuple[View, View]:
    """A view for each half, moved as the other half says."""
    text, image = unit(pairs.text), unit(pairs.image)
    one, two = np.array_split(np.random.default_rng(SEED).permutation(len(pairs)), 2)

    def view(judged: NDArray[np.int64], fitted: NDArray[np.int64]) -> View:
        move_text, move_image = fit(text[fitted], image[fitted])
        return View(np.sort(judged), unit(move_text(text), NOTHING_LEFT), unit(move_image(image), NOTHING_LEFT))

    return view(one, two), view(two, one)


def unit(vectors: FloatArray, least: float = 0.0) -> FloatArray:
    """Rows scaled to length 1, float64 (N, D); a row that is not longer than `least` becomes zero, so that it ties."""
    rows = np.asarray(vectors, dtype=float)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > least)
