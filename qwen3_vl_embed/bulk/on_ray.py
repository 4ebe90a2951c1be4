"""The same job by Ray Data: pieces of the source to workers on many machines, each with its own client or model.

A piece's parts are named by its number and cut by rows alone. So a worker that does a dead one's work again writes the
same files, and Ray's own checkpoint is not needed.
"""

from collections.abc import Iterator
from typing import Any

import ray
from ray.cloudpickle import dumps, loads

from qwen3_vl_embed.bulk.job import Embeds, Means
from qwen3_vl_embed.bulk.parts import Held, Parts, Place
from qwen3_vl_embed.bulk.sources import Source
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.files.vectors import differences


class Worker:
    """An actor: one piece after the other, embedded and written."""

    def __init__(self, means: Means, place: Place, held: Held) -> None:
        self._means, self._place, self._held = means, place, held
        self._made: dict[int, Embeds] = {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """`batch`: number and pickled piece, one each. Returns what became of its rows, or what ended it."""
        number, piece = int(batch["number"][0]), loads(batch["piece"][0])
        told = ""
        with Parts(self._place, f"-{number:06}", seconds=None) as parts:
            try:
                embeds = self._embeds(number)
                for results in self._means.results(embeds, parts.items(piece.rows(), self._held)):
                    parts.write(results)
            except AdapterError as error:
                told = str(error)
        return {name: [count] for name, count in parts.counts().items()} | {"told": [told]}

    def _embeds(self, number: int) -> Embeds:
        server = number % len(self._means.urls) if self._means.urls else 0
        if server not in self._made:
            made, origin = self._means.connected(server), self._place.origin
            if (model := made.model())["id"] != origin.model["id"]:
                told = f"which differs in {differences(origin.model, model)}"
                raise AdapterError(f"{made.url} has another model than {origin.server}, {told}.")
            self._made[server] = made
        return self._made[server]


def run(address: str, workers: int, means: Means, place: Place, source: Source, held: Held) -> Iterator[dict[str, Any]]:
    """Yields, for each piece, how many rows are done, failed, repeated and skipped.

    Raises AdapterError when a piece could not be done because of its server; the pieces that are done are kept.
    """
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    pieces = [{"number": number, "piece": dumps(piece)} for number, piece in enumerate(source.pieces())]
    gpus = 1 if means.local_model and ray.cluster_resources().get("GPU") else 0
    done = ray.data.from_items(pieces, override_num_blocks=max(1, len(pieces))).map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=(means, place, held),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus,
    )
    for row in done.iter_rows():
        yield row
        if row["told"]:
            raise AdapterError(row["told"])
