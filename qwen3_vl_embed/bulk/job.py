"""What a job needs to be done anywhere: here, or by a worker of Ray's."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from qwen3_vl_embed.bulk.parts import PART_SECONDS, Parts
from qwen3_vl_embed.client import Client
from qwen3_vl_embed.errors import ItemError
from qwen3_vl_embed.files.vectors import Origin
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


@dataclass(frozen=True)
class Place:
    """Where the rows of one job go: its folder, its parts' schema, what made them, and the recipes known before."""

    folder: Path
    run: str  # begins the names of this run's parts
    columns: pa.Schema
    origin: Origin
    recipes: dict[str, str | None]

    def parts(self, piece: str = "", seconds: float | None = PART_SECONDS) -> Parts:
        """For all rows, or for one piece of the source."""
        return Parts(self.folder, self.run + piece, self.columns, self.origin, self.recipes, seconds)
