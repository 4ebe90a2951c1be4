"""From how many rows an approximate index pays, and what FAISS and LanceDB take for the same, in one run.

    python -m lab.search --rows 1000 --rows 50000 --rows 500000 --dimension 2560

The vectors are synthetic: 200 clusters whose centres and spread lie in 64 directions of falling weight, around a common
direction, and noise in all. Queries are further ones of the same kind, and no rows. Ten hits are asked for. A time is
the median of the queries' own, one after the other.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import faiss
import lancedb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from qwen3_vl_embed.search.index import BLOCK, build, to_faiss, to_lancedb

QUERIES, HITS, DIRECTIONS, CLUSTERS = 40, 10, 64, 200
app = typer.Typer(add_completion=False)
console = Console()


class Source:
    """Rows of length 1, float32 (N, D)."""

    def __init__(self, dimension: int) -> None:
        self._rng = np.random.default_rng(0)
        weights = np.arange(1, DIRECTIONS + 1)[:, None] ** -0.5
        self._basis = (self._rng.normal(size=(DIRECTIONS, dimension)) * weights).astype(np.float32)
        self._centres = self._rng.normal(size=(CLUSTERS, DIRECTIONS)).astype(np.float32)
        self._common = self._rng.normal(size=dimension).astype(np.float32)

    def rows(self, count: int) -> np.ndarray:
        """The next ones."""
        near = self._centres[self._rng.integers(0, CLUSTERS, count)]
        few = near + 0.5 * self._rng.standard_normal(near.shape, np.float32)
        noise = self._rng.standard_normal((count, len(self._common)), np.float32)
        vectors = few @ self._basis + self._common + 0.3 * noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def written(source: Source, count: int, path: Path) -> None:
    """As `bulk` writes its parts."""
    about = orjson.dumps({"model": {"id": "synthetic"}, "options": {}})
    columns = {"id": pa.string(), "kind": pa.string(), "item": pa.string()}
    dimension = source.rows(1).shape[1]
    schema = pa.schema([*columns.items(), ("embedding", pa.list_(pa.float32(), dimension))], {"about": about})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, BLOCK):
            block = source.rows(min(BLOCK, count - start))
            names = [str(start + number) for number in range(len(block))]
            lists = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dimension)
            writer.write_table(pa.table([names, ["image"] * len(block), names, lists], schema))


def timed(search: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[str, list]:
    """Median milliseconds of a query, and what each found; one goes before, which brings the rows into memory."""
    search(queries[0])
    took, found = [], []
    for query in queries:
        started = perf_counter()
        found.append(search(query))
        took.append(perf_counter() - started)
    median = np.median(took) * 1e3
    return f"{median:.3g}" if median < 100 else f"{median:,.0f}", found


def measured(source: Source, count: int, place: Path) -> list[str]:
    """The cells of a row of the table."""
    parts = place / "part.parquet"
    written(source, count, parts)
    started = perf_counter()
    index = build([parts], place / "index", ann_from=1)
    built = perf_counter() - started
    assert index.ann is not None
    parts.unlink()
    queries = source.rows(QUERIES)
    exact, true = timed(lambda query: index.nearest(query, HITS, exact=True), queries)
    near, found = timed(lambda query: index.nearest(query, HITS), queries)
    both = zip(true, found, strict=True)
    recall = np.mean([len({hit.row for hit in a} & {hit.row for hit in b}) / HITS for a, b in both])
    to_lancedb(index, place / "lancedb")
    table: Any = lancedb.connect(place / "lancedb").open_table("vectors")
    lance, _ = timed(lambda query: table.search(query).distance_type("dot").limit(HITS).to_arrow(), queries)
    to_faiss(index, place / "flat")
    flat = faiss.read_index(str(place / "flat"))
    theirs, _ = timed(lambda query: flat.search(query[None], HITS), queries)
    return [f"{count:,}", exact, theirs, lance, near, f"{built:.0f}", f"{recall:.3f}", f"{index.ann['recall']:.3f}"]


@app.command(epilog="Example: python -m lab.search --rows 1000 --rows 50000")
def main(
    rows: Annotated[list[int], typer.Option(help="Of the index; may be given more than once.")] = [100_000],  # noqa: B006
    dimension: int = 2560,
) -> None:
    """Print a row for each number of rows."""
    titles = "rows", "exact ms", "FAISS flat ms", "LanceDB flat ms", "approximate ms", "built in s", "recall of ten"
    drawn = Table(*titles, "its own word")
    for count in rows:
        with tempfile.TemporaryDirectory() as place:
            drawn.add_row(*measured(Source(dimension), count, Path(place)))
        console.print(drawn)


if __name__ == "__main__":
    app()
