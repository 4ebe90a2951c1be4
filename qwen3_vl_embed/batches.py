"""How items are put into requests, and what comes back is put together."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from qwen3_vl_embed.errors import AdapterError, ItemError
from qwen3_vl_embed.items import Embedded, Item

BATCH_BYTES = 16 * 1024 * 1024  # of image files in one request: the adapter refuses bodies that are too large
Progress = Callable[[int, int | None], None]  # how many are done, of how many (None: nobody knows)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive items of one kind, at most `size` of them and about BATCH_BYTES together."""
    batch: list[Item] = []
    total = 0
    for item in items:
        total += item.size()
        if batch and (len(batch) == size or total > BATCH_BYTES or item.kind != batch[0].kind):
            yield batch
            batch, total = [], item.size()
        batch.append(item)
    if batch:
        yield batch


class Stack:
    """The vectors of one list, batch by batch."""

    def __init__(self, total: int | None = None, progress: Progress | None = None) -> None:
        self._vectors: list[NDArray[np.float32]] = []
        self._total, self._progress = total, progress

    def add(self, batch: Iterable[Embedded | ItemError]) -> None:
        """Raises the first ItemError; its `index` is then the position in the whole list.

        So it does an AdapterError for a vector that is longer or shorter than those before.
        """
        for each in batch:
            if isinstance(each, ItemError):
                each.param = f"input[{len(self._vectors)}]"
                raise each
            if self._vectors and len(each.vector) != (before := len(self._vectors[0])):
                told = f"The server gave vectors of {before} numbers, and then of {len(each.vector)}"
                raise AdapterError(f"{told}: they cannot be compared.")
            self._vectors.append(each.vector)
        if self._progress:
            self._progress(len(self._vectors), self._total)

    def array(self) -> NDArray[np.float32]:
        """float32 (N, D). Raises AdapterError for N = 0."""
        if not self._vectors:
            raise AdapterError("There is nothing to embed: the list is empty.")
        return np.stack(self._vectors)
