"""The commands for many: bulk, index and search. They import their work when they run: it needs pyarrow."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3_vl_embed.cli.app import app, installed, option
from qwen3_vl_embed.cli.commands import RECIPE, AnyOption, BatchSize, RetrySeconds, connected
from qwen3_vl_embed.cli.recipe import chosen, with_flags
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.settings import DEFAULT_URL, RETRY_FOR_S, URL

EXPORT, QUERY = "Exports", "Query"
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

Sources = Annotated[list[Path], typer.Argument(help="Folders of part files, or .parquet files of `embed`.")]
IndexFolder = Annotated[Path, option("The folder of the index.", "--output", "-o")]
Faiss = Annotated[Path | None, option("Write a flat FAISS index too.", panel=EXPORT)]
LanceDb = Annotated[Path | None, option("Write a LanceDB table `vectors` into this folder too.", panel=EXPORT)]
Words = Annotated[str | None, typer.Argument(help="What to look for, in words.")]
Searched = Annotated[Path, option("The folder of the index.", "--index", "-i")]
Image = Annotated[Path | None, option("A picture to look for; with words, both.", panel=QUERY)]
Colour = Annotated[str | None, option("A colour to look for, like #5a9e97.", panel=QUERY)]
Like = Annotated[str | None, option("The id of a row: more like it.", panel=QUERY)]
Without = Annotated[str, option("Words that it is not about.", "--not", panel=QUERY)]
Share = Annotated[float, option("Share of the words beside a picture.", "--words", min=0, max=1, panel=QUERY)]
Centred = Annotated[bool, option("Without what all texts, or all pictures, have in common.", "--centred", panel=QUERY)]
Count = Annotated[int, option("How many.", "--count", "-n", min=1)]
Exact = Annotated[bool, option("Compare with every row, however many they are.", "--exact")]
Duplicates = Annotated[float | None, option("Rows with at least this cosine, instead of a query.", min=0.5, max=1)]
ShowPage = Annotated[bool, option("Serve the search page, until Ctrl-C.", "--page")]
PagePort = Annotated[int, option("Where the page is.", "--port", min=0, max=65535)]
PageHost = Annotated[str, option("Who may open it: 0.0.0.0 for every machine.", "--host")]


@app.command()
@with_flags(RECIPE)
def bulk(
    source: SourceName,
    output: Parts,
    text: TextColumn = None,
    image: ImageColumn = None,
    id: IdColumn = None,
    dtype: VectorType = "float32",
    retry_failed: RetryFailed = False,
    option: AnyOption = None,
    batch_size: BatchSize = None,
    in_flight: InFlight = 4,
    ray: Ray = None,
    workers: Workers = 2,
    local_model: LocalModel = None,
    retry_seconds: RetrySeconds = RETRY_FOR_S,
    url: Urls = [DEFAULT_URL],  # noqa: B006  (typer copies it)
    **flags: Any,
) -> None:
    """Embed as much as there is, into a folder of Parquet files that is also the job's checkpoint.

    What is there already is not embedded again, so the same command goes on after anything that ended it. A row that
    cannot be embedded is a row with its error. Exit code 0 when the folder holds all rows and none failed.

    [bold]Examples[/bold]
      qwen3-vl-embed bulk photos/ -o vectors/
      qwen3-vl-embed bulk "shards/*.tar" -o vectors/
      qwen3-vl-embed bulk products.parquet --image picture --id sku -o vectors/
      qwen3-vl-embed bulk s3://bucket/captions.jsonl --text caption -o vectors/
      qwen3-vl-embed bulk photos/ -o vectors/ --ray auto --url http://a:8001 --url http://b:8001
    """
    with installed("bulk", "bulk"):
        from qwen3_vl_embed.bulk.job import Means
        from qwen3_vl_embed.bulk.sources import Columns, opened
        from qwen3_vl_embed.cli import bulk as bulk_job
        from qwen3_vl_embed.cli import job
    if ray and not find_spec("ray"):
        raise SourceError("`bulk --ray` needs ray: pip install 'qwen3-vl-embed[ray]'.")
    if local_model:
        with installed("bulk --local-model", "local"):
            from qwen3_vl_embed.bulk import local  # noqa: F401
    if dtype not in ("float32", "float16"):
        raise SourceError(f"--dtype {dtype} is neither float32 nor float16.")
    if text and image:
        raise SourceError("Either --text or --image: a row has one vector.")
    if len(url) > 1 and not ray:
        raise SourceError("Several servers are asked by Ray: --ray local.")
    means = Means(tuple(url), local_model, retry_seconds, batch_size, in_flight, chosen(flags, option))
    columns = Columns(text, image, id)
    job.leave(bulk_job.run(opened(source, columns), output, means, dtype, retry_failed, ray, workers))


@app.command()
def index(sources: Sources, output: IndexFolder = Path("index"), faiss: Faiss = None, lancedb: LanceDb = None) -> None:
    """Make vectors searchable: what `bulk` or `embed -o x.parquet` wrote, of one model and one recipe.

    [bold]Examples[/bold]
      qwen3-vl-embed index vectors/
      qwen3-vl-embed index photos/ captions.parquet -o both --lancedb both.lancedb
    """
    with installed("index", "search"):
        from qwen3_vl_embed.cli.search import make_index

    make_index(sources, output, faiss, lancedb)


@app.command()
def search(
    text: Words = None,
    index: Searched = Path("index"),
    image: Image = None,
    colour: Colour = None,
    like: Like = None,
    without: Without = "",
    words: Share = 0.5,
    centred: Centred = False,
    count: Count = 10,
    exact: Exact = False,
    duplicates: Duplicates = None,
    page: ShowPage = False,
    port: PagePort = 8009,
    host: PageHost = "127.0.0.1",
    retry_seconds: RetrySeconds = 5.0,
    url: Annotated[str, option("Where the server answers that made the vectors.", envvar=URL)] = DEFAULT_URL,
) -> None:
    """Search an index by words, a picture, a colour or a row of it; on the terminal, as JSON lines, or on a page.

    The percentile says what a cosine means: the share of random pairs of the same two kinds with a smaller one.

    [bold]Examples[/bold]
      qwen3-vl-embed search "dusty teal"
      qwen3-vl-embed search "a beach" --image photo.jpg --words 0.3 --not people
      qwen3-vl-embed search --page
    """
    with installed("search", "search"):
        from qwen3_vl_embed.cli import search as searching
        from qwen3_vl_embed.search.index import Index
        from qwen3_vl_embed.search.queries import Searcher

    with connected(url, retry_seconds) as client:
        searcher = Searcher(Index(index), client)
        if page:
            searching.serve(searcher, host, port)
        elif duplicates is not None:
            searching.show_duplicates(searcher.index, duplicates)
        else:
            query = searching.query(searcher.index, text, image, colour, like, without, words, centred)
            searching.show(searcher, query, count, exact)
