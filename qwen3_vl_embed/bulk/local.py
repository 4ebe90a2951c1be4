"""A checkpoint in this process, in place of a server. Needs torch."""

from collections.abc import Iterable, Iterator
from typing import Any, Unpack

import orjson

from qwen3_vl_embed.batches import batches
from qwen3_vl_embed.errors import AdapterError, ItemError
from qwen3_vl_embed.items import Embedded, Item
from qwen3_vl_embed.options import ImageOptions, TextOptions
from qwen3_vl_embed.settings import BATCH

try:  # in a checkout, where Triton too knows it by this name
    from embedder import Embedder, EmbedderConfig, Embedding, EmbedError, EmbedInput, Options
except ImportError:
    from qwen3_vl_embed.embedder import (  # type: ignore[no-redef]
        Embedder,
        EmbedderConfig,
        Embedding,
        EmbedError,
        EmbedInput,
        Options,
    )


class LocalModel:
    """As `Client` for a job: the same vectors, and the same ids of model and recipe as a server's of the same settings.

    Raises AdapterError for a checkpoint that is not there, or none of Qwen3-VL.
    """

    url = "local"

    def __init__(self, checkpoint: str) -> None:
        try:
            self._embedder = Embedder.load(EmbedderConfig(checkpoint=checkpoint))
        except EmbedError as error:
            raise AdapterError(str(error)) from None

    def model(self) -> dict[str, Any]:
        """What it is: id, checkpoint, dimension, recipe, …"""
        return self._embedder.info

    def embed_each(
        self,
        items: Iterable[Item],
        *,
        batch_size: int | None = None,
        in_flight: int = 1,
        **options: Unpack[ImageOptions],
    ) -> Iterator[list[Embedded | ItemError]]:
        """As `Client.embed_each`; one batch at a time. Raises AdapterError for wrong options."""
        try:
            Options.parse(orjson.dumps(options))
        except EmbedError as error:
            raise AdapterError(str(error)) from None
        for batch in batches(items, batch_size or BATCH):
            taken = (ImageOptions if batch[0].kind == "image" else TextOptions).__optional_keys__
            told = Options.parse(orjson.dumps({name: value for name, value in options.items() if name in taken}))
            yield self._embedded(batch, told)

    def _embedded(self, batch: list[Item], options: Options) -> list[Embedded | ItemError]:
        results: dict[int, Embedded | ItemError] = {}
        inputs: dict[int, EmbedInput] = {}
        for position, item in enumerate(batch):
            try:
                content = item.read()
            except ItemError as error:
                results[position] = error
            else:
                text, image = (content, None) if isinstance(content, str) else (None, content)
                inputs[position] = EmbedInput(text, image, options)
        for position, answer in zip(inputs, self._embedder.embed_each(list(inputs.values())), strict=True):
            item = batch[position]
            if isinstance(answer, Embedding):
                results[position] = Embedded(item, answer.vector, answer.recipe.id, answer.tokens)
            else:
                results[position] = ItemError(f"{item.origin}: {answer}")
        return [results[position] for position in range(len(batch))]
