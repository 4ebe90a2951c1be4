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
from .attention import Bounds, Prefixed, offsets
from .device import gather, sent


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
    rows: torch.Tensor | None = None  # (R,) int64: which of the T tokens are pooled
    counts: tuple[int, ...] = ()  # of those, how many are each sequence's

    @cached_property
    def ends(self) -> list[int]:
        """Where each sequence ends, among the T tokens."""
        return list(accumulate(self.bounds.lengths))


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


def pack(
    sequences: SequenceOf[Sequence],
    device: torch.device | str = "cpu",
    reuse: bool = True,
    pooled: SequenceOf[tuple[Span, ...]] = (),
) -> Packed:
    """Lay sequences end to end in the order given (a run of equally long ones is one attention call).

    `reuse`: leave prefixes out that the prefix cache holds or will hold; not where weights change (training).
    `pooled`: ranges of each sequence's tokens, for `rows`.
    """
    prefixes = tuple(sequence.prefix if reuse else () for sequence in sequences)
    skipped = list(map(len, prefixes))
    lengths = [len(sequence) - skip for sequence, skip in zip(sequences, skipped, strict=True)]
    starts = tuple(end - length - skip for end, length, skip in zip(accumulate(lengths), lengths, skipped, strict=True))
    own = list(zip(sequences, skipped, strict=True))
    arrays = {
        "input_ids": np.concatenate([sequence.tokens.ids[skip:] for sequence, skip in own])[None],
        "position_ids": np.concatenate([sequence.positions[:, skip:] for sequence, skip in own], axis=1)[:, None],
        "offsets": offsets(lengths),
    }
    patches = [sequence.patches for sequence in sequences if sequence.patches is not None]
    patch_counts = [len(each.pixels) for each in patches]
    if patches:
        places = zip(starts, (sequence.tokens.image for sequence in sequences), strict=True)
        arrays["image_tokens"] = np.concatenate([np.arange(*image) + start for start, image in places if image])
        arrays["patch_offsets"] = offsets(patch_counts)
    keys: list[int] = []
    if any(prefixes):
        keys, arrays["index"] = after_prefixes(prefixes, lengths)
        arrays["key_offsets"] = offsets(keys)
    indices = indices_of(starts, pooled) if pooled else []
    if indices:
        arrays["rows"] = np.concatenate(indices)
    there = sent(arrays, device)
    images = prefixed = None
    if patches:
        pixels, grids = gather([each.pixels for each in patches], device), tuple(each.grid for each in patches)
        bounds = Bounds(tuple(patch_counts), there["patch_offsets"])
        images = PackedImages(pixels, grids, bounds, there["image_tokens"])
    if keys:
        prefixed = Prefixed(Bounds(tuple(keys), there["key_offsets"]), there["index"])
    return Packed(
        input_ids=there["input_ids"],
        position_ids=there["position_ids"],
        bounds=Bounds(tuple(lengths), there["offsets"]),
        images=images,
        starts=starts,
        prefixes=prefixes,
        prefixed=prefixed,
        rows=there.get("rows"),
        counts=tuple(map(len, indices)),
    )


def indices_of(starts: tuple[int, ...], spans: SequenceOf[tuple[Span, ...]]) -> list[NDArray[np.int64]]:
    """Ranges of each sequence's own tokens, which begin at `starts` -> their indices among the T, int64."""
    return [
        np.concatenate([np.arange(offset + start, offset + stop) for start, stop in ranges])
        for offset, ranges in zip(starts, spans, strict=True)
    ]


def after_prefixes(prefixes: tuple[tuple[int, ...], ...], lengths: list[int]) -> tuple[list[int], NDArray[np.int64]]:
    """Each sequence's number of keys, and which of the P + T tokens they are: see `Prefixed`.

    `prefixes`: the ids before each sequence; `lengths`: of their own tokens.
    """
    distinct = [prefix for prefix in dict.fromkeys(prefixes) if prefix]
    starts = dict(zip(distinct, accumulate(map(len, distinct), initial=0), strict=False))
    own = accumulate(lengths, initial=sum(map(len, distinct)))
    index = [
        part
        for prefix, start, length in zip(prefixes, own, lengths, strict=False)
        for part in (starts.get(prefix, 0) + np.arange(len(prefix)), start + np.arange(length))
    ]
    return [len(prefix) + length for prefix, length in zip(prefixes, lengths, strict=True)], np.concatenate(index)
