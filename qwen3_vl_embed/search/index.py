"""A folder that is searched: one float32 matrix, mapped into memory, and what its rows are.

Exact up to `ANN_FROM` rows: one matrix-vector product. From there FAISS names candidates, whose cosines are then exact.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from shutil import rmtree
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.files.vectors import check_name, check_room, replacing, told

Kind = Literal["text", "image"]
KINDS: tuple[Kind, Kind] = ("text", "image")
Vector = NDArray[np.float32]  # (D,)
Matrix = NDArray[np.float32]  # (N, D)

ANN_FROM = 200_000  # rows: see docs/log.md, 2026-11-26
ANN = "PCA{},HNSW32,SQ8"  # FAISS's name of it
TRAINED_ON = 10_000  # rows
CANDIDATES = 400  # that FAISS names for one hit of ten, before their exact cosines
BLOCK = 8192  # rows that are read and written together
PRODUCT = 2**26  # cosines that are held at a time
SAMPLE = 1000  # rows of a kind that stand for all of them
LEAST = 20  # rows without which a kind tells nothing about itself


def build(sources: Sequence[Path], folder: Path, ann_from: int = ANN_FROM) -> "Index":
    """Write the index of the part folders and Parquet files of `bulk` and `embed`; an earlier one is replaced.

    Vectors are brought to length 1; rows that failed are left out.

    Raises:
        SourceError: there is nothing to index, it is not ours, or two of them are of different models or recipes.
        VectorFileError: the folder cannot be written.
    """
    check_name(folder)
    files = [file for source in sources for file in _files(source)]
    abouts = [_about(file) for file in files]
    for file, about in zip(files, abouts, strict=True):
        for what in ("model", "options"):
            if (other := _told(about, what)) != (first := _told(abouts[0], what)):
                raise SourceError(
                    f"{files[0]} and {file} differ in their {what} ({first}, {other}): make an index of each."
                )
    starts = list(accumulate((_rows(file) for file in files), initial=0))
    if not starts[-1]:
        raise SourceError(f"{', '.join(map(str, sources))}: there is no vector in it.")
    dimensions = [pq.read_schema(file).field("embedding").type.list_size for file in files]
    for file, dimension in zip(files, dimensions, strict=True):
        if dimension != dimensions[0]:
            raise SourceError(f"{files[0]} has vectors of {dimensions[0]} numbers, and {file} of {dimension}.")
    fresh = folder / ".fresh"  # an earlier index stays until this one is whole, and a page that has it open keeps it
    rmtree(fresh, ignore_errors=True)
    try:
        with told(folder):
            fresh.mkdir(parents=True)
            _write(fresh, files, starts, dimensions[0], abouts[0], ann_from)
            for name in ("index.json", "ann.faiss"):
                (folder / name).unlink(missing_ok=True)
            for path in sorted(fresh.iterdir(), key=lambda path: path.name == "index.json"):
                path.replace(folder / path.name)
    finally:
        rmtree(fresh, ignore_errors=True)
    return Index(folder)


def _write(
    folder: Path, files: Sequence[Path], starts: list[int], dimension: int, about: dict[str, Any], ann_from: int
) -> None:
    """All files of an index. `starts`: of each file's rows, and how many they all are. Raises SourceError, OSError."""
    count = starts[-1]
    vectors: Matrix = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        folder / "vectors.npy", "w+", np.float32, (count, dimension)
    )
    with (folder / "vectors.npy").open("r+b") as reserved:  # a full disk is an error here, and in a mapping SIGBUS
        os.posix_fallocate(reserved.fileno(), 0, (folder / "vectors.npy").stat().st_size)
    check_room(folder, 0)
    rows: list[pa.Table] = []
    for file, start in zip(files, starts, strict=False):
        try:
            rows.append(_copy(file, vectors, start))
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{file} cannot be indexed ({error}).") from None
    try:
        table = pa.concat_tables(rows, promote_options="default")
    except pa.ArrowException as error:
        raise SourceError(f"{files[0]} and what is beside it cannot be indexed together ({error}).") from None
    pq.write_table(table, folder / "rows.parquet", compression="zstd")
    kinds = np.array(table["kind"].to_pylist())
    blocks = [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]
    means: dict[str, NDArray[np.float64]] = {}
    for kind in set(kinds.tolist()):
        sums = [vectors[block][kinds[block] == kind].sum(axis=0, dtype=np.float64) for block in blocks]
        means[kind] = np.sum(sums, axis=0) / (kinds == kind).sum()
    norms = np.empty(count, np.float32)
    for block in blocks:
        norms[block] = np.linalg.norm(vectors[block] - np.array([means[k] for k in kinds[block]], np.float32), axis=1)
    np.savez(folder / "centres.npz", norms=norms, **{kind: mean.astype(np.float32) for kind, mean in means.items()})
    known = {"model": about.get("model", {}), "options": about.get("options", {}), "ann": None}
    if count >= ann_from:
        known["ann"] = _build_ann(vectors, folder / "ann.faiss")
    (folder / "index.json").write_text(json.dumps(known, indent=2))


@dataclass(frozen=True)
class Hit:
    """One row that was found, and its cosine with the query."""

    row: int
    cosine: float


class Index:
    """An index that `build` wrote. Raises SourceError for a folder that holds none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            told = json.loads((folder / "index.json").read_text())
            self.vectors: Matrix = np.load(folder / "vectors.npy", mmap_mode="r")
            self.rows = pq.read_table(folder / "rows.parquet", memory_map=True)
            with np.load(folder / "centres.npz") as file:
                self.centred_norms: Vector = file["norms"]
                self.means: dict[Kind, Vector] = {kind: file[kind] for kind in KINDS if kind in file}
        except (OSError, ValueError, pa.ArrowException) as error:
            how = "qwen3-vl-embed index PARTS --output"
            raise SourceError(f"{folder} holds no index that can be read ({error}): {how} {folder}.") from None
        self.model: dict[str, Any] = told["model"]
        self.options: dict[str, Any] = told["options"]
        self.ann: dict[str, Any] | None = told["ann"]
        self.kinds = np.array(self.rows["kind"].to_pylist())

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    def place(self, row: int) -> Path | None:
        """The file that the row is of, where it is one below the folder that was embedded; None for all others."""
        root, item = self.rows["root"][row].as_py(), self.rows["item"][row].as_py()
        if root is None or self.kinds[row] != "image" or "\0" in item:
            return None
        path = Path(os.path.realpath(Path(root, item)))
        return path if path.is_relative_to(os.path.realpath(root)) and os.path.isfile(path) else None

    def cosines(self, query: Vector, rows: NDArray[np.intp] | slice = slice(None), centred: bool = False) -> Vector:
        """float32 (N,), or of `rows` alone. `centred`: of what is left without the kind's mean, as `query` is."""
        found: Vector = self.vectors[rows] @ query
        if centred:
            for kind, mean in self.means.items():
                found[self.kinds[rows] == kind] -= mean @ query
            found /= np.maximum(self.centred_norms[rows], np.finfo(np.float32).tiny)
        return found

    def nearest(
        self, query: Vector, count: int, centred: bool = False, kind: Kind | None = None, exact: bool = False
    ) -> list[Hit]:
        """The rows with the largest cosines, largest first. `query`: float32 (D,), of length 1.

        Centred cosines have another order than those by which candidates are named, so they are always exact. So are
        those of a kind that has fewer candidates than are asked for.
        """
        rows: NDArray[np.intp] | slice = slice(None)
        if self._ann is not None and not (exact or centred):
            named = self._ann.search(query[None], max(CANDIDATES, 40 * count))[1][0]
            named = np.sort(named[named >= 0])
            if kind is None or (self.kinds[named] == kind).sum() >= count:
                rows = named
        found = self.cosines(query, rows, centred)
        if kind is not None:
            found[self.kinds[rows] != kind] = -np.inf
        count = min(count, int(np.isfinite(found).sum()))
        if not count:
            return []
        best = np.argpartition(-found, count - 1)[:count]
        best = best[np.argsort(-found[best], kind="stable")]
        numbers = best if isinstance(rows, slice) else rows[best]
        return [Hit(int(row), float(cosine)) for row, cosine in zip(numbers, found[best], strict=True)]

    def sample(self, kind: Kind) -> Matrix | None:
        """Up to SAMPLE rows of a kind, in no order; None where there are too few to speak for it."""
        rows = np.flatnonzero(self.kinds == kind)
        if len(rows) < LEAST:
            return None
        rng = np.random.default_rng(0)
        chosen: Matrix = np.array(self.vectors[np.sort(rng.choice(rows, min(SAMPLE, len(rows)), replace=False))])
        rng.shuffle(chosen)
        return chosen

    def duplicates(self, least: float, most: int = 1000) -> list[list[int]]:
        """Groups of rows of one kind, each with a cosine of `least` to another of its group; the largest first."""
        group = list(range(len(self)))

        def first(row: int) -> int:
            while group[row] != row:
                group[row] = row = group[group[row]]
            return row

        step = max(1, min(BLOCK, PRODUCT // len(self)))
        for start in range(0, len(self), step):
            cosines = self.vectors[start : start + step] @ self.vectors[start:].T
            for one, other in zip(*np.nonzero(cosines >= least), strict=True):
                a, b = start + int(one), start + int(other)
                if a < b and self.kinds[a] == self.kinds[b]:
                    group[first(b)] = first(a)
        groups: dict[int, list[int]] = {}
        for row in range(len(self)):
            groups.setdefault(first(row), []).append(row)
        return sorted((rows for rows in groups.values() if len(rows) > 1), key=len, reverse=True)[:most]

    @cached_property
    def _ann(self) -> Any:
        if self.ann is None:
            return None
        import faiss

        return faiss.read_index(str(self.folder / "ann.faiss"), faiss.IO_FLAG_MMAP)


def to_faiss(index: Index, path: Path) -> None:
    """A flat FAISS index of inner products, which are cosines; row i is row i of rows.parquet.

    Raises VectorFileError.
    """
    import faiss

    flat = faiss.IndexFlatIP(index.dimension)
    for block in _blocks(index.vectors):
        flat.add(block)
    with replacing(path) as file:
        _write_faiss(flat, file)


def _write_faiss(index: Any, file: IO[bytes]) -> None:
    """Whose errors are OSErrors; FAISS's own are sentences about its source."""
    import faiss

    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def to_lancedb(index: Index, path: Path, table: str = "vectors") -> None:
    """A LanceDB table with the column `vector` and all columns of the rows. Raises VectorFileError."""
    import lancedb

    vector = pa.list_(pa.float32(), index.dimension)
    columns = pa.schema([*index.rows.schema.remove_metadata(), pa.field("vector", vector)])

    def batches() -> Iterator[pa.RecordBatch]:
        for start, block in zip(range(0, len(index), BLOCK), _blocks(index.vectors), strict=True):
            rows = index.rows.slice(start, len(block)).combine_chunks()
            lists = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), index.dimension)
            yield from rows.append_column("vector", lists).cast(columns).to_batches()

    try:
        lancedb.connect(path).create_table(table, batches(), schema=columns, mode="overwrite")
    except (OSError, RuntimeError, ValueError) as error:  # it raises all three for a disk that is full or closed
        raise VectorFileError(f"{path} cannot be written ({error}).") from None


def _blocks(vectors: Matrix) -> Iterator[Matrix]:
    for start in range(0, len(vectors), BLOCK):
        yield np.ascontiguousarray(vectors[start : start + BLOCK])


def _files(source: Path) -> list[Path]:
    files = sorted(source.glob("part-*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise SourceError(f"{source} is no folder of part files, and no Parquet file.")
    return files


def _about(file: Path) -> dict[str, Any]:
    try:
        held = pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException) as error:  # the second of a name that is not UTF-8
        raise SourceError(f"{file} cannot be read ({error}).") from None
    if "embedding" not in held.names or not _is_vector(held.field("embedding").type):
        raise SourceError(f"{file} has no vectors in a column `embedding`, as `bulk` and `embed` write them.")
    for name in ("kind", "item"):
        if name not in held.names or not pa.types.is_string(held.field(name).type):
            raise SourceError(f"{file} has no strings in a column `{name}`, as `bulk` and `embed` write them.")
    for name in ("root", "vector"):
        if name in held.names:
            raise SourceError(f"{file} has a column `{name}`, which an index has of its own: rename it.")
    try:
        about = json.loads((held.metadata or {}).get(b"about", b"{}"))
    except ValueError:
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("model", {}), dict):
        raise SourceError(f"{file} does not say what made it as `bulk` and `embed` do: its `about` is no JSON object.")
    return about


def _is_vector(type: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(type) and pa.types.is_floating(type.value_type))


def _told(about: dict[str, Any], what: str) -> Any:
    return about.get("model", {}).get("id") if what == "model" else about.get(what)


def _rows(file: Path) -> int:
    """How many of its rows have a vector."""
    held = pq.ParquetFile(file)
    if "error" not in held.schema_arrow.names:
        return int(held.metadata.num_rows)
    return sum(batch["error"].null_count for batch in held.iter_batches(columns=["error"]))


def _copy(file: Path, vectors: Matrix, start: int) -> pa.Table:
    """The file's vectors to their place, of length 1; the other columns, with the folder that its paths begin in."""
    held = pq.ParquetFile(file)
    root = (held.schema_arrow.metadata or {}).get(b"source")
    rows: list[pa.Table] = []
    for batch in held.iter_batches(BLOCK):
        table = pa.table(batch)
        if "error" in table.column_names:
            table = table.filter(pc.is_null(table["error"])).drop_columns(["error"])
        for name in ("kind", "item", "embedding"):
            if table[name].null_count:
                raise SourceError(f"{file} has a row without {name}.")
        if odd := set(table["kind"].unique().to_pylist()) - set(KINDS):
            raise SourceError(f"{file} has a row of the kind {odd.pop()}; the kinds are {' and '.join(KINDS)}.")
        if len(table):
            flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            block = flat.reshape(len(table), -1).astype(np.float32)
            if not np.isfinite(block).all():
                raise SourceError(f"{file} holds a vector with a number that is none.")
            if not block.any(axis=1).all():
                raise SourceError(f"{file} holds a vector of zeros, which has no direction.")
            vectors[start : start + len(table)] = unit(block)
            start += len(table)
        table = table.drop_columns(["embedding"])
        if "id" not in table.column_names:
            table = table.add_column(0, "id", table["item"])
        ids = pc.coalesce(table["id"].cast(pa.string()), table["item"])
        table = table.set_column(table.column_names.index("id"), "id", ids)
        where = pa.array([root.decode(errors="replace") if root else None] * len(table), pa.string())
        rows.append(table.append_column("root", where))
    return pa.concat_tables(rows).replace_schema_metadata(None)


def unit(vectors: Matrix) -> Matrix:
    """Rows of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)  # where squares of float32 fit
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float64).tiny), np.float32)


def _build_ann(vectors: Matrix, path: Path) -> dict[str, Any]:
    """An index that names candidates; and its recall, the share of the true first ten, over 50 rows as queries."""
    import faiss

    rng = np.random.default_rng(0)
    count, dimension = vectors.shape
    fast = faiss.index_factory(dimension, ANN.format(min(256, dimension)))  # by distance: the order of cosines
    fast.train(vectors[np.sort(rng.choice(count, min(count, TRAINED_ON), replace=False))])
    for block in _blocks(vectors):
        fast.add(block)
    faiss.ParameterSpace().set_index_parameter(fast, "efSearch", CANDIDATES)  # its own 16 misses half of them
    with path.open("wb") as file:
        _write_faiss(fast, file)
    found = 0
    queries = np.array(vectors[np.sort(rng.choice(count, 50, replace=False))])
    truth = np.argpartition(-(vectors @ queries.T), 10, axis=0)[:10]
    for query, true in zip(queries, truth.T, strict=True):
        named = fast.search(query[None], CANDIDATES)[1][0]
        best = named[np.argsort(-(vectors[named] @ query))[:10]]
        found += len(np.intersect1d(best, true))
    return {"kind": ANN.format(min(256, dimension)), "recall": found / 500}
