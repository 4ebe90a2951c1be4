"""The commands that talk to a running server, and the one that runs it: serve, embed, validate, report, info.

Thin: they read options and call the modules that do the work.
"""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from qwen3_vl_embed.cli import sources, terminal
from qwen3_vl_embed.cli.adapter_client import RETRY_FOR_S, AdapterClient, AdapterError
from qwen3_vl_embed.cli.app import app, option, sentences
from qwen3_vl_embed.cli.contract import IMAGE_PATH, INPUT_FIELD, OUTPUT_FIELD, TEXT_PATH, Endpoints
from qwen3_vl_embed.cli.interrupts import Interrupts
from qwen3_vl_embed.cli.job import EmbeddingJob
from qwen3_vl_embed.cli.recipe import chosen
from qwen3_vl_embed.cli.sources import Item, Skipped, SourceError
from qwen3_vl_embed.cli.validation import validate as validate_server
from qwen3_vl_embed.cli.vectors import (
    Embedded,
    Origin,
    VectorFile,
    VectorFileError,
    check_folder,
    check_writable,
    jsonl,
)

DEFAULT_BATCH = 64  # what one Triton batch holds: longer lists only wait
DEFAULT_URL = "http://localhost:8001"
INTERRUPTED = 130  # exit code: 128 and the number of Ctrl-C's signal, as shells have it

INPUTS, OUTPUT, RECIPE = "More inputs", "Output", "Recipe (what is left out stays as the server is set)"
SUBJECT, SCHEMA = "What to embed (left out, the 949 colours)", "Another server of the benchmark's schema"

Url = Annotated[str, option("Where the server answers.", envvar="QWEN3_VL_EMBED_URL")]
Words = Annotated[list[str] | None, typer.Argument(help="Texts, image files, folders of images, - for stdin's lines.")]
Texts = Annotated[list[str] | None, option("A text, whatever it looks like.", panel=INPUTS)]
Images = Annotated[list[Path] | None, option("An image file, whatever its name.", panel=INPUTS)]
Csv = Annotated[Path | None, option("A CSV file with a line of headings.", panel=INPUTS)]
Column = Annotated[str | None, option("The heading of the column of --csv to embed.", panel=INPUTS)]
Output = Annotated[Path | None, option("A .npz, .npy, .parquet or .jsonl file.", "--output", "-o", panel=OUTPUT)]
SkipErrors = Annotated[bool, typer.Option("--skip-errors", hidden=True)]  # which is what happens without it
Pooling = Annotated[str | None, option("last, mean or eos.", panel=RECIPE)]
Dimensions = Annotated[int | None, option("Keep the first N numbers.", panel=RECIPE)]
Normalize = Annotated[bool | None, option("Unit vectors, or as they are pooled.", panel=RECIPE)]
Instruction = Annotated[str | None, option("The system turn of the prompt.", panel=RECIPE)]
MinPixels = Annotated[int | None, option("Enlarge images that have fewer pixels.", panel=RECIPE)]
MaxPixels = Annotated[int | None, option("Shrink images that have more pixels.", panel=RECIPE)]
BatchSize = Annotated[int | None, option(f"Items in a request; left out, at most {DEFAULT_BATCH}.", min=1)]
RetrySeconds = Annotated[
    float,
    option("How long to ask again while the server is busy or gone.", envvar="QWEN3_VL_EMBED_RETRY_SECONDS", min=0),
]
Checkpoint = Annotated[str | None, option("A folder, or a Hugging Face id.", envvar="CHECKPOINT")]
Port = Annotated[int | None, option("Where the adapter listens; left out, 8001.", envvar="SERVE_PORT")]
Colours = Annotated[Path | None, option("A CSV file with the headings name,hex.", panel=SUBJECT)]
ImageFolder = Annotated[Path | None, option("Images, with a CSV of file,caption or .txt files.", panel=SUBJECT)]
Vectors = Annotated[Path | None, option("vectors.npz of an earlier report, instead of a server.", panel=SUBJECT)]
Folder = Annotated[Path | None, option("Where to; left out, report-<model>.", "--output", "-o", panel=OUTPUT)]
Name = Annotated[str | None, option("What to call the model; left out, as the server calls it.", panel=OUTPUT)]
AnyOption = Annotated[list[str] | None, option("KEY=VALUE, any field that the server takes.", panel=RECIPE)]
TextPath = Annotated[str, option("Where it takes texts.", panel=SCHEMA)]
ImagePath = Annotated[str, option("Where it takes images.", panel=SCHEMA)]
InputField = Annotated[str, option("The request's field.", panel=SCHEMA)]
OutputField = Annotated[str, option("The answer's field.", panel=SCHEMA)]
Strict = Annotated[bool, option("Every colour must find its own swatch, not red alone.", "--strict")]


@app.command()
def serve(checkpoint: Checkpoint = None, port: Port = None) -> None:
    """Serve a checkpoint here, without containers: Triton and the HTTP adapter, until Ctrl-C.

    Everything else is a setting: an environment variable EMBED_*, ADAPTER_* or SERVE_*.

    [bold]Examples[/bold]
      qwen3-vl-embed serve
      qwen3-vl-embed serve --checkpoint Qwen/Qwen3-VL-4B-Instruct --port 9001
    """
    from qwen3_vl_embed.serving.__main__ import (
        main,  # here, so that the other commands run where only the client is installed
    )

    for name, value in {"CHECKPOINT": checkpoint, "SERVE_PORT": port}.items():
        if value is not None:
            os.environ[name] = str(value)
    raise typer.Exit(main())


@app.command()
def embed(
    words: Words = None,
    text: Texts = None,
    image: Images = None,
    csv: Csv = None,
    column: Column = None,
    output: Output = None,
    skip_errors: SkipErrors = False,
    pooling: Pooling = None,
    dimensions: Dimensions = None,
    normalize: Normalize = None,
    instruction: Instruction = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    option: AnyOption = None,
    batch_size: BatchSize = None,
    retry_seconds: RetrySeconds = RETRY_FOR_S,
    url: Url = DEFAULT_URL,
) -> None:
    """Embed texts and images with a running server.

    A word that names an image file is that image, a folder is every image below it, any other word is a text.
    Without --output: a small table on a terminal, JSON lines in a pipe.

    An item that cannot be embedded is left out and named at the end; the exit code is then 1.
    Ctrl-C keeps what is done.

    [bold]Examples[/bold]
      qwen3-vl-embed embed red "dark teal" photo.jpg
      qwen3-vl-embed embed photos/ -o photos.parquet
      qwen3-vl-embed embed - < names.txt > names.jsonl
      qwen3-vl-embed embed --csv colours.csv --column name -o colours.npz
      qwen3-vl-embed embed red --option prompt=colour --option layer=-2
    """
    flags = {
        "pooling": pooling,
        "dimensions": dimensions,
        "normalize": normalize,
        "instruction": instruction,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
    }
    with sentences(), _client(url, retry_seconds) as client:
        if output:
            check_writable(output)
        found = _found(words or [], text or [], image or [], csv, column)
        size, model, options = _batch_size(client, batch_size), client.model(), chosen(flags, option)
        most_bytes = model["limits"]["max_image_bytes"]
        job = EmbeddingJob(client, options, size, skip_errors=True, most_bytes=most_bytes)
        items = [each for each in found if isinstance(each, Item)]
        terminal.show_skipped([each for each in found if isinstance(each, Skipped)])
        code = _run(job, items, output, Origin(client.url, model, options))
        if code == INTERRUPTED:
            sys.stdout.flush()
            os._exit(code)  # nobody waits for the answers that are still on their way
    raise typer.Exit(code)


def _client(url: str, retry_seconds: float = RETRY_FOR_S, endpoints: Endpoints | None = None) -> AdapterClient:
    return AdapterClient(url, retry_for_s=retry_seconds, endpoints=endpoints, notify=terminal.remark)


def _found(
    words: list[str], texts: list[str], images: list[Path], csv: Path | None, column: str | None
) -> list[Item | Skipped]:
    if (csv is None) != (column is None):
        raise SourceError("--csv and --column go together: --csv colours.csv --column name.")
    found: list[Item | Skipped] = []
    for word in words:
        found += sources.from_lines(sys.stdin.buffer.read()) if word == "-" else sources.from_word(word)
    found += [Item.text(text) for text in texts]
    found += [sources.from_image(path) for path in images]
    if csv and column:
        found += sources.from_csv(csv, column)
    if not found:
        raise SourceError('There is nothing to embed. Try: qwen3-vl-embed embed "red" photo.jpg')
    return found


def _batch_size(client: AdapterClient, asked: int | None) -> int:
    most = client.max_items()
    if asked and asked > most:
        raise SourceError(f"The server takes at most {most} items in a request: --batch-size {most} or less.")
    return asked or min(DEFAULT_BATCH, most)


def _run(job: EmbeddingJob, items: list[Item], output: Path | None, origin: Origin) -> int:
    """Embed everything, put it where it belongs as it comes, and say what is there. Returns the exit code."""
    file = VectorFile(output, origin, len(items)) if output else None
    shown: list[Embedded] = []
    done, start, code, told = 0, time.perf_counter(), 0, ""
    with Interrupts() as interrupts:
        try:
            with file or nullcontext():
                for batch in terminal.progress(job.run(items), len(items)):
                    with interrupts.held():
                        if file:
                            file.write(batch)
                        elif sys.stdout.isatty():
                            shown += batch
                        else:
                            _print(jsonl(batch, origin))
                        done += len(batch)
                job.client.model()  # the same as at the beginning
                interrupts.hold()
        except (AdapterError, VectorFileError) as error:
            code, told = 1, str(error)
        except KeyboardInterrupt:
            code, told = INTERRUPTED, "Interrupted."
    if shown:
        terminal.show_embedded(shown)
    for failure in [*job.failures, told]:
        if failure:
            terminal.complain(str(failure))
    if job.failures:
        terminal.remark(f"{len(job.failures)} of {len(items)} items were left out.")
    seconds = time.perf_counter() - start
    if file and file.kept:
        of_all = f" of {len(items)}" if done < len(items) else ""
        terminal.remark(f"{done}{of_all} vectors in {file.kept} ({seconds:.1f} s, {done / seconds:.1f}/s).")
    elif code:
        terminal.remark(f"{done} of {len(items)} vectors were written." if done else "Nothing was written.")
    return code or (1 if job.failures else 0)


def _print(content: bytes) -> None:
    try:
        typer.echo(content, nl=False)
    except BrokenPipeError:  # `| head` has what it wants
        raise
    except OSError as error:
        raise VectorFileError(f"Standard output cannot be written ({error.strerror or error}).") from None


@app.command()
def validate(strict: Strict = False, url: Url = DEFAULT_URL) -> None:
    """Check a running server: its contract, its vectors, and whether "red" finds red.

    Embeds the names and the swatches of the eleven basic colours. Exit code 0 when all is well, else 1.

    [bold]Examples[/bold]
      qwen3-vl-embed validate
      qwen3-vl-embed validate --strict --url http://gpu-box:8001
    """
    with sentences(), _client(url) as client:
        validation = validate_server(client, strict)
    terminal.show_validation(validation)
    raise typer.Exit(0 if validation.passed else 1)


@app.command()
def report(
    colours: Colours = None,
    images: ImageFolder = None,
    vectors: Vectors = None,
    output: Folder = None,
    name: Name = None,
    pooling: Pooling = None,
    dimensions: Dimensions = None,
    instruction: Instruction = None,
    option: AnyOption = None,
    batch_size: Annotated[int, option("Most items in a request.", min=1)] = DEFAULT_BATCH,
    text_path: TextPath = TEXT_PATH,
    image_path: ImagePath = IMAGE_PATH,
    input_field: InputField = INPUT_FIELD,
    output_field: OutputField = OUTPUT_FIELD,
    url: Url = DEFAULT_URL,
) -> None:
    """Evaluate a server: do names and swatches (or captions and images) find each other?

    Prints the figures and writes a folder with report.html, report.json, report.tsv and vectors.npz.

    [bold]Examples[/bold]
      qwen3-vl-embed report
      qwen3-vl-embed report --images photos/ --option pooling=mean -o photos-mean
      qwen3-vl-embed report --vectors report-qwen3-vl-color-tiny/vectors.npz
    """
    with sentences():
        try:  # here, so that the other commands run where only the client is installed
            from qwen3_vl_embed.cli import report as evaluation
            from qwen3_vl_embed.cli.report_table import show
        except ModuleNotFoundError as error:
            raise SourceError(f"`report` needs {error.name}, which `make setup` installs.") from None

        options = chosen({"pooling": pooling, "dimensions": dimensions, "instruction": instruction}, option)
        if vectors:
            pairs = evaluation.saved_pairs(vectors, colours or images or options)
        else:
            endpoints = Endpoints(text_path, image_path, input_field, output_field)
            with _client(url, endpoints=endpoints) as client:
                subject = evaluation.subject(colours, images)
                check_folder(output or Path())
                pairs = evaluation.embed_pairs(client, subject, options, batch_size, terminal.progress)
        name = name or evaluation.name_of(pairs)
        folder = output or Path(f"report-{name}")
        show(evaluation.write(pairs, name, folder))
    terminal.remark(f"Written to {folder}: open {folder / 'report.html'} in a browser.")


@app.command()
def info(url: Url = DEFAULT_URL) -> None:
    """Show what a running server serves: checkpoint, dimension, recipe, limits. JSON when piped.

    [bold]Examples[/bold]
      qwen3-vl-embed info
      qwen3-vl-embed info | jq .model.dimension
    """
    with sentences(), _client(url) as client:
        described: Mapping[str, Any] = client.info()
    if sys.stdout.isatty():
        terminal.show_info(described)
    else:
        typer.echo(orjson.dumps(described, option=orjson.OPT_INDENT_2))
