"""Sequences laid end to end: what one forward pass gets, and which go together. Knows no prompts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from embedder.images import MERGE, Patches
from embedder.renderer import Span, Tokens


@dataclass(frozen=True)
class Sequence:
    """One input, ready for the model: its tokens and, for an image, its patches."""

    tokens: Tokens
    patches: Patches | None = None

    def __len__(self) -> int:
        return len(self.tokens.ids)

    @property
    def positions(self) -> np.ndarray:
        """int64 (4, T): the running index, then time, height and width of M-RoPE.

        The closed form of transformers' `Qwen3VLModel.get_rope_index` for one image or none: text counts up; the image
        keeps its time while its rows and columns count from there; what follows starts after the longer side.
        """
        running = np.arange(len(self))
        spatial = np.tile(running, (3, 1))
        if self.patches is not None:
            assert self.tokens.image is not None
            start, stop = self.tokens.image
            rows, columns = (side // MERGE for side in self.patches.grid)
            grid = np.stack(np.meshgrid([0], np.arange(rows), np.arange(columns), indexing="ij")).reshape(3, -1)
            spatial[:, start:stop] = start + grid
            spatial[:, stop:] += max(rows, columns) - (stop - start)
        return np.concatenate([running[None], spatial])


@dataclass(frozen=True)
class Packed:
    """One forward pass over N sequences with T tokens in all."""

    input_ids: torch.Tensor  # (1, T) int64
    position_ids: torch.Tensor  # (4, 1, T) int64
    bounds: torch.Tensor  # (N + 1,) int32, on the CPU: where each sequence starts and ends
    pixels: torch.Tensor | None  # (P, 3 * patch * patch) uint8
    grids: torch.Tensor | None  # (images, 3) int64: 1, rows, columns, in patches
    contents: list[list[Span]]  # each sequence's content, as ranges of the T tokens

    @property
    def longest(self) -> int:
        return int(self.bounds.diff().max())


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
    """Lay sequences end to end in the order given (a run of equally long ones is one attention call)."""
    bounds = np.cumsum([0] + [len(sequence) for sequence in sequences])
    images = [sequence.patches for sequence in sequences if sequence.patches is not None]
    ids = np.concatenate([sequence.tokens.ids for sequence in sequences])
    positions = np.concatenate([sequence.positions for sequence in sequences], axis=1)
    pixels = grids = None
    if images:
        pixels = torch.from_numpy(np.concatenate([image.pixels for image in images])).to(device, non_blocking=True)
        grids = torch.tensor([[1, *image.grid] for image in images]).to(device, non_blocking=True)
    return Packed(
        input_ids=torch.from_numpy(ids)[None].to(device, non_blocking=True),
        position_ids=torch.from_numpy(positions)[:, None].to(device, non_blocking=True),
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        pixels=pixels,
        grids=grids,
        contents=[
            [(offset + start, offset + stop) for start, stop in sequence.tokens.content]
            for offset, sequence in zip(bounds.tolist(), sequences, strict=False)
        ],
    )
