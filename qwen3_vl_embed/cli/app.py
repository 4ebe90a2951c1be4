"""The application that the commands belong to, and how their errors are told."""

import errno
import io
import sys
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from importlib.metadata import version as version_of
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.files.errors import SourceError, VectorFileError

CHECKOUT = Path(__file__).resolve().parents[2] / "model_repository"


@contextmanager
def sentences() -> Iterator[None]:
    """The one place where errors become a sentence on stderr: exit code 2 for what was typed, 1 for what happened."""
    try:
        yield
    except (SourceError, VectorFileError) as error:
        terminal.complain(str(error))
        raise SystemExit(2) from None
    except AdapterError as error:
        terminal.complain(str(error))
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno is None:
            raise
        terminal.complain(f"{error.filename or 'The output'}: {error.strerror}.")
        raise SystemExit(1) from None


class Closed(io.RawIOBase):
    """Where nothing can be written."""

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        raise OSError(errno.EBADF, "it is closed", "Standard output")


class Commands(TyperGroup):
    """All of them, and their help: none ends in a traceback for what is not a bug."""

    def main(self, args: SequenceOf[str] | None = None, *rest: Any, **named: Any) -> Any:
        """As typer's, for which `| head` is no error."""
        sys.stdin = sys.stdin or io.TextIOWrapper(io.BytesIO())  # None where the shell closed it: `<&-`
        sys.stdout = sys.stdout or io.TextIOWrapper(Closed(), write_through=True)
        with sentences():
            words = list(sys.argv[1:] if args is None else args)
            if "--output=" in words or any(pair in (("-o", ""), ("--output", "")) for pair in pairwise(words)):
                raise SourceError("--output is empty, as of a variable that is not set: name a file or a folder.")
            return super().main(args, *rest, **named)


app = typer.Typer(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qwen3-vl-embed {version_of('qwen3-vl-embed')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Text and image embeddings from Qwen3-VL: serve a checkpoint, embed with it, check it."""


def option(help: str, *names: str, panel: str | None = None, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


@contextmanager
def installed(command: str, extra: str) -> Iterator[None]:
    """For imports of what the package alone does not bring. Raises SourceError."""
    try:
        yield
    except ModuleNotFoundError as error:
        how = "`make setup` installs it" if CHECKOUT.is_dir() else f"pip install 'qwen3-vl-embed[{extra}]'"
        raise SourceError(f"`{command}` needs {error.name}: {how}.") from None


@contextmanager
def from_checkout(command: str) -> Iterator[None]:
    """For imports of what only a checkout has. Raises SourceError."""
    if not CHECKOUT.is_dir():
        raise SourceError(f"`{command}` runs in a checkout of the project alone: clone it, `make setup`, and go there.")
    with installed(command, "local"):
        yield
