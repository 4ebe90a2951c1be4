"""What `embed` and `bulk` have in common: results to where they are kept, as they come, until something ends it."""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import typer

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.interrupts import Interrupts
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.files.errors import VectorFileError

INTERRUPTED = 130  # exit code: 128 and the number of Ctrl-C's signal, as shells have it


def run(
    batches: Iterable[list[Any]],
    total: int | Callable[[], int | None],
    keep: Callable[[list[Any]], None],
    file: AbstractContextManager[Any],
    failures: Callable[[], int],
) -> tuple[int, str]:
    """Each batch to `keep`, inside of `file`, with a progress bar; a signal waits for the end of `keep`.

    Returns the exit code, 0 for all of them, and the sentence that says what ended it early.
    """
    with Interrupts() as interrupts:
        try:
            with file:
                for batch in terminal.progress(batches, total, failures):
                    with interrupts.held():
                        keep(batch)
                interrupts.hold()
        except (AdapterError, VectorFileError) as error:
            return 1, str(error)
        except KeyboardInterrupt:
            return INTERRUPTED, "Interrupted."
    return 0, ""


def leave(code: int) -> NoReturn:
    """End the command with this exit code; after Ctrl-C nobody waits for the answers that are still on their way."""
    if code == INTERRUPTED:
        sys.stdout.flush()
        os._exit(code)
    raise typer.Exit(code)
