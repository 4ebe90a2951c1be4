"""How many items are taken in, of all requests of this process: no more than can be answered in time.

Who comes when it is full is told so at once, instead of waiting for a deadline that will pass. The items are served in
the order in which they came, so one that had `n` before it and took `t` seconds shows the pace: `n / t` items a second.
Knows numbers and time; what an item is, is the dispatcher's affair.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from client.errors import Overloaded

MARGIN = 0.8  # of the deadline: the pace was that of items before, which may have been smaller


class Admission:
    """At most `most` items, or what is served in `seconds` where that is less.

    While fewer than `busy` items are there, the model could do more at once: that says nothing of its pace.
    """

    def __init__(self, most: int, seconds: float, busy: int) -> None:
        self._most, self._seconds, self._busy = most, seconds, busy
        self._room = most
        self.pending = 0

    @property
    def full(self) -> bool:
        """Not one item more would be taken in."""
        return self.pending >= self._room

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """So many more, until the block ends.

        Raises:
            Overloaded: there is no room for them.
        """
        if self.full or self.pending + count > self._most:
            raise Overloaded
        self.pending += count
        ahead, since = self.pending, time.monotonic()
        try:
            yield
            self._learn(ahead, time.monotonic() - since)
        finally:
            self.pending -= count

    def _learn(self, items: int, took: float) -> None:
        if items >= self._busy:
            in_time = int(MARGIN * self._seconds * items / max(took, 1e-6))
            self._room = min(self._most, max(in_time, 2 * self._busy))  # never so few that nothing could be learnt
