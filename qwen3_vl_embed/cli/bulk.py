"""The work of the command `bulk`: a source, to a server or several, to part files."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from qwen3_vl_embed.bulk.job import Means
from qwen3_vl_embed.bulk.parts import Folder, Parts, Place, schema
from qwen3_vl_embed.bulk.sources import Source
from qwen3_vl_embed.cli import job, terminal
from qwen3_vl_embed.cli.embed import batch_size
from qwen3_vl_embed.client import Client
from qwen3_vl_embed.files.vectors import Origin


def run(
    source: Source, output: Path, means: Means, dtype: str, retry_failed: bool, ray: str | None, workers: int
) -> int:
    """Embed what is not there yet, and say what is. Returns the exit code: 0 when no row of the folder failed.

    Raises:
        SourceError: the folder is another job's, or holds another recipe's vectors.
        AdapterError: no server, or no model.
    """
    folder = Folder(output)
    started = time.perf_counter()
    with ExitStack() as stack:
        embeds = means.connected(notify=terminal.remark)
        if isinstance(embeds, Client):
            stack.enter_context(embeds)
            batch_size(embeds, means.batch_size)
        origin = Origin(embeds.url, embeds.model(), means.options)
        stack.enter_context(folder.locked())
        columns = schema(origin.dimension(), dtype, source.schema, source.root, source.name)
        folder.check(origin, columns)
        if retry_failed:
            folder.drop_failed()
        held, rows, failed = folder.held()
        place = Place(output, token_hex(3), columns, origin, dict(folder.recipes()))
        total = _counted(lambda: (count := source.count()) and max(0, count - rows))
        if ray is None:
            parts = Parts(place)
            results = means.results(embeds, parts.items(source.rows(), held))
            code, told = job.run(results, total, parts.write, parts, lambda: parts.failed)
            counts = parts.counts()
        else:
            from qwen3_vl_embed.bulk import on_ray

            counts = Parts(place).counts()  # none yet
            pieces = _added(on_ray.run(ray, workers, means, place, source, held), counts)
            code, told = job.run(pieces, total, lambda piece: None, nullcontext(), lambda: counts["failed"])
    return _say(folder, counts, rows, failed, code, told, time.perf_counter() - started)


def _added(pieces: Iterator[dict[str, Any]], counts: dict[str, int]) -> Iterator[list[None]]:
    """Adds each piece to the counts, and yields as many things as it has rows."""
    for piece in pieces:
        for name in counts:
            counts[name] += piece[name]
        yield [None] * piece["done"]


def _counted(count: Callable[[], int | None]) -> Callable[[], int | None]:
    """Counts beside the work: None until it is known."""
    found: list[int | None] = []
    Thread(target=lambda: found.append(count()), daemon=True).start()
    return lambda: found[0] if found else None


def _say(
    folder: Folder, counts: dict[str, int], before: int, failed_before: int, code: int, told: str, seconds: float
) -> int:
    failed = failed_before + counts["failed"]
    if told:
        terminal.complain(told)
    if counts["skipped"]:
        terminal.remark(f"{counts['skipped']:,} files are no images.")
    if counts["repeated"]:
        terminal.complain(
            f"{counts['repeated']:,} rows were left out: another row, before them or in the folder, has their id."
        )
    if failed:
        first = folder.first_error()
        terminal.complain(f"{failed:,} rows failed, such as: {first}")
        terminal.remark("--retry-failed embeds them again.")
    rows = before + counts["done"]
    if not rows and not code:
        terminal.complain("There was nothing to embed.")
        return 2
    here = f"{counts['done']:,} rows in {seconds:.1f} s, {counts['done'] / seconds:.1f}/s"
    terminal.remark(f"{rows:,} rows in {len(folder.parts()):,} parts in {folder.path} ({here}).")
    if code:
        terminal.remark("The same command goes on where it ended.")
    return code or (1 if failed or counts["repeated"] else 0)
