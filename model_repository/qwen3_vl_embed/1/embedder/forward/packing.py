"""Sequences laid end to end: what one forward pass gets, and which go together. Knows no prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from ..prepare.images import MERGE, Patches
from ..prepare.renderer import Span, Tokens
from .attention import Bounds
from .device import to_device

# Shorter prefixes are computed with every input: the one token before `eol`'s text and the four before its image cost
# less than their bookkeeping. A system turn (an instruction, Qwen3-VL-Embedding's own prompt) is longer. Still longer
# ones would fill the memory: 64 are kept, of 147 kB a token for the 4B in bfloat16, which makes 2.4 GB at most.
REUSED_FROM, REUSED_TO = 8, 256


@dataclass(frozen=True)
class Sequence:
    """One input, ready for the model: its tokens and, for an image, its patches."""

    tokens: Tokens
    patches: Patches | None = None

    def __len__(self) -> int:
        return len(self.tokens.ids)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids of the template's beginning, when it is worth having its keys and values from before."""
        length = self.tokens.prefix
        return tuple(self.tokens.ids[:length].tolist()) if REUSED_FROM <= length <= REUSED_TO else ()

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 (3, T): time, height and width of M-RoPE.

        The closed form of transformers' `Qwen3VLModel.get_rope_index` for one image or none: text counts up; the image
        keeps its time while its rows and columns count from there; what follows starts after the longer side.
        """
        spatial = np.tile(np.arange(len(self)), (3, 1))
        if self.patches is not None:
            assert self.tokens.image is not None
            start, stop = self.tokens.image
            rows, columns = (side // MERGE for side in self.patches.grid)
            grid = np.stack(np.meshgrid([0], np.arange(rows), np.arange(columns), indexing="ij")).reshape(3, -1)
            spatial[:, start:stop] = start + grid
            spatial[:, stop:] += max(rows, columns) - (stop - start)
        return spatial


@dataclass(frozen=True)
class PackedImages:
    """All images of one forward pass, P patches and K tokens in all."""

    pixels: torch.Tensor  # (P, patch * patch * 3) uint8
    grids: tuple[tuple[int, int], ...]  # each image's rows and columns of patches
    bounds: Bounds  # of the patches
    tokens: torch.Tensor  # (K,) int64: which of the T tokens are the images'


@dataclass(frozen=True)
class Packed:
    """One forward pass over N sequences with T tokens in all, those of prefixes that are reused left out."""

    input_ids: torch.Tensor  # (1, T) int64
    position_ids: torch.Tensor  # (3, 1, T) int64
    bounds: Bounds
    images: PackedImages | None
    contents: list[list[Span]]  # each sequence's content, as ranges of the T tokens
    prefixes: tuple[tuple[int, ...], ...]  # the ids that were left out before each sequence; empty for most

    @cached_property
    def ends(self) -> list[int]:
        """Where each sequence ends, among the T tokens."""
        return list(accumulate(self.bounds.lengths))


def plan(sequences: list[Sequence], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the sequences that go together: shortest first, at most `max_tokens` tokens (or one alone)."""
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        total += len(sequences[index])
        if batch and total > max_tokens:
            yield batch
            batch, total = [], len(sequences[index])
        batch.append(index)
    if batch:
        yield batch


def pack(sequences: list[Sequence], device: torch.device | str = "cpu") -> Packed:
    """Lay sequences end to end in the order given (a run of equally long ones is one attention call).

    With gradients on, weights may be changing: then no prefix is left out.
    """
    prefixes = tuple(() if torch.is_grad_enabled() else sequence.prefix for sequence in sequences)
    skipped = list(map(len, prefixes))
    lengths = [len(sequence) - skip for sequence, skip in zip(sequences, skipped, strict=True)]
    starts = [end - length - skip for end, length, skip in zip(accumulate(lengths), lengths, skipped, strict=True)]
    positions = np.concatenate([s.positions[:, skip:] for s, skip in zip(sequences, skipped, strict=True)], axis=1)
    ids = np.concatenate([s.tokens.ids[skip:] for s, skip in zip(sequences, skipped, strict=True)])
    return Packed(
        input_ids=to_device(ids[None], device),
        position_ids=to_device(positions[:, None], device),
        bounds=Bounds.of(lengths, device),
        images=_pack_images(sequences, starts, device),
        contents=[
            [(offset + start, offset + stop) for start, stop in sequence.tokens.content]
            for offset, sequence in zip(starts, sequences, strict=True)
        ],
        prefixes=prefixes,
    )


def _pack_images(sequences: list[Sequence], starts: list[int], device: torch.device | str) -> PackedImages | None:
    patches = [sequence.patches for sequence in sequences if sequence.patches is not None]
    if not patches:
        return None
    spans = [
        (start + sequence.tokens.image[0], start + sequence.tokens.image[1])
        for start, sequence in zip(starts, sequences, strict=True)
        if sequence.tokens.image is not None
    ]
    return PackedImages(
        pixels=to_device(np.concatenate([each.pixels for each in patches]), device),
        grids=tuple(each.grid for each in patches),
        bounds=Bounds.of([len(each.pixels) for each in patches], device),
        tokens=to_device(np.concatenate([np.arange(*span) for span in spans]), device),
    )
