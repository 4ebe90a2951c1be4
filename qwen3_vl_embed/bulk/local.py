"""A checkpoint in this process, in place of a server. Needs torch."""

from collections.abc import Iterable, Iterator
from typing import Any, Unpack

import orjson

from qwen3_vl_embed.batches import batches
from qwen3_vl_embed.client import by_kind
from qwen3_vl_embed.errors import AdapterError, ItemError
from qwen3_vl_embed.items import Embedded, Item
from qwen3_vl_embed.options import ImageOptions
from qwen3_vl_embed.protocol import blamed
from qwen3_vl_embed.settings import BATCH

try:  # in a checkout, where Triton too knows it by this name
    import embedder
except ImportError:
    from qwen3_vl_embed import embedder  # type: ignore[no-redef]


class LocalModel:
    """As `Client` for a job: the same vectors, and the same ids of model and recipe as a server's of the same settings.

    Raises AdapterError for a checkpoint that is not there, or none of Qwen3-VL.
    """

    url = "local"

    def __init__(self, checkpoint: str) -> None:
        try:
            self._embedder = embedder.Embedder.load(embedder.EmbedderConfig(checkpoint=checkpoint))
        except embedder.EmbedError as error:
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
            told = {kind: embedder.Options.parse(orjson.dumps(each)) for kind, each in by_kind(options).items()}
        except embedder.EmbedError as error:
            raise AdapterError(str(error)) from None
        for batch in batches(items, batch_size or BATCH):
            yield self._embedded(batch, told[batch[0].kind])

    def _embedded(self, batch: list[Item], options: embedder.Options) -> list[Embedded | ItemError]:
        results: dict[int, Embedded | ItemError] = {}
        inputs: dict[int, embedder.EmbedInput] = {}
        for position, item in enumerate(batch):
            try:
                content = item.read()
            except ItemError as error:
                results[position] = error
            else:
                text, image = (content, None) if isinstance(content, str) else (None, content)
                inputs[position] = embedder.EmbedInput(text, image, options)
        for position, answer in zip(inputs, self._embedder.embed_each(list(inputs.values())), strict=True):
            item = batch[position]
            if isinstance(answer, embedder.Embedding):
                results[position] = Embedded(item, answer.vector, answer.recipe.id, answer.tokens)
            else:
                fault = blamed(AdapterError(str(answer), 400, f"input[{position}]"), batch)
                if not isinstance(fault, ItemError):
                    raise fault
                results[position] = fault
        return [results[position] for position in range(len(batch))]
