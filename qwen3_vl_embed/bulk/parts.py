"""A folder of part files, `part-*.parquet`, which are the job's output and all that it remembers.

A part is written under a name that begins with a dot and renamed when it is whole, so what can be seen is complete. A
process that is killed loses the part that it was writing.
"""

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qwen3_vl_embed.bulk.sources import Row, unsigned
from qwen3_vl_embed.errors import AdapterError, ItemError
from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.files.sources import Skipped
from qwen3_vl_embed.files.vectors import Origin, check_name, check_room, differences, told
from qwen3_vl_embed.items import Embedded, Item, writable

Result: TypeAlias = Embedded | ItemError
PART_ROWS = 8192
PART_SECONDS = 60.0  # and no longer: that is what a `kill -9` costs
GROUP_ROWS = 1024  # rows that are held before they are written
OURS = ("id", "kind", "item", "embedding", "error", "tokens")
INDEXED = ("root", "vector")  # columns that an index, and its export, adds to these
VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
MERGE = 65_536  # new ids that are kept apart from the sorted ones


def schema(dimension: int, dtype: str, carried: pa.Schema, root: str | None = None, source: str = "") -> pa.Schema:
    """The columns of a part.

    `id`; `kind`, "text" or "image"; `item`, the text, or where the image is. `embedding`, a fixed-size list of D
    numbers, or of D nulls where there is an `error`. `tokens`, null where the server does not say. Then what is carried
    over, under a name that begins with `source_` where it would be one of these. Metadata: `root`, where paths of items
    begin, as `source`; and `source`, whose rows they are, as `rows_of`.
    """
    vector = pa.list_(pa.field("element", VECTOR_TYPES[dtype]), dimension)
    types = (pa.string(), pa.string(), pa.string(), vector, pa.string(), pa.int32())
    others = [
        pa.field(f"source_{each.name}" if each.name in (*OURS, *INDEXED) else each.name, each.type) for each in carried
    ]
    for each, other in zip(carried, others, strict=True):
        if each.name != other.name in carried.names:
            raise SourceError(f"The columns {each.name} and {other.name} would have one name: rename one of them.")
    told = {"source": root, "rows_of": source}
    return pa.schema([*map(pa.field, OURS, types), *others], {name: value for name, value in told.items() if value})


class Ids:
    """A set of ids that takes 8 bytes for each: of two that differ, one in 2⁶⁴ is taken for the other."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._sorted = np.fromiter(map(_digest, ids), np.uint64)
        self._sorted.sort()
        self._new = set[int]()

    def __contains__(self, id: str) -> bool:
        digest = _digest(id)
        place = int(np.searchsorted(self._sorted, np.uint64(digest)))
        return digest in self._new or (place < len(self._sorted) and int(self._sorted[place]) == digest)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._new)

    def add(self, id: str) -> None:
        self._new.add(_digest(id))
        if len(self._new) == MERGE:
            self._sorted = np.concatenate([self._sorted, np.fromiter(self._new, np.uint64)])
            self._sorted.sort(kind="stable")
            self._new.clear()


@dataclass(frozen=True)
class Held:
    """The rows of a folder: their ids, and each with what was embedded. Takes 16 bytes for each."""

    ids: Ids = field(default_factory=Ids)
    rows: Ids = field(default_factory=Ids)


@dataclass(frozen=True)
class Folder:
    """Where the parts are."""

    path: Path

    def parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.parquet"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one job at a time; what a killed one was writing is thrown away. Raises SourceError, VectorFileError."""
        check_name(self.path)
        with told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SourceError(f"Another job is writing into {self.path}.") from None
            for unfinished in self.path.glob(".part-*"):
                unfinished.unlink()
            yield
        finally:
            os.close(lock)

    def check(self, origin: Origin, wanted: pa.Schema) -> None:
        """Raises SourceError where the parts are of another model, other options or other columns."""
        for part in self.parts()[:1]:
            with _read(part) as file:
                held = file.schema_arrow
            about = _about(held)
            made = about.get("model", {})
            if made.get("id") != origin.model.get("id"):
                names = [f"{each.get('checkpoint')} ({each.get('id')})" for each in (made, origin.model)]
                how = f"which differs in {differences(made, origin.model)}"
                raise _other(self.path, f"vectors of {names[0]}, and {names[1]} answers now, {how}")
            if about.get("options") != origin.options:
                raise _other(self.path, f"vectors made with the options {about.get('options')}, not {origin.options}")
            sources = [(each.metadata or {}).get(b"rows_of", b"").decode() for each in (held, wanted)]
            if all(sources) and sources[0] != sources[1]:
                raise _other(self.path, f"the rows of {sources[0]}, not of {sources[1]}")
            if not held.remove_metadata().equals(wanted):
                raise _other(self.path, f"the columns {', '.join(_columns(held))}, not {', '.join(_columns(wanted))}")

    def recipes(self) -> dict[str, str]:
        """Their ids by kind of item, in all parts."""
        found: dict[str, str] = {}
        for part in self.parts():
            with _read(part) as file:
                found |= _about(file.schema_arrow).get("recipes", {})
        return found

    def held(self) -> tuple[Held, int, int]:
        """What is in the parts, how many rows they are, and how many of these failed."""
        held, rows, failed = Held(), 0, 0
        for part in self.parts():
            with _read(part) as file:
                for batch in file.iter_batches(columns=["id", "item", "error"]):
                    rows += len(batch)
                    failed += len(batch) - batch["error"].null_count
                    for id, item in zip(batch["id"].to_pylist(), batch["item"].to_pylist(), strict=True):
                        held.ids.add(id)
                        held.rows.add(_pair(id, item))
        return held, rows, failed

    def first_error(self) -> str:
        """Of the rows that failed; "" where there is none."""
        for part in self.parts():
            with _read(part) as file:
                if errors := file.read(["error"])["error"].drop_null():
                    return str(errors[0])
        return ""

    def drop_failed(self) -> int:
        """Take the rows that failed out of the parts, so that they are missing. Returns how many they were."""
        dropped = 0
        for part in self.parts():
            with _read(part) as file:
                failed = pc.is_valid(file.read(["error"])["error"])
                count = pc.sum(failed).as_py() or 0
                if not count:
                    continue
                good = file.read().filter(pc.invert(failed))
            dropped += count
            if not len(good):
                part.unlink()
                continue
            fresh = part.with_name(f".{part.stem}")
            with told(part):
                pq.write_table(good, fresh, row_group_size=GROUP_ROWS, **_how(good.schema))
                _replace(fresh, part)
        return dropped


@dataclass(frozen=True)
class Place:
    """Where the rows of one job go: its folder, its parts' schema, what made them."""

    folder: Path
    run: str  # begins the names of this run's parts
    columns: pa.Schema
    origin: Origin
    recipes: dict[str, str | None]  # their ids by kind of item, as far as they are known; new ones are added


class Parts:
    """Rows on their way into part files. Within its block; whatever ends that, what came is kept.

    >>> with Parts(Place(folder, "7f2c", columns, origin, recipes)) as parts:
    ...     for results in client.embed_each(parts.items(source.rows(), held)):
    ...         parts.write(results)

    Args:
        piece: of the source, where it is not all of it; the parts are `part-<run><piece>-00000.parquet`, and so on.
            One of the same name is replaced: a piece of work that is done again must not leave its rows twice.
        seconds: a part is closed when it is that old; None: when it is full alone, so that rows make the same parts.

    Of the counts, `done` is rows that are written and `failed` those of them with an error. `repeated` are left out
    because another row of their id had come before, `skipped` because a file is no image.
    """

    def __init__(self, place: Place, piece: str = "", seconds: float | None = PART_SECONDS) -> None:
        self._place, self._piece, self._seconds = place, piece, seconds
        self._pending = deque[Row]()
        self._ids = Ids()
        self._part: Part | None = None
        self._number = 0
        self.done = self.failed = self.repeated = self.skipped = 0
        self._whole = 0, 0  # done and failed, without the part that is being written

    def counts(self) -> dict[str, int]:
        """All four, by name."""
        return {name: getattr(self, name) for name in ("done", "failed", "repeated", "skipped")}

    def items(self, rows: Iterable[Row | Skipped], held: Held | None = None) -> Iterator[Item]:
        """What is to be embedded and not `held`, whose results `write` takes in the same order."""
        held = held or Held()
        for row in rows:
            if isinstance(row, Skipped):
                self.skipped += 1
            elif _pair(id := writable(row.id), writable(row.item.name)) in held.rows:
                continue
            elif row.id in self._ids or id in held.ids:
                self.repeated += 1
            else:
                self._ids.add(row.id)
                self._pending.append(row)
                yield row.item

    def write(self, results: Sequence[Result]) -> None:
        """Raises VectorFileError; AdapterError for vectors of another recipe than those that are there."""
        for each in results:
            if isinstance(each, Embedded):
                known = self._place.recipes.setdefault(each.item.kind, each.recipe)
                if known != each.recipe:
                    raise AdapterError(f"The recipe is {each.recipe} now, and {known} in the parts.")
        if self._part is None:
            self._part = Part(self._place, f"{self._piece}-{self._number:05}")
            self._number += 1
            self._whole = self.done, self.failed
        self.failed += self._part.add([(self._pending.popleft(), each) for each in results])
        self.done += len(results)
        age = time.monotonic() - self._part.started
        if self._part.count >= PART_ROWS or (self._seconds is not None and age > self._seconds):
            self._close(self._part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._part is not None and isinstance(error, VectorFileError):
            self.done, self.failed = self._whole
            self._part.abandon()
        elif self._part is not None:
            self._close(self._part)

    def _close(self, part: "Part") -> None:
        self._part = None
        try:
            part.close()
        except VectorFileError:
            self.done, self.failed = self._whole
            raise


class Part:
    """One part file while it is written: `close` gives it its name, `abandon` leaves nothing.

    Both, and `add`, raise VectorFileError. The recipes, as far as they are known, go into its metadata.
    """

    def __init__(self, place: Place, name: str) -> None:
        whole = f"part-{place.run}{name}"
        self._place, self._path, self._fresh = place, place.folder / f"{whole}.parquet", place.folder / f".{whole}"
        self._held: list[tuple[Row, Result]] = []
        self._writer: pq.ParquetWriter | None = None
        self.started, self.count = time.monotonic(), 0

    def add(self, done: Sequence[tuple[Row, Result]]) -> int:
        """Returns how many of them failed."""
        told = [_refused(row, result, self._place.columns) for row, result in done]
        self._held += told
        self.count += len(told)
        if len(self._held) >= GROUP_ROWS:
            self._write()
        return sum(isinstance(result, ItemError) for _, result in told)

    def close(self) -> None:
        if self._held:
            self._write()
        if self._writer is not None:
            with told(self._path):
                self._writer.close()
                _replace(self._fresh, self._path)

    def abandon(self) -> None:
        with told(self._path):
            self._fresh.unlink(missing_ok=True)

    def _write(self) -> None:
        columns, origin = self._place.columns, self._place.origin
        table = _table(self._held, columns)
        with told(self._path):
            check_room(self._path.parent, table.nbytes)
            if self._writer is None:
                tagged = columns.with_metadata((columns.metadata or {}) | origin.tags(self._place.recipes))
                self._writer = pq.ParquetWriter(self._fresh, tagged, **_how(tagged))
            self._writer.write_table(table)
        self._held = []


def _table(done: Sequence[tuple[Row, Result]], columns: pa.Schema) -> pa.Table:
    vector_type = columns.field("embedding").type
    size, dtype = vector_type.list_size, np.float16 if _halved(columns) else np.float32
    vectors, errors = np.zeros((len(done), size), dtype), list[str | None]()
    for into, (_, result) in zip(vectors, done, strict=True):
        if isinstance(result, Embedded):
            into[:] = result.vector
        errors.append(writable(str(result)) if isinstance(result, ItemError) else None)
    failed = np.array([error is not None for error in errors])
    numbers = pa.array(vectors.ravel(), mask=failed.repeat(size))  # a list that is null itself, pyarrow does not read
    ours = {
        "id": pa.array([writable(row.id) for row, _ in done], pa.string()),
        "kind": pa.array([row.item.kind for row, _ in done], pa.string()),
        "item": pa.array([writable(row.item.name) for row, _ in done], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(numbers, type=vector_type),
        "error": pa.array(errors, pa.string()),
        "tokens": pa.array([getattr(result, "tokens", None) for _, result in done], pa.int32()),
    }
    carried = {}
    for each in columns:
        if each.name not in ours:
            cells = [row.carried.get(each.name, row.carried.get(each.name.removeprefix("source_"))) for row, _ in done]
            carried[each.name] = pa.concat_arrays([_cell(cell, each.type) for cell in cells])
    return pa.table(ours | carried, schema=columns)


def _cell(cell: pa.Array | str | None, type: pa.DataType) -> pa.Array:
    return cell if isinstance(cell, pa.Array) else pa.array([cell and writable(cell)], type)


def _refused(row: Row, result: Result, columns: pa.Schema) -> tuple[Row, Result]:
    """A vector that the column cannot hold is an error."""
    if (
        _halved(columns)
        and isinstance(result, Embedded)
        and np.abs(result.vector).max(initial=0) > np.finfo(np.float16).max
    ):
        told = "a number of its vector is too large for float16, which ends at 65504: --dtype float32."
        return row, ItemError(f"{row.item.origin}: {told}")
    return row, result


def _halved(columns: pa.Schema) -> bool:
    return bool(columns.field("embedding").type.value_type == pa.float16())


def _how(columns: pa.Schema) -> dict[str, Any]:
    """Vectors as they are: no compression and no dictionary makes them smaller."""
    others = [each.name for each in columns if each.name != "embedding"]
    return {"use_dictionary": others, "compression": "zstd", "write_statistics": others}


def _replace(fresh: Path, path: Path) -> None:
    """All of it is on the disk before it has the name."""
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def _read(part: Path) -> Iterator[pq.ParquetFile]:
    """Raises SourceError where a part is not what this program wrote."""
    try:
        with pq.ParquetFile(part) as file:
            yield file
    except (OSError, pa.ArrowException, KeyError) as error:
        raise SourceError(f"{part} is no part that can be read ({error}): take it away.") from None


def _about(held: pa.Schema) -> dict[str, Any]:
    about: dict[str, Any] = orjson.loads((held.metadata or {}).get(b"about", b"{}"))
    return about


def _other(folder: Path, how: str) -> SourceError:
    return SourceError(f"{folder} holds {how}: name another folder with --output.")


def _columns(held: pa.Schema) -> list[str]:
    return [f"{each.name} ({each.type})" if each.name == "embedding" else each.name for each in held]


def _pair(id: str, item: str) -> str:
    return f"{id}\0{unsigned(item)}"


def _digest(id: str) -> int:
    return int.from_bytes(blake2b(id.encode(errors="surrogatepass"), digest_size=8).digest())
