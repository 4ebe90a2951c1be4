"""CUDA graphs and traces for lone inputs, whose pass costs more calls than arithmetic. Not for several threads.

Launching the 4B's kernels one by one takes a CPU tens of milliseconds; computing a colour name takes a GPU two or
three. A small model on a CPU spends half its time in Python. So a pass over one short sequence is captured when its
shape has come a few times, and replayed from then on. The operations are those of an ordinary pass: the same numbers.
The benchmark's swatches are one shape, its names about ten.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

from ..prepare.recipes import Layer
from .packing import Packed
from .recordings import Pass, States

logger = logging.getLogger(__name__)

MAX_TOKENS = 512  # above, a pass takes longer to compute than to call
OFTEN = 3  # times a shape comes before it is captured
CAPACITY = 64  # captured passes; none is given up for another, or many shapes would cost a capture each time
WATCHED = 4096  # shapes that are counted at once


class Captured(Protocol):
    """A captured pass: a CUDA graph or a trace."""

    def replay(self, packed: Packed, rows: torch.Tensor | None) -> States: ...


class Replay:
    """Runs passes, and captures those that come often. What cannot be captured runs as it is, with a warning."""

    def __init__(
        self, run: Pass, capture: Callable[[Pass, Packed, frozenset[Layer], torch.Tensor | None], Captured]
    ) -> None:
        self._run, self.capture = run, capture
        self._seen: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Captured] = {}
        self.works = True

    def __call__(self, packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> States:
        shape = shape_of(packed, layers, rows)
        if shape in self.captured:
            return self.captured[shape].replay(packed, rows)
        expected = self._run(packed, layers, rows)
        if shape is not None and self.works and len(self.captured) < CAPACITY:
            if len(self._seen) >= WATCHED:
                self._seen.clear()
            self._seen[shape] += 1
            if self._seen[shape] >= OFTEN:
                self._capture(shape, expected, packed, layers, rows)
        return expected

    def _capture(
        self, shape: Hashable, expected: States, packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None
    ) -> None:
        """Capture, and trust it only when it gives what the pass gave."""
        try:
            captured = self.capture(self._run, packed, layers, rows)
            again = [captured.replay(packed, rows) for _ in range(3)][-1]  # TorchScript optimises its first two
            self.works = all(agree(again[layer], state) for layer, state in expected.items())
        except torch.OutOfMemoryError:
            del self._seen[shape]  # there may be memory when it has come so often again
            return
        except RuntimeError as error:
            logger.warning("a forward pass could not be captured: %.300s", error)
            self.works = False
        if self.works:
            self.captured[shape] = captured
        else:
            logger.warning("forward passes are not captured any more: lone inputs will take longer")


def agree(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within a hundredth: bfloat16 stays far below, a wrong capture far above."""
    return bool((ours - expected).norm() <= 0.01 * expected.norm())


def shape_of(packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> Hashable | None:
    """What two passes must have in common to run the same operations on tensors of the same sizes; None for others."""
    if len(packed.bounds.lengths) > 1 or packed.bounds.longest > MAX_TOKENS:
        return None
    grids = packed.images.grids if packed.images else ()
    return packed.bounds.lengths, packed.prefixes, grids, layers, None if rows is None else len(rows)
