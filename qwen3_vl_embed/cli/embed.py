"""The work of the command `embed`: what is named, to a server, to where it belongs."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import typer

from qwen3_vl_embed.cli import job, terminal
from qwen3_vl_embed.cli.tables import show_embedded
from qwen3_vl_embed.client import Client
from qwen3_vl_embed.errors import ItemError
from qwen3_vl_embed.files import sources
from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.files.sources import Skipped
from qwen3_vl_embed.files.vectors import Origin, VectorFile, jsonl
from qwen3_vl_embed.items import Embedded, Item
from qwen3_vl_embed.settings import BATCH


def found(
    words: list[str], texts: list[str], images: list[Path], csv: Path | None, column: str | None
) -> list[Item | Skipped]:
    """What is to be embedded, in order, and what is not. Raises SourceError."""
    if (csv is None) != (column is None):
        raise SourceError("--csv and --column go together: --csv colours.csv --column name.")
    inputs: list[Item | Skipped] = []
    for word in words:
        inputs += sources.from_lines(sys.stdin.buffer.read()) if word == "-" else sources.from_word(word)
    inputs += [Item.text(text) for text in texts]
    inputs += [sources.from_image(path) for path in images]
    if csv and column:
        inputs += sources.from_csv(csv, column)
    if not inputs:
        raise SourceError('There is nothing to embed. Try: qwen3-vl-embed embed "red" photo.jpg')
    return inputs


def batch_size(client: Client, asked: int | None) -> int:
    """As many as the server takes, at most. Raises SourceError for more, AdapterError."""
    client.model()  # it is there, or is waited for
    most = client.info()["adapter"]["limits"]["max_items"]
    if asked and asked > most:
        raise SourceError(f"The server takes at most {most} items in a request: --batch-size {most} or less.")
    return asked or min(BATCH, most)


def run(
    client: Client, found: Sequence[Item | Skipped], options: dict[str, Any], size: int, output: Path | None
) -> int:
    """Embed everything, put it where it belongs as it comes, and say what is there. Returns the exit code."""
    origin = Origin(client.url, client.model(), options)
    items = [each for each in found if isinstance(each, Item)]
    terminal.show_skipped([each for each in found if isinstance(each, Skipped)])
    file = VectorFile(output, origin, len(items)) if output else None
    shown: list[Embedded] = []
    failures: list[ItemError] = []
    done, start = 0, time.perf_counter()

    def keep(batch: list[Embedded | ItemError]) -> None:
        nonlocal done
        failures.extend(each for each in batch if isinstance(each, ItemError))
        good = [each for each in batch if isinstance(each, Embedded)]
        if file:
            file.write(good)
        elif sys.stdout.isatty():
            shown.extend(good)
        else:
            _print(jsonl(good, origin))
        done += len(good)

    results = client.embed_each(items, batch_size=size, **options)
    code, told = job.run(results, len(items), keep, file or nullcontext(), lambda: len(failures))
    if shown:
        show_embedded(shown)
    for failure in [*failures, told]:
        if failure:
            terminal.complain(str(failure))
    if failures:
        terminal.remark(f"{len(failures)} of {len(items)} items were left out.")
    seconds = time.perf_counter() - start
    if file and file.kept:
        of_all = f" of {len(items)}" if done < len(items) else ""
        terminal.remark(f"{done}{of_all} vectors in {file.kept} ({seconds:.1f} s, {done / seconds:.1f}/s).")
    elif code:
        terminal.remark(f"{done} of {len(items)} vectors were written." if done else "Nothing was written.")
    return code or (1 if failures else 0)


def _print(content: bytes) -> None:
    try:
        typer.echo(content, nl=False)
    except BrokenPipeError:  # `| head` has what it wants
        raise
    except OSError as error:
        raise VectorFileError(f"Standard output cannot be written ({error.strerror or error}).") from None
