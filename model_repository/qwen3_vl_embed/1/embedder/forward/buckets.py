"""Small batches of any lengths in few sizes, so that one CUDA graph is good for many.

A graph runs the same kernels over the same memory. What differs between two batches are numbers in it: ids, positions,
and where each sequence ends. So a batch is put into the tensors of the smallest bucket that holds it. What is left over
is one more sequence, which nobody reads, and after it sequences of no tokens. Rows and images that are left over are
computed and thrown away. A sequence attends to itself only, so nothing of it reaches the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..options import Layer
from ..prepare.images import MERGE
from .attention import Bounds, Prefixed
from .packing import Packed, PackedImages
from .recordings import Pass, States

# Beyond these sizes a GPU computes the 4B's pass for longer than a CPU takes to call its kernels (some 20 ms: 1,000
# tokens of texts or 8 swatches on an H100), and what a bucket has too much would be computed for nothing.
TEXTS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tokens
IMAGES = (1, 2, 3, 4, 6, 8)
FEWEST = 8  # tokens of a text, about: a bucket has places for so many sequences that each has so many
BESIDE = 24  # tokens of a prompt beside an image's own; the default one has 18
LARGEST = 256  # tokens of an image


@dataclass(frozen=True)
class Bucket:
    """What batches have in common that share a graph."""

    tokens: int
    sequences: int
    images: int
    grid: tuple[int, int] | None  # of each image, in patches
    layers: frozenset[Layer]
    prefix: tuple[int, ...]  # what stands before the sequences, or some of them
    rows: int

    @property
    def keys(self) -> int:
        """Tokens and prefixes."""
        return self.tokens + self.sequences * len(self.prefix)


def bucket_of(packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> Bucket | None:
    """The smallest one that holds this pass with a token to spare; None if none does."""
    tokens, count = sum(packed.bounds.lengths) + 1, len(packed.bounds.lengths)
    prefixes, grids = set(packed.prefixes) - {()}, packed.images.grids if packed.images else ()
    if rows is None or len(prefixes) > 1 or len(set(grids)) > 1:
        return None
    if grids:
        each = grids[0][0] * grids[0][1] // MERGE**2
        sizes = [(n * (each + BESIDE), 2 * n, n) for n in IMAGES if n >= len(grids)] if each <= LARGEST else []
    else:
        sizes = [(size, size // FEWEST, 0) for size in TEXTS]
    for most, sequences, images in sizes:
        if tokens <= most and count <= sequences:
            kept = sequences if len(rows) == count else most
            return Bucket(most, sequences, images, (*grids, None)[0], layers, next(iter(prefixes), ()), kept)
    return None


class Padded:
    """A bucket's tensors, always the same ones: `packed` and `rows` are what a graph is captured with."""

    def __init__(self, bucket: Bucket, packed: Packed, rows: torch.Tensor) -> None:
        """`packed`, `rows`: any pass of that bucket."""
        device, self._bucket = packed.input_ids.device, bucket

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        def ends() -> torch.Tensor:
            return zeros(bucket.sequences + 2, dtype=torch.int32)

        images = prefixed = None
        if packed.images is not None and bucket.grid is not None:
            patches = bucket.grid[0] * bucket.grid[1]
            images = PackedImages(
                pixels=zeros(bucket.images * patches, packed.images.pixels.shape[1], dtype=torch.uint8),
                grids=(bucket.grid,) * bucket.images,
                bounds=Bounds.of([patches] * bucket.images, device),
                tokens=zeros(bucket.images * patches // MERGE**2),
            )
        if bucket.prefix:
            prefixed = Prefixed(Bounds((bucket.keys,), ends()), zeros(bucket.keys))
        self.rows = zeros(bucket.rows)
        self.packed = Packed(
            input_ids=zeros(1, bucket.tokens),
            position_ids=zeros(3, 1, bucket.tokens),
            bounds=Bounds((bucket.tokens,), ends()),
            images=images,
            starts=(0,),
            prefixes=(bucket.prefix,),
            prefixed=prefixed,
        )
        self.fill(packed, rows)

    def fill(self, packed: Packed, rows: torch.Tensor) -> None:
        """Put a pass in. Nothing waits for the device. What is left over keeps numbers of an earlier pass."""
        mine, last = self.packed, self._bucket.tokens - 1
        _put(mine.input_ids, packed.input_ids)
        _put(mine.position_ids, packed.position_ids)
        _put(mine.bounds.offsets, packed.bounds.offsets, last + 1)
        _put(self.rows, rows)
        if mine.images is not None and packed.images is not None:
            _put(mine.images.pixels.view(-1), packed.images.pixels.view(-1))
            _put(mine.images.tokens, packed.images.tokens, last)  # images that are left over: the token to spare
        if mine.prefixed is not None and packed.prefixed is not None:
            _put(mine.prefixed.index, packed.prefixed.index)
            _put(mine.prefixed.bounds.offsets, packed.prefixed.bounds.offsets, self._bucket.keys)


def _put(mine: torch.Tensor, given: torch.Tensor, rest: int | None = None) -> None:
    """Into the beginning of the last dimension; `rest` for what is left over, where it matters."""
    length = given.shape[-1]
    mine[..., :length].copy_(given, non_blocking=True)
    if rest is not None and length < mine.shape[-1]:
        mine[..., length:].fill_(rest)


class Recorded:
    """A pass over a bucket's tensors, recorded; `record` says how: a CUDA graph, in tests a stand-in for one."""

    def __init__(
        self,
        run: Pass,
        packed: Packed,
        layers: frozenset[Layer],
        rows: torch.Tensor | None,
        record: Callable[[Callable[[], States], Packed], Callable[[], States]],
    ) -> None:
        bucket = bucket_of(packed, layers, rows)
        assert bucket is not None
        assert rows is not None
        self._padded = padded = Padded(bucket, packed, rows)
        self._play = record(lambda: run(padded.packed, layers, padded.rows), padded.packed)

    def replay(self, packed: Packed, rows: torch.Tensor | None) -> States:
        """The states are overwritten by the next `replay`."""
        assert rows is not None
        self._padded.fill(packed, rows)
        return {layer: states[: len(rows)] for layer, states in self._play().items()}
