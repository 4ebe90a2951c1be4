"""Sequences laid end to end: what one forward pass gets, and which go together."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from ..poolings import Span
from ..prepare.sequence import Sequence
from .attention import Bounds, Prefixed
from .device import gather, to_device


@dataclass(frozen=True)
class PackedImages:
    """All images of one forward pass, P patches and K tokens in all."""

    pixels: torch.Tensor  # (P, patch * patch * 3) uint8
    grids: tuple[tuple[int, int], ...]  # each image's rows and columns of patches
    bounds: Bounds  # of the patches
    tokens: torch.Tensor  # (K,) int64: which of the T tokens are the images'


@dataclass(frozen=True)
class Packed:
    """One forward pass over N sequences with T tokens in all, those of cached prefixes left out."""

    input_ids: torch.Tensor  # (1, T) int64
    position_ids: torch.Tensor  # (3, 1, T) int64
    bounds: Bounds
    images: PackedImages | None
    starts: tuple[int, ...]  # where each sequence's token 0 is among the T, or would be if its prefix was not left out
    prefixes: tuple[tuple[int, ...], ...]  # the ids that were left out before each sequence; empty for most
    prefixed: Prefixed | None = None  # where some were

    @cached_property
    def ends(self) -> list[int]:
        """Where each sequence ends, among the T tokens."""
        return list(accumulate(self.bounds.lengths))

    def indices(self, spans: SequenceOf[tuple[Span, ...]]) -> list[NDArray[np.int64]]:
        """Ranges of each sequence's own tokens -> their indices among the T, int64."""
        return [
            np.concatenate([np.arange(offset + start, offset + stop) for start, stop in ranges])
            for offset, ranges in zip(self.starts, spans, strict=True)
        ]


def plan(sequences: Mapping[int, Sequence], max_tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Keys of the sequences that go together: shortest first, at most `max_tokens` tokens (or one alone).

    Tokens of prefixes do not count. `most`: sequences, at most; None for any number.
    """
    batch: list[int] = []
    total = 0
    for key in sorted(sequences, key=lambda key: sequences[key].own):
        total += sequences[key].own
        if batch and (total > max_tokens or len(batch) == most):
            yield batch
            batch, total = [], sequences[key].own
        batch.append(key)
    if batch:
        yield batch


def pack(sequences: SequenceOf[Sequence], device: torch.device | str = "cpu", reuse: bool = True) -> Packed:
    """Lay sequences end to end in the order given (a run of equally long ones is one attention call).

    `reuse`: leave prefixes out that the prefix cache holds or will hold; not where weights change (training).
    """
    prefixes = tuple(sequence.prefix if reuse else () for sequence in sequences)
    skipped = list(map(len, prefixes))
    lengths = [len(sequence) - skip for sequence, skip in zip(sequences, skipped, strict=True)]
    starts = tuple(end - length - skip for end, length, skip in zip(accumulate(lengths), lengths, skipped, strict=True))
    own = list(zip(sequences, skipped, strict=True))
    return Packed(
        input_ids=gather([sequence.tokens.ids[skip:] for sequence, skip in own], device)[None],
        position_ids=gather([sequence.positions[:, skip:] for sequence, skip in own], device, axis=1)[:, None],
        bounds=Bounds.of(lengths, device),
        images=_pack_images(sequences, starts, device),
        starts=starts,
        prefixes=prefixes,
        prefixed=prefixed(prefixes, lengths, device) if any(prefixes) else None,
    )


def prefixed(prefixes: tuple[tuple[int, ...], ...], lengths: list[int], device: torch.device | str) -> Prefixed:
    """`prefixes`: the ids before each sequence; `lengths`: of their own tokens; the index is on `device`."""
    distinct = [prefix for prefix in dict.fromkeys(prefixes) if prefix]
    starts = dict(zip(distinct, accumulate(map(len, distinct), initial=0), strict=False))
    own = accumulate(lengths, initial=sum(map(len, distinct)))
    index = [
        part
        for prefix, start, length in zip(prefixes, own, lengths, strict=False)
        for part in (starts.get(prefix, 0) + np.arange(len(prefix)), start + np.arange(length))
    ]
    keys = [len(prefix) + length for prefix, length in zip(prefixes, lengths, strict=True)]
    return Prefixed(Bounds.of(keys, device), to_device(np.concatenate(index), device))


def _pack_images(
    sequences: SequenceOf[Sequence], starts: tuple[int, ...], device: torch.device | str
) -> PackedImages | None:
    patches = [sequence.patches for sequence in sequences if sequence.patches is not None]
    if not patches:
        return None
    tokens = [
        np.arange(*sequence.tokens.image) + start
        for start, sequence in zip(starts, sequences, strict=True)
        if sequence.tokens.image is not None
    ]
    return PackedImages(
        pixels=gather([each.pixels for each in patches], device),
        grids=tuple(each.grid for each in patches),
        bounds=Bounds.of([len(each.pixels) for each in patches], device),
        tokens=gather(tokens, device),
    )
