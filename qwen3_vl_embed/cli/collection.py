"""The commands for many: bulk, index and search. They import their work when they run: it needs pyarrow."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwen3_vl_embed.cli.app import app, installed, option, sentences
from qwen3_vl_embed.cli.commands import (
    AnyOption,
    BatchSize,
    Dimensions,
    Instruction,
    MaxPixels,
    MinPixels,
    Normalize,
    Pooling,
    RetrySeconds,
)
from qwen3_vl_embed.settings import DEFAULT_URL, RETRY_FOR_S, URL

COLUMNS, SEVERAL = "Columns of a table, or endings of a tar file's samples", "Several machines"

SourceName = Annotated[
    str, typer.Argument(help="A folder, a glob, a .tar, .parquet, .csv, .jsonl or .txt file, or a URL.")
]
Parts = Annotated[Path, option("The folder of part files; one that is there goes on.", "--output", "-o")]
TextColumn = Annotated[str | None, option("Its texts are embedded.", panel=COLUMNS)]
ImageColumn = Annotated[str | None, option("Its images: bytes, paths, URLs or {bytes, path}.", panel=COLUMNS)]
IdColumn = Annotated[str | None, option("Tells rows apart; left out, `id`, or file and row.", "--id", panel=COLUMNS)]
VectorType = Annotated[str, option("float32 or float16.")]
RetryFailed = Annotated[bool, option("Rows that failed before are embedded again.", "--retry-failed")]
InFlight = Annotated[int, option("Requests under way at a time.", min=1)]
Urls = Annotated[list[str], option("Where servers answer; several with --ray.", "--url", envvar=URL)]
Ray = Annotated[str | None, option("A Ray cluster: its address, auto, or local.", panel=SEVERAL)]
Workers = Annotated[int, option("Actors; each asks one server at a time.", min=1, panel=SEVERAL)]
LocalModel = Annotated[str | None, option("A checkpoint in each actor, instead of servers.", panel=SEVERAL)]


@app.command()
def bulk(
    source: SourceName,
    output: Parts,
    text: TextColumn = None,
    image: ImageColumn = None,
    id: IdColumn = None,
    dtype: VectorType = "float32",
    retry_failed: RetryFailed = False,
    pooling: Pooling = None,
    dimensions: Dimensions = None,
    normalize: Normalize = None,
    instruction: Instruction = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    option: AnyOption = None,
    batch_size: BatchSize = None,
    in_flight: InFlight = 4,
    ray: Ray = None,
    workers: Workers = 2,
    local_model: LocalModel = None,
    retry_seconds: RetrySeconds = RETRY_FOR_S,
    url: Urls = [DEFAULT_URL],  # noqa: B006  (typer copies it)
) -> None:
    """Embed as much as there is, into a folder of Parquet files that is also the job's checkpoint.

    What is there already is not embedded again, so the same command goes on after anything that ended it. A row that
    cannot be embedded is a row with its error. Exit code 0 when the folder holds all rows and none failed.

    [bold]Examples[/bold]
      qwen3-vl-embed bulk photos/ -o vectors/
      qwen3-vl-embed bulk "shards/*.tar" -o vectors/
      qwen3-vl-embed bulk products.parquet --image picture --id sku -o vectors/
      qwen3-vl-embed bulk s3://bucket/captions.jsonl --text caption -o vectors/ --ray auto --url http://a:8001 --url http://b:8001
    """
    flags = {
        "pooling": pooling,
        "dimensions": dimensions,
        "normalize": normalize,
        "instruction": instruction,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
    }
    with sentences():
        with installed("bulk", "bulk"):
            from qwen3_vl_embed.bulk.job import Means
            from qwen3_vl_embed.bulk.sources import Columns, opened
            from qwen3_vl_embed.cli import bulk as bulk_job
            from qwen3_vl_embed.cli.errors import SourceError
            from qwen3_vl_embed.cli.recipe import chosen
        if ray:
            with installed("bulk --ray", "ray"):
                import ray as _  # noqa: F401
        if dtype not in ("float32", "float16"):
            raise SourceError(f"--dtype {dtype} is neither float32 nor float16.")
        if text and image:
            raise SourceError("Either --text or --image: a row has one vector.")
        if len(url) > 1 and not ray:
            raise SourceError("Several servers are asked by Ray: --ray local.")
        means = Means(tuple(url), local_model, retry_seconds, batch_size, in_flight, chosen(flags, option))
        columns = Columns(text, image, id)
        code = bulk_job.run(opened(source, columns), output, means, dtype, retry_failed, ray, workers)
        if code == bulk_job.INTERRUPTED:
            sys.stdout.flush()
            os._exit(code)  # nobody waits for the answers that are still on their way
    raise typer.Exit(code)
