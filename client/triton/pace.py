"""What the model can do at best: what it showed at its warm-up, or better if it has been faster since.

A text takes one model a millisecond and another half a minute. What follows for lists, for deadlines and for a sign of
life is decided by what the model itself measured before it was ready.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from client.items import Embedding, EmbedInput
from client.settings import LONGEST_SECONDS

DEADLINE_SECONDS = 60.0  # of a request where none is set, and the time that lists are cut to
SLACK = 4  # times what an item took at the warm-up: so much longer it takes among neighbours (log, 2026-11-26)
WARM_UP_PIXELS, WARM_UP_BYTES = 2**16, 80  # of an image and a text that took what the warm-up says: 244², and 20 tokens
RARE = 100  # times what an item takes until one that cannot be in time is tried all the same
# Options with which an item may take less than those of the warm-up.
CHEAPER = (b'"layer"', b'"max_pixels"', b'"render"')
Shown = dict[str, float]  # `pass`, `text`, `image`: seconds of a pass, and of each item in it; `batch`: items in a pass


def shown(model: dict[str, Any] | None) -> Shown | None:
    """What a model says of its warm-up, where one is known."""
    return model.get("warm_up") if model else None


def longest(warm_up: Shown) -> float:
    """Seconds of the longest pass that short texts and small images make."""
    return warm_up["pass"] + warm_up["batch"] * max(warm_up["text"], warm_up["image"])


def lone(warm_up: Shown, images: bool) -> float:
    """Seconds of a small image, or a short text, that is alone in its pass."""
    return warm_up["pass"] + warm_up["image" if images else "text"]


def deadline(warm_up: Shown | None, items: Iterable[EmbedInput] = ()) -> float:
    """Seconds that a request may take where nothing is set: so many that each of its items could be answered alone.

    A longer text or a larger image takes more than the warm-up's, as a rule in proportion. Of an image a model sees 2
    megapixels at most. An option that makes it see less only makes this too patient.
    """
    if warm_up is None:
        return DEADLINE_SECONDS
    longest = max(lone(warm_up, images) for images in (False, True))
    for item in items:
        size = len(item.text) / WARM_UP_BYTES + min(item.pixels, 2**21) / WARM_UP_PIXELS
        longest = max(longest, warm_up["pass"] + size * max(warm_up["text"], warm_up["image"]))
    return min(LONGEST_SECONDS, max(DEADLINE_SECONDS, SLACK * longest))


class Pace:
    """Of one model at a time."""

    def __init__(self) -> None:
        self._warm_up: Shown | None = None
        self._share = 1.0  # of what the warm-up took: it may have met with neighbours
        self._tried_at = math.inf

    def learn(self, item: EmbedInput, embedding: Embedding) -> None:
        """How long an item took that was alone in its pass, and asked for nothing special."""
        if (warm_up := shown(embedding.model)) != self._warm_up:
            self._warm_up, self._share = warm_up, 1.0
        if warm_up and embedding.batch_items == 1 and not item.options:
            expected = lone(warm_up, bool(item.image))
            self._share = min(self._share, embedding.forward_ms / 1e3 / max(expected, 1e-6))

    def lone(self, model: dict[str, Any] | None, images: bool) -> float:
        """Seconds that a small image, or a short text, takes alone; 0 where nothing is known of the model."""
        warm_up = shown(model)
        return self._share_of(warm_up) * lone(warm_up, images) if warm_up else 0.0

    def hopeless(self, model: dict[str, Any] | None, images: bool, seconds: float) -> bool:
        """Whether not even a lone one is answered within so many seconds.

        Seldom it says no all the same: only one that is tried can show that the model is faster than at its warm-up.
        """
        takes, now = self.lone(model, images), time.monotonic()
        if takes <= seconds:
            self._tried_at = math.inf
            return False
        self._tried_at = min(self._tried_at, now)
        if now - self._tried_at <= RARE * takes:
            return True
        self._tried_at = now
        return False

    def most(self, model: dict[str, Any] | None, images: bool, seconds: float, limit: int) -> int:
        """How many small images, or short texts, are embedded within so many seconds: 1 at least, `limit` at most."""
        warm_up = shown(model)
        if warm_up is None:
            return limit
        share = self._share_of(warm_up)
        each, whole, batch = warm_up["image" if images else "text"], warm_up["pass"], int(warm_up["batch"])

        def takes(items: int) -> float:
            passes = 1 + -(-(items - 1) // batch)  # the first item goes at once, and alone
            return share * (passes * whole + items * each)

        return max(1, bisect_right(range(1, limit + 1), seconds, key=takes))

    def _share_of(self, warm_up: Shown) -> float:
        return self._share if warm_up == self._warm_up else 1.0
