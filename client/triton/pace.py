"""What the model can do at best: what it showed at its warm-up, or better if it has been faster since.

A text takes one model a millisecond and another half a minute. What follows for lists, and for a sign of life, is
decided by what the model itself measured before it was ready. Nothing here is a guess about it.
"""

from typing import Any

from client.items import Embedding, EmbedInput

CHEAPER = (b'"layer"', b'"max_pixels"')  # options with which an item may take less than those of the warm-up
Shown = dict[str, float]  # `pass`, `text`, `image`: seconds of a pass, and of each item in it; `batch`: items in a pass


def shown(model: dict[str, Any] | None) -> Shown | None:
    """What a model says of its warm-up, where one is known."""
    return model.get("warm_up") if model else None


def longest(warm_up: Shown) -> float:
    """Seconds of the longest pass that short texts and small images make."""
    return warm_up["pass"] + warm_up["batch"] * max(warm_up["text"], warm_up["image"])


class Pace:
    """Of one model at a time."""

    def __init__(self) -> None:
        self._warm_up: Shown | None = None
        self._share = 1.0  # of what the warm-up took: it may have met with neighbours

    def learn(self, item: EmbedInput, embedding: Embedding) -> None:
        """How long an item took that was alone in its pass, and asked for nothing special."""
        if (warm_up := shown(embedding.model)) != self._warm_up:
            self._warm_up, self._share = warm_up, 1.0
        if warm_up and embedding.batch_items == 1 and not item.options:
            expected = warm_up["pass"] + warm_up["image" if item.image else "text"]
            self._share = min(self._share, embedding.forward_ms / 1e3 / max(expected, 1e-6))

    def most(self, model: dict[str, Any] | None, images: bool, seconds: float, limit: int) -> int:
        """How many small images, or short texts, are embedded within so many seconds: 1 at least, `limit` at most."""
        warm_up = shown(model)
        if warm_up is None:
            return limit
        share = self._share if warm_up == self._warm_up else 1.0
        each, whole, batch = warm_up["image" if images else "text"], warm_up["pass"], int(warm_up["batch"])

        def fits(items: int) -> bool:
            passes = 1 + -(-(items - 1) // batch)  # the first item goes at once, and alone
            return share * (passes * whole + items * each) <= seconds

        low, high = 1, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low
