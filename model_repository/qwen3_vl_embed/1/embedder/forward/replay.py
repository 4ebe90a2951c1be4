"""CUDA graphs and traces for lone inputs, whose pass costs more calls than arithmetic. Not for several threads.

Launching the 4B's kernels one by one takes a CPU tens of milliseconds; computing a colour name takes a GPU two or
three. A small model on a CPU spends half its time in Python. So passes over one short sequence are captured at warm-up,
and replayed from then on. The operations are those of an ordinary pass: the same numbers. The benchmark's swatches are
one shape, its names about ten. A capture takes as long as six passes and more, so no caller's pass is captured.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from ..options import Layer
from .packing import Packed
from .recordings import Pass, States

logger = logging.getLogger(__name__)

MAX_TOKENS = 512  # above, a pass takes longer to compute than to call
CAPACITY = 64  # captured passes; each holds memory


class Captured(Protocol):
    """A captured pass: a CUDA graph or a trace."""

    def replay(self, packed: Packed, rows: torch.Tensor | None) -> States: ...


class Replay:
    """Runs passes, and captures lone ones within `capturing`. What cannot be captured runs as it is, with a warning."""

    def __init__(
        self, run: Pass, capture: Callable[[Pass, Packed, frozenset[Layer], torch.Tensor | None], Captured]
    ) -> None:
        self._run, self.capture = run, capture
        self._capturing = False
        self.captured: dict[Hashable, Captured] = {}
        self.works = True

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within it, each shape that comes is captured."""
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def __call__(self, packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> States:
        shape = shape_of(packed, layers, rows)
        if shape in self.captured:
            return self.captured[shape].replay(packed, rows)
        expected = self._run(packed, layers, rows)
        if shape is not None and self._capturing and self.works and len(self.captured) < CAPACITY:
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
