"""What is asked, as one vector: words, a picture, a colour, a row that is there, less what it is not.

And what a cosine means: its percentile among random pairs.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3_vl_embed.client import Client, by_kind
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.files.vectors import differences
from qwen3_vl_embed.pictures import encoded
from qwen3_vl_embed.search.index import Hit, Index, Kind, Matrix, Vector, unit

NOT = 0.5  # of the length of the other words' direction is taken away
SWATCH = (244, 244)  # width, height of a picked colour's picture, in pixels
PAIRS = 500  # queries, and as many hits, whose cosines a percentile is of
SUBJECTS = (
    "a dog", "a cat", "two people", "an old car", "a red flower", "a cup of coffee", "a mountain", "a city street",
    "a bird", "a wooden table", "a child", "a page of text", "a blue square", "a plate of food", "a ship", "a horse",
)  # fmt: skip
PLACES = (
    "in the snow", "at night", "on a beach", "in a kitchen", "by a window", "in the rain", "seen from above",
    "close up", "in black and white", "on a white background", "in a forest", "in the fog", "at sunset", "under water",
    "in a museum", "drawn by hand",
)  # fmt: skip


@dataclass(frozen=True)
class Query:
    """What is looked for; at least one of the first three.

    Attributes:
        text: words.
        image: an image file's bytes.
        like: a row of the index.
        without: words that it is not about.
        words: the share of the words where there is a picture too, from 0 to 1.
        centred: compare what differs: each kind's mean is taken away, from the query and from the rows.
        kind: "text" or "image": only these rows.
    """

    text: str = ""
    image: bytes | None = None
    like: int | None = None
    without: str = ""
    words: float = 0.5
    centred: bool = False
    kind: Kind | None = None


@dataclass(frozen=True)
class Found:
    """The hits, and the percentile of each: the share, in percent, of random pairs with a smaller cosine.

    A pair is of a query of this form and a row of the hit's kind. None where there are too few of these.
    """

    hits: list[Hit]
    percentiles: list[float | None]


class Searcher:
    """An index, and the server that made its vectors, which is asked for the queries'. Threads may share it."""

    def __init__(self, index: Index, client: Client) -> None:
        self.index, self._client = index, client
        self._same = False
        self._lock = Lock()
        self._samples: dict[Kind, Matrix] = {}
        self._words = lru_cache(maxsize=256)(lambda words: self._embedded("text", [words])[0])
        self._picture = lru_cache(maxsize=4)(lambda file: self._embedded("image", [file])[0])  # each of 64 MB at most
        self._pairs = lru_cache(maxsize=64)(self._random_pairs)

    def search(self, query: Query, count: int, exact: bool = False) -> Found:
        """The nearest rows.

        Raises:
            AdapterError: there is no server, it has another model, or (ItemError) the words or the picture are none.
            ValueError: nothing is asked for.
        """
        parts: list[tuple[Kind, Vector]] = []
        if query.text:
            parts.append(("text", self._words(query.text)))
        if query.image is not None:
            parts.append(("image", self._picture(query.image)))
        if query.like is not None:
            kind: Kind = "image" if self.index.kinds[query.like] == "image" else "text"
            parts.append((kind, np.array(self.index.vectors[query.like])))
        if not parts:
            raise ValueError("Type words, pick a colour or drop a picture.")
        without = self._words(query.without) if query.without else None
        mixed = self._mixed([(kind, vector[None]) for kind, vector in parts], without, query.words, query.centred)
        hits = self.index.nearest(mixed[0], count, query.centred, query.kind, exact)
        if query.like is not None:
            hits = [hit for hit in hits if hit.row != query.like]
        kinds = tuple(kind for kind, _ in parts)
        percentiles = []
        for hit in hits:
            pairs = self._pairs(kinds, bool(query.without), query.words, query.centred, str(self.index.kinds[hit.row]))
            percentiles.append(None if pairs is None else 100 * float(np.searchsorted(pairs, hit.cosine)) / len(pairs))
        return Found(hits, percentiles)

    def _embedded(self, kind: Kind, contents: list[Any]) -> Matrix:
        """Of length 1, by the recipe of the index."""
        with self._lock:
            made = self.index.model
            if not self._same and (now := self._client.model())["id"] != made.get("id"):
                raise AdapterError(
                    f"{self._client.url} has another model than made the index ({made.get('checkpoint')}), which "
                    f"differs in {differences(made, now)}: serve that one, or embed anew."
                )
            self._same = True
        embed: Any = self._client.embed_text if kind == "text" else self._client.embed_image
        return unit(embed(contents, **by_kind(self.index.options)[kind]))

    def _mixed(self, parts: list[tuple[Kind, Matrix]], without: Any, words: float, centred: bool) -> Matrix:
        """One query for each row of the parts, all of length 1."""
        shares = [words, *[1 - words] * (len(parts) - 1)] if len(parts) > 1 and parts[0][0] == "text" else [1.0] * 3
        told = [
            share * (self._centred(kind, vectors) if centred else vectors)
            for share, (kind, vectors) in zip(shares, parts, strict=False)
        ]
        query = unit(np.sum(told, axis=0))
        if without is not None:
            other = np.atleast_2d(without)
            query = unit(query - NOT * (self._centred("text", other) if centred else other))
        return query

    def _centred(self, kind: Kind, vectors: Matrix) -> Matrix:
        mean = self.index.means.get(kind)
        return unit(vectors - (self._sample(kind).mean(axis=0) if mean is None else mean))

    def _random_pairs(
        self, kinds: tuple[Kind, ...], without: bool, words: float, centred: bool, hit: Kind
    ) -> NDArray[np.float32] | None:
        """Sorted cosines of random queries of this form with random rows of the hit's kind."""
        rows = self.index.sample(hit)
        if rows is None:
            return None
        half = len(rows) // 2
        samples = [(kind, self._sample(kind)[half:] if kind == hit else self._sample(kind)) for kind in kinds]
        count = min(PAIRS, *(len(vectors) for _, vectors in samples))
        other = np.roll(self._sample("text"), 1, axis=0)[:count] if without else None
        count = count if other is None else min(count, len(other))
        mixed = self._mixed([(kind, vectors[:count]) for kind, vectors in samples], other, words, centred)
        against = self._centred(hit, rows[:half]) if centred else rows[:half]
        return np.sort((mixed @ against[:PAIRS].T).ravel())

    def _sample(self, kind: Kind) -> Matrix:
        """Rows of the index, or, where it has too few of the kind, of texts or pictures of no special subject."""
        if kind not in self._samples:
            own = self.index.sample(kind)
            if own is None and kind == "text":
                own = self._embedded(kind, [f"{subject} {place}" for subject, place in product(SUBJECTS, PLACES)])
            elif own is None:
                own = self._embedded(kind, [_blot(seed) for seed in range(64)])
            self._samples[kind] = own
        return self._samples[kind]


def swatch(colour: str) -> bytes:
    """A PNG of one colour, written like #1f77b4. Raises ValueError."""
    if len(colour) != 7 or not colour.startswith("#"):
        raise ValueError(f"{colour[:20]} is no colour: write it like #1f77b4.")
    return encoded(Image.new("RGB", SWATCH, tuple(bytes.fromhex(colour[1:]))))


def _blot(seed: int) -> bytes:
    """A picture of soft blots: a few random pixels, enlarged."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1 + seed % 5, 1 + seed % 7, 3), np.uint8)
    return encoded(Image.fromarray(pixels).resize(SWATCH, Image.Resampling.BICUBIC))
