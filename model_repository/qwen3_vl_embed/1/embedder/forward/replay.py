"""Passes that are run again without the Python around their operations. Not for several threads.

Launching the 4B's kernels one by one takes a CPU tens of milliseconds; computing a colour name takes a GPU two or
three. A small model on a CPU spends half its time in Python. So passes are captured at warm-up, and replayed from then
on. On a GPU these are small batches of any lengths, padded to a bucket's size (`buckets.py`); on a CPU single inputs of
one length. The operations are those of an ordinary pass: the same numbers. A capture takes as long as six passes and
more, so no caller's pass is captured.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch.nn.functional import cosine_similarity

from ..options import Layer
from .packing import Packed
from .recordings import Pass, States

logger = logging.getLogger(__name__)

MAX_TOKENS = 512  # of a single input; above, a pass takes longer to compute than to call
CAPACITY = 64  # captured passes; each holds memory
# The least cosine of a row to an ordinary pass'. A bucket has more rows, for which cuBLAS takes other kernels, and
# roundings of 16 bits add up from layer to layer: 0.9998 seen on an H200, as transformers has to its own float32.
SAME, SAME_IN_HALF = 0.9999, 0.99


class CaptureFailed(BaseException):
    """A CUDA graph could not be captured, and this process is of no use any more.

    torch's allocator goes on believing that a capture is under way (pytorch issue 180395), so later passes fail. No
    `Exception`: nobody may go on after it.
    """


class Captured(Protocol):
    """A captured pass: a CUDA graph or a trace."""

    def replay(self, packed: Packed, rows: torch.Tensor | None) -> States: ...


class Replay:
    """Runs passes, and captures those within `capturing`."""

    def __init__(
        self,
        run: Pass,
        capture: Callable[[Pass, Packed, frozenset[Layer], torch.Tensor | None], Captured],
        shape: Callable[[Packed, frozenset[Layer], torch.Tensor | None], Hashable | None],
        norm: Callable[[torch.Tensor], torch.Tensor],
        fatal: bool = False,
    ) -> None:
        """`shape`: what passes have in common that one captured pass is good for; None for those that it is not.

        `norm`: the model's final one, behind which states are compared. `fatal`: whether a capture that fails is the
        process' end; else passes run as they are from then on, with a warning.
        """
        self._run, self.capture, self._shape, self._norm, self._fatal = run, capture, shape, norm, fatal
        self._capturing = False
        self.captured: dict[Hashable, Captured] = {}
        self.replayed = 0  # passes
        self.works = True

    @property
    def counts(self) -> tuple[int, int]:
        """(captured passes, replayed passes)"""
        return len(self.captured), self.replayed

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within it, each shape that comes is captured."""
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def __call__(self, packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> States:
        """Raises: CaptureFailed."""
        shape = self._shape(packed, layers, rows)
        if shape in self.captured:
            self.replayed += 1
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
        except torch.OutOfMemoryError:
            return
        except RuntimeError as error:
            if self._fatal:
                raise CaptureFailed(f"a forward pass could not be captured: {error}") from error
            logger.warning("forward passes are not captured, small batches will take longer: %.300s", error)
            self.works = False
            return
        if all(agree(*map(self._norm, (again[layer], state))) for layer, state in expected.items()):
            self.captured[shape] = captured
        else:
            logger.warning("a captured pass gave other vectors and is not used: %s will take longer", shape)


def agree(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    """Each row, after the norm: before it one channel that is a hundred times the others would hide all of them."""
    least = SAME if expected.dtype == torch.float32 else SAME_IN_HALF
    return bool((cosine_similarity(ours.float(), expected.float(), dim=-1) >= least).all())


def single(packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> Hashable | None:
    """What two passes over one input must have in common to run the same operations on tensors of the same sizes."""
    if len(packed.bounds.lengths) > 1 or packed.bounds.longest > MAX_TOKENS:
        return None
    grids = packed.images.grids if packed.images else ()
    return packed.bounds.lengths, packed.prefixes, grids, layers, None if rows is None else len(rows)
