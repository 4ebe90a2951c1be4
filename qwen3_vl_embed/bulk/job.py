"""What a job needs to be done anywhere: here, or by a worker of Ray's."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from qwen3_vl_embed.client import Client
from qwen3_vl_embed.errors import ItemError
from qwen3_vl_embed.items import Embedded, Item

if TYPE_CHECKING:  # torch, where the model is in the worker's own process
    from qwen3_vl_embed.bulk.local import LocalModel

Embeds: TypeAlias = "Client | LocalModel"


@dataclass(frozen=True)
class Means:
    """What makes vectors, and how it is asked: servers, or a checkpoint in the worker's own process."""

    urls: tuple[str, ...]
    local_model: str | None = None
    retry_for_s: float = 120.0
    batch_size: int | None = None
    in_flight: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    def connected(self, number: int = 0, notify: Callable[[str], None] = lambda told: None) -> Embeds:
        """The server of this number, counted round and round; or the model, loaded. Raises AdapterError."""
        if self.local_model is not None:
            from qwen3_vl_embed.bulk.local import LocalModel

            return LocalModel(self.local_model)
        return Client(self.urls[number % len(self.urls)], retry_for_s=self.retry_for_s, notify=notify)

    def results(self, embeds: Embeds, items: Iterable[Item]) -> Iterator[list[Embedded | ItemError]]:
        """As `Client.embed_each`."""
        return embeds.embed_each(items, batch_size=self.batch_size, in_flight=self.in_flight, **self.options)
