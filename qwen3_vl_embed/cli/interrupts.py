"""Stop between two steps, never inside one: Ctrl-C, and what `kill` and a closed terminal send."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Within the block the first of these signals is a KeyboardInterrupt, at once or at the end of what is held.

    Further ones are ignored: what is kept is being written. What was ignored before (`nohup`) stays so.
    """

    def __init__(self) -> None:
        self._asked = self._holding = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        caught = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        self._before = {each: signal.signal(each, self._stop) for each in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A step that is done whole, or not at all."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From here on nothing is left to stop."""
        self._holding = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not (self._asked or self._holding):
            self._asked = True
            raise KeyboardInterrupt
        self._asked = True
