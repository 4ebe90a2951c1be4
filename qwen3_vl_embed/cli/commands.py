"""The commands that talk to a running server, and the one that runs it: serve, embed, validate, report, size, info.

Thin: they read options and call the modules that do the work, which they import themselves: `--help` waits for none.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.app import app, from_checkout, installed, option
from qwen3_vl_embed.cli.recipe import chosen, with_flags
from qwen3_vl_embed.contract import IMAGE_PATH, INPUT_FIELD, OUTPUT_FIELD, TEXT_PATH, Endpoints
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.settings import BATCH, DEFAULT_URL, RETRY_FOR_S, URL

if TYPE_CHECKING:
    from qwen3_vl_embed.client import Client

INPUTS, OUTPUT, RECIPE = "More inputs", "Output", "Recipe (what is left out stays as the server is set)"
SUBJECT, SCHEMA = "What to embed (left out, the 949 colours)", "Another server of the benchmark's schema"

Url = Annotated[str, option("Where the server answers.", envvar=URL)]
Words = Annotated[list[str] | None, typer.Argument(help="Texts, image files, folders of images, - for stdin's lines.")]
Texts = Annotated[list[str] | None, option("A text, whatever it looks like.", panel=INPUTS)]
Images = Annotated[list[Path] | None, option("An image file, whatever its name.", panel=INPUTS)]
Csv = Annotated[Path | None, option("A CSV file with a line of headings.", panel=INPUTS)]
Column = Annotated[str | None, option("The heading of the column of --csv to embed.", panel=INPUTS)]
Output = Annotated[Path | None, option("A .npz, .npy, .parquet or .jsonl file.", "--output", "-o", panel=OUTPUT)]
SkipErrors = Annotated[bool, typer.Option("--skip-errors", hidden=True)]  # which is what happens without it
BatchSize = Annotated[int | None, option(f"Items in a request; left out, at most {BATCH}.", min=1)]
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
    with from_checkout("serve"):
        from qwen3_vl_embed.serving.__main__ import main
    for name, value in {"CHECKPOINT": checkpoint, "SERVE_PORT": port}.items():
        if value is not None:
            os.environ[name] = str(value)
    raise typer.Exit(main())


@app.command()
@with_flags(RECIPE)
def embed(
    words: Words = None,
    text: Texts = None,
    image: Images = None,
    csv: Csv = None,
    column: Column = None,
    output: Output = None,
    skip_errors: SkipErrors = False,
    option: AnyOption = None,
    batch_size: BatchSize = None,
    retry_seconds: RetrySeconds = RETRY_FOR_S,
    url: Url = DEFAULT_URL,
    **flags: Any,
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
      qwen3-vl-embed embed red --prompt colour --layer -2
    """
    with connected(url, retry_seconds) as client:
        from qwen3_vl_embed.cli import embed as embedding
        from qwen3_vl_embed.cli import job
        from qwen3_vl_embed.files.vectors import check_writable

        if output:
            check_writable(output)
        found = embedding.found(words or [], text or [], image or [], csv, column)
        size = embedding.batch_size(client, batch_size)
        job.leave(embedding.run(client, found, chosen(flags, option), size, output))


def connected(url: str, retry_seconds: float = RETRY_FOR_S, endpoints: Endpoints | None = None) -> "Client":
    """A client that says on stderr when its server is away. Raises AdapterError."""
    from qwen3_vl_embed.client import Client

    return Client(url, retry_for_s=retry_seconds, endpoints=endpoints, notify=terminal.remark)


@app.command()
def validate(strict: Strict = False, url: Url = DEFAULT_URL) -> None:
    """Check a running server: its contract, its vectors, and whether "red" finds red.

    Embeds the names and the swatches of the eleven basic colours. Exit code 0 when all is well, else 1.

    [bold]Examples[/bold]
      qwen3-vl-embed validate
      qwen3-vl-embed validate --strict --url http://gpu-box:8001
    """
    with connected(url) as client:
        from qwen3_vl_embed.cli.tables import show_validation
        from qwen3_vl_embed.cli.validation import validate as validate_server

        validation = validate_server(client, strict)
    show_validation(validation)
    raise typer.Exit(0 if validation.passed else 1)


@app.command()
@with_flags(RECIPE)
def report(
    colours: Colours = None,
    images: ImageFolder = None,
    vectors: Vectors = None,
    output: Folder = None,
    name: Name = None,
    option: AnyOption = None,
    batch_size: Annotated[int, option("Most items in a request.", min=1)] = BATCH,
    text_path: TextPath = TEXT_PATH,
    image_path: ImagePath = IMAGE_PATH,
    input_field: InputField = INPUT_FIELD,
    output_field: OutputField = OUTPUT_FIELD,
    url: Url = DEFAULT_URL,
    **flags: Any,
) -> None:
    """Evaluate a server: do names and swatches (or captions and images) find each other?

    Prints the figures and writes a folder with report.html, report.json, report.tsv and vectors.npz.

    [bold]Examples[/bold]
      qwen3-vl-embed report
      qwen3-vl-embed report --images photos/ --pooling mean -o photos-mean
      qwen3-vl-embed report --vectors report-qwen3-vl-color-tiny/vectors.npz
    """
    with installed("report", "evaluation"):
        from qwen3_vl_embed.cli import report as evaluation
        from qwen3_vl_embed.files.vectors import check_folder

    options = chosen(flags, option)
    if vectors:
        pairs = evaluation.saved_pairs(vectors, colours or images or options)
    else:
        endpoints = Endpoints(text_path, image_path, input_field, output_field)
        with connected(url, endpoints=endpoints) as client:
            subject = evaluation.subject(colours, images)
            check_folder(output or Path())
            pairs = evaluation.embed_pairs(client, endpoints, subject, options, batch_size)
    name = name or evaluation.name_of(pairs)
    folder = output or Path(f"report-{name.replace('/', '-')}")
    evaluation.show(evaluation.write(pairs, name, folder))
    terminal.remark(f"Written to {folder}: open {folder / 'report.html'} in a browser.")


@app.command()
def size(
    rate: Annotated[float, option("Items a second, each a request that comes at random.", min=0.001, max=1e9)],
    p99: Annotated[float, option("Seconds within which 99 of 100 are to be answered.", min=0.001, max=86400)] = 1.0,
    side: Annotated[int, option("Of the pictures that are sent, in pixels.", min=32, max=4096)] = 244,
    words: Annotated[int, option("Send texts of so many words instead.", min=0, max=1_000_000)] = 0,
    total: Annotated[float, option("Items in all: how long do they take?", min=0, max=1e15)] = 0,
    seconds: Annotated[float, option("To measure each number of callers for.", min=0.1, max=3600)] = 5.0,
    passes: Annotated[str | None, option("Seconds of a pass by its items, as measured before; asks no server.")] = None,
    delay: Annotated[float, option("Seconds of a request beside its pass, with --passes.", min=0, max=86400)] = 0.0,
    seed: Annotated[int, option("The same seed gives the same arrivals.", min=0)] = 0,
    url: Url = DEFAULT_URL,
) -> None:
    """How many GPUs for so many items a second? Measures a server that has one and nothing else to do, and simulates.

    The server is asked by 1 to 128 callers at once, for half a minute in all. Measure with what you will send.

    [bold]Examples[/bold]
      qwen3-vl-embed size --rate 500 --p99 0.5
      qwen3-vl-embed size --rate 20 --p99 2 --side 1024 --total 1e9 --url http://gpu-box:8001
      qwen3-vl-embed size --rate 500 --p99 0.5 --passes 1:0.005,64:0.126
    """
    import asyncio

    from qwen3_vl_embed.cli import size as sizing
    from qwen3_vl_embed.sizing import needed

    if passes is not None:
        times = sizing.read(passes, delay)
    else:
        times = asyncio.run(sizing.measure(url, sizing.items(side, words), seconds))
    try:
        fleets = needed(times, rate, p99, seed)
    except ValueError as error:
        raise SourceError(str(error)) from None
    sizing.show_times(times)
    sizing.show(times, fleets, rate, p99)
    if total:
        sizing.show_total(times, total, fleets[-1].gpus if fleets else 1)
    raise typer.Exit(0 if fleets else 1)


@app.command()
def info(url: Url = DEFAULT_URL) -> None:
    """Show what a running server serves: checkpoint, dimension, recipe, limits. JSON when piped.

    [bold]Examples[/bold]
      qwen3-vl-embed info
      qwen3-vl-embed info | jq .model.dimension
    """
    with connected(url) as client:
        described: Mapping[str, Any] = client.info()
    if sys.stdout.isatty():
        terminal.show_info(described)
    else:
        import orjson

        typer.echo(orjson.dumps(described, option=orjson.OPT_INDENT_2))
