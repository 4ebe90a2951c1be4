"""How many items, or pixels, are admitted, of all requests of this process: no more than can be answered in time.

Who comes when it is full is told so at once, instead of waiting for a deadline that will pass. Items are served in the
order in which they came. So each that leaves tells the pace: the items served while it was here, over that time.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from client.errors import TOO_MANY, Overloaded

MARGIN = 0.8  # of the time that there is: the pace was that of items before


class Admission:
    """At most `most` items, and no more than are served in time; `seconds` tells the longest that anybody may wait.

    While fewer than `busy` items are here, the model could do more at once: that says nothing against its pace.
    `unit` is what a refusal calls them.
    """

    def __init__(self, most: int, seconds: Callable[[], float], busy: int, unit: str = "items") -> None:
        self._most, self._seconds, self._busy, self._unit = most, seconds, busy, unit
        self._pace = math.inf  # items a second
        self._served = 0
        self.pending = 0

    @property
    def room(self) -> int:
        """How many items may be here, of those who wait as long as anybody."""
        return self._within(self._seconds())

    @property
    def full(self) -> bool:
        """Not one item more would be admitted."""
        return self.pending >= self.room

    @contextmanager
    def admitted(
        self, count: int, seconds: float, most: float = math.inf, teaches: bool = True, after: int = 1
    ) -> Iterator[None]:
        """So many more, until the block ends; they are worth waiting for so many seconds. One request always fits.

        `most`: what can be served within these seconds at best, whatever pace was seen. `teaches`: how long they take
        says something of the pace. `after`: seconds until it is worth asking again.

        Raises:
            Overloaded: there is no room for them.
        """
        if self.pending and self.pending + count > min(most, self._within(seconds)):
            raise Overloaded(TOO_MANY.format(self._unit), after=after)
        self.pending += count
        ahead, served, since = self.pending, self._served, time.monotonic()
        try:
            yield
            self._served += count
        finally:
            self.pending -= count
            if teaches:
                self._learn(self._served - served, ahead, time.monotonic() - since)

    def _within(self, seconds: float) -> int:
        return max(1, int(min(self._most, MARGIN * seconds * self._pace)))

    def _learn(self, served: int, ahead: int, took: float) -> None:
        """`served` items, its own among them, in the time `took` of a request that found `ahead` with its own."""
        pace = served / max(took, 1e-6)
        was_busy = served >= min(self._busy, self.room)
        waited_for_little = served < ahead and took >= self._seconds() / 2
        if was_busy or waited_for_little or (served >= ahead and pace > self._pace):
            self._pace = pace
