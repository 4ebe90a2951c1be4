"""The application that the commands belong to, and how their errors are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.adapter_client import AdapterError
from qwen3_vl_embed.cli.job import ItemError
from qwen3_vl_embed.cli.sources import SourceError
from qwen3_vl_embed.cli.vectors import VectorFileError

app = typer.Typer(
    help="Text and image embeddings from Qwen3-VL: serve a checkpoint, embed with it, check it.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


def option(help: str, *names: str, panel: str | None = None, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


@contextmanager
def sentences() -> Iterator[None]:
    """The one place where errors become a sentence on stderr: exit code 2 for what was typed, 1 for what happened."""
    try:
        yield
    except (SourceError, VectorFileError) as error:
        terminal.complain(str(error))
        raise typer.Exit(2) from None
    except (AdapterError, ItemError) as error:
        terminal.complain(str(error))
        raise typer.Exit(1) from None
