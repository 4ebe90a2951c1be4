"""Embed many items through an adapter, in batches and in order, naming the item when one fails.

Knows items and the adapter client; does not know terminals or output files.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_vl_embed.cli.adapter_client import AdapterClient, AdapterError
from qwen3_vl_embed.cli.sources import MOST_BYTES, Item, SourceError
from qwen3_vl_embed.cli.vectors import Embedded

IN_FLIGHT = 2  # the server works on one batch while the next one is read, encoded and decoded
BATCH_BYTES = 16 * 1024 * 1024  # of image files in one request: the adapter refuses bodies that are too large
ITEM_STATUSES = {400, 413, 500}  # may be one item's fault; with any other the next item would fare no better
TOO_LARGE, TIMEOUT = 413, 504
OPTION = "options."  # what the model says of an option comes with an item's name, but is of all items
IMAGE_OPTIONS = {"min_pixels", "max_pixels"}  # refused for texts


class ItemError(Exception):
    """One item could not be embedded; the message starts with its name."""


@dataclass
class EmbeddingJob:
    """Batches of one kind each, at most `batch_size` items. With `skip_errors` bad items end up in `failures`.

    A file of more than `most_bytes` bytes is a bad item, and is not read.
    """

    client: AdapterClient
    options: dict[str, Any]
    batch_size: int
    skip_errors: bool = False
    most_bytes: int = MOST_BYTES
    failures: list[ItemError] = field(default_factory=list)

    def run(self, items: Sequence[Item]) -> Iterator[list[Embedded]]:
        """Yields the results of one batch after the other. Raises ItemError (unless skipped) and AdapterError."""
        pool = ThreadPoolExecutor(IN_FLIGHT)
        try:
            for answers in pool.map(self._embed_or_skip, batches(items, self.batch_size)):
                self.failures += [answer for answer in answers if isinstance(answer, ItemError)]
                yield [answer for answer in answers if isinstance(answer, Embedded)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what is kept must not wait for an answer

    def _embed_or_skip(self, batch: list[Item]) -> Sequence[Embedded | ItemError]:
        try:
            return self._embed(batch)
        except ItemError as error:
            if not self.skip_errors:
                raise
            if len(batch) == 1:
                return [error]
        except AdapterError as error:
            if error.status != TOO_LARGE or len(batch) == 1:
                raise
        return [answer for item in batch for answer in self._embed_or_skip([item])]

    def _embed(self, batch: list[Item]) -> list[Embedded]:
        content: Any = [self._read(item) for item in batch]
        if self.batch_size == 1:  # a server of the benchmark's schema need not take lists
            [content] = content
        kind, options = batch[0].kind, self.options
        try:
            if kind == "image":
                vectors = self.client.embed_image(content, **options)  # (N, D) | (D,)
            else:
                options = {name: value for name, value in options.items() if name not in IMAGE_OPTIONS}
                vectors = self.client.embed_text(content, **options)  # (N, D) | (D,)
        except AdapterError as error:
            raise _blamed(error, batch) from None
        recipe = self.client.recipe(kind, options)
        return [Embedded(item, vector, recipe) for item, vector in zip(batch, np.atleast_2d(vectors), strict=True)]

    def _read(self, item: Item) -> str | bytes:
        try:
            return item.read(self.most_bytes)
        except SourceError as error:
            raise ItemError(f"{item.origin}: {error}") from None


def _blamed(error: AdapterError, batch: list[Item]) -> ItemError | AdapterError:
    """The same error with the name of the item at fault, or with what to try."""
    if str(error).startswith(OPTION):
        return AdapterError(str(error), error.status)
    if error.status in ITEM_STATUSES and error.index is not None:
        return ItemError(f"{batch[error.index].origin}: {error}")
    if error.status == TIMEOUT and len(batch) > 1:
        return AdapterError(f"{error} Try a --batch-size below {len(batch)}.", error.status)
    alone = len(batch) == 1 and (error.status == TOO_LARGE or (error.status == 400 and error.param in ("", "input")))
    return ItemError(f"{batch[0].origin}: {error}") if alone else error


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
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
