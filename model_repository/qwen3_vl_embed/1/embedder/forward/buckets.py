"""Small batches of any lengths in few sizes, so that one CUDA graph is good for many.

A graph runs the same kernels over the same memory. What differs between two batches are numbers in it: ids, positions,
and where each sequence ends. So a batch is put into the tensors of the smallest bucket that holds it. Sequences that
are left over have no tokens, and tokens that are left over no sequence: attention leaves their rows as memory was.
Those, and images that are left over, are computed and thrown away. All but attention works row by row, so nothing of
them reaches the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..options import Layer
from ..prepare.images import MERGE
from .attention import Bounds, Prefixed
from .packing import Packed, PackedImages
from .recordings import Pass, States

# More gains nothing: from 1,000 rows on an H200's products are at 0.9 of their best. A pass of this size takes that GPU
# 60 to 90 ms. Called kernel by kernel, it takes a CPU 20 to 60 ms, in which the threads that prepare inputs wait for
# Python's lock, and the GPU waits for them (docs/log.md, 2026-11-26).
TEXTS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096)  # tokens
IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64)
WORTH = 2048  # tokens of a pass from which on it gains nothing by company
LARGEST = 320  # tokens of an image and its prompt
STEP = 4  # in them
# Tokens of the longest text. For each block of 128 that a sequence may have, FlashAttention starts 32 programs. Those
# of sequences that are shorter take time too, and of those that are not there: a bucket has a place for so many.
SHORT, LONG = 128, 2048
FEWEST = {SHORT: 8, LONG: 64}  # tokens of a text, about


@dataclass(frozen=True)
class Kind:
    """What inputs have in common that go through the same graphs."""

    layers: frozenset[Layer]
    grid: tuple[int, int] | None  # of the image, in patches
    prefix: tuple[int, ...]  # what stands before the sequences, or some of them
    longest: int  # tokens of a sequence: SHORT or LONG, and with images to the next step

    @classmethod
    def of(cls, layers: frozenset[Layer], grid: tuple[int, int] | None, prefix: tuple[int, ...], tokens: int) -> "Kind":
        """`tokens`: of the longest sequence, without its prefix."""
        if grid:
            return cls(layers, grid, prefix, -(-tokens // STEP) * STEP)
        return cls(layers, grid, prefix, SHORT if tokens <= SHORT else LONG)


@dataclass(frozen=True)
class Bucket:
    """What batches have in common that share a graph."""

    kind: Kind
    tokens: int
    sequences: int
    images: int
    rows: int

    @property
    def keys(self) -> int:
        """Tokens and prefixes."""
        return self.tokens + self.sequences * len(self.kind.prefix)

    @property
    def room(self) -> tuple[int, int]:
        """(tokens, inputs) that it holds at most."""
        return self.tokens, self.images or self.sequences


def bucket_of(packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> Bucket | None:
    """The smallest one that holds this pass; None if none does."""
    tokens, count, longest = sum(packed.bounds.lengths), len(packed.bounds.lengths), packed.bounds.longest
    prefixes, grids = set(packed.prefixes) - {()}, packed.images.grids if packed.images else ()
    if rows is None or len(prefixes) > 1 or len(set(grids)) > 1 or len(grids) not in (0, count) or longest > LONG:
        return None
    kind = Kind.of(layers, (*grids, None)[0], next(iter(prefixes), ()), longest)
    if grids:
        sizes = [(n * kind.longest, n, n) for n in IMAGES] if longest <= LARGEST else []
    else:
        sizes = [(size, size // FEWEST[kind.longest], 0) for size in TEXTS if size <= LONG or kind.longest == SHORT]
    for most, sequences, images in sizes:
        if tokens <= most and count <= sequences:
            return Bucket(kind, most, sequences, images, sequences if len(rows) == count else most)
    return None


class Padded:
    """A bucket's tensors, always the same ones: `packed` and `rows` are what a graph is captured with."""

    def __init__(self, bucket: Bucket, packed: Packed, rows: torch.Tensor) -> None:
        """`packed`, `rows`: any pass of that bucket."""
        device, self._bucket = packed.input_ids.device, bucket

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        def ends() -> torch.Tensor:
            return zeros(bucket.sequences + 1, dtype=torch.int32)

        kind, images, prefixed = bucket.kind, None, None
        if packed.images is not None and kind.grid is not None:
            patches = kind.grid[0] * kind.grid[1]
            images = PackedImages(
                pixels=zeros(bucket.images * patches, packed.images.pixels.shape[1], dtype=torch.uint8),
                grids=(kind.grid,) * bucket.images,
                bounds=Bounds.of([patches] * bucket.images, device),
                tokens=zeros(bucket.images * patches // MERGE**2),
            )
        if kind.prefix:
            prefixed = Prefixed(Bounds((bucket.keys,), ends()), zeros(bucket.keys))
        self.rows = zeros(bucket.rows)
        self.packed = Packed(
            input_ids=zeros(1, bucket.tokens),
            position_ids=zeros(3, 1, bucket.tokens),
            bounds=Bounds((min(kind.longest, bucket.tokens),), ends()),
            images=images,
            starts=(0,),
            prefixes=(kind.prefix,),
            prefixed=prefixed,
        )
        self.fill(packed, rows)

    def fill(self, packed: Packed, rows: torch.Tensor) -> None:
        """Put a pass in. Nothing waits for the device. What is left over keeps numbers of an earlier pass."""
        mine = self.packed
        _put(mine.input_ids, packed.input_ids)
        _put(mine.position_ids, packed.position_ids)
        _put(mine.bounds.offsets, packed.bounds.offsets, sum(packed.bounds.lengths))
        _put(self.rows, rows)
        if mine.images is not None and packed.images is not None:
            _put(mine.images.pixels.view(-1), packed.images.pixels.view(-1))
            nobodys = self._bucket.tokens - 1  # where images are left over, no sequence has the last token
            _put(mine.images.tokens, packed.images.tokens, nobodys)
        if mine.prefixed is not None and packed.prefixed is not None:
            _put(mine.prefixed.index, packed.prefixed.index)
            _put(mine.prefixed.bounds.offsets, packed.prefixed.bounds.offsets, sum(packed.prefixed.bounds.lengths))


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
