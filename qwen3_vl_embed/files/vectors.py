"""Files of vectors: .npy, .npz, .parquet or .jsonl, written as the vectors come; other files whole or not at all."""

import errno
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_vl_embed.files.errors import VectorFileError
from qwen3_vl_embed.items import Embedded, writable

ROW_GROUP = 4096  # rows of Parquet that are held and written together: what reads them wants thousands
SPARE = 4 * 2**20  # bytes that stay free on the disk: a Parquet file without its footer cannot be read
DECISIVE = ("content", "dtype", "weights", "calibration")  # of a model's description, beside its recipe
NAMES_BYTES = 16 * 2**20  # up to here, NumPy's own array of names: each takes as much as the longest


@dataclass(frozen=True)
class Origin:
    """What made the vectors: the server, its `model` of GET /info, and the options that were sent."""

    server: str
    model: Mapping[str, Any]
    options: Mapping[str, Any]

    def dimension(self) -> int:
        """Numbers in a vector; the model's own when what was asked for is none of its."""
        asked, most = self.options.get("dimensions"), int(self.model["dimension"])
        return asked if isinstance(asked, int) and 0 < asked < most else most

    def short(self) -> dict[str, Any]:
        return {name: self.model.get(name) for name in ("checkpoint", "dtype")}

    def tags(self, recipes: Mapping[str, str | None]) -> dict[str, str]:
        """For formats that take words alone: checkpoint, dtype, revision and recipe; `about` is the whole."""
        short = self.short() | {"revision": self.model.get("revision")}
        short |= {"recipe": ", ".join(dict.fromkeys(map(str, recipes.values())))}
        return {name: str(value) for name, value in short.items()} | {"about": self.whole(recipes).decode()}

    def whole(self, recipes: Mapping[str, str | None]) -> bytes:
        """JSON. `recipes`: the id for each kind of item."""
        told = {"server": self.server, "model": self.model, "options": self.options, "recipes": recipes}
        return orjson.dumps(told)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What makes the ids of two models differ, by its names in GET /info and in a recipe."""
    known = [{name: model.get(name) for name in DECISIVE} | (model.get("recipe") or {}) for model in (one, other)]
    names = (name for name in known[0] | known[1] if known[0].get(name) != known[1].get(name))
    return ", ".join(name for name in names if name != "id") or "the prompts of their own"


def jsonl(embedded: Sequence[Embedded], origin: Origin) -> bytes:
    """A line for each: {"item", "kind": "text" | "image", "embedding": [...], "recipe", "checkpoint", "dtype"}."""
    return b"".join(
        orjson.dumps(
            {"item": each.item.name, "kind": each.item.kind, "embedding": each.vector, "recipe": each.recipe}
            | origin.short(),
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        for each in embedded
    )


def matrix(embedded: Sequence[Embedded]) -> NDArray[np.float32]:
    """float32 (N, D), one row for each item, in order."""
    return np.stack([each.vector for each in embedded])


# How each format is written. `add` takes one or more, all of one dimension; `finish` comes once, after at least one
# `add`. Both may raise OSError.
class _Jsonl:
    def __init__(self, file: io.BufferedWriter, origin: Origin) -> None:
        self._file, self._origin = file.raw, origin

    def add(self, embedded: Sequence[Embedded]) -> None:
        start, rest = self._file.tell(), memoryview(jsonl(embedded, self._origin))
        try:
            while rest:  # a disk that fills up takes a part
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(start)
            raise

    def finish(self) -> None: ...


class _Parquet:
    def __init__(self, file: io.BufferedWriter, origin: Origin) -> None:
        self._file, self._origin = file, origin
        self._held: list[Embedded] = []
        self._writer: Any = None

    def add(self, embedded: Sequence[Embedded]) -> None:
        self._held += embedded
        if len(self._held) >= ROW_GROUP:
            self._write()

    def finish(self) -> None:
        if self._held:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa  # the extra `parquet`
        import pyarrow.parquet as pq

        vectors = pa.array(matrix(self._held).ravel())
        table = pa.table(
            {
                "item": pa.array([each.item.name for each in self._held], pa.string()),
                "kind": pa.array([each.item.kind for each in self._held], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(vectors, len(self._held[0].vector)),
            }
        )
        about = self._origin.tags(_recipes(self._held))  # texts and images differ in their bounds of pixels, if at all
        self._writer = self._writer or pq.ParquetWriter(self._file, table.schema.with_metadata(about))
        self._writer.write_table(table.replace_schema_metadata(about))
        self._held = []


class _Npz:
    """vectors (N, D), items (N,), kinds (N,), about (JSON); opens without pickle."""

    def __init__(self, file: io.BufferedWriter, origin: Origin) -> None:
        self._file, self._origin = file, origin
        self._held: list[Embedded] = []

    def add(self, embedded: Sequence[Embedded]) -> None:
        self._held += embedded

    def finish(self) -> None:
        self._write()
        self._file.truncate()  # what was reserved and is not needed

    def about(self) -> bytes:
        return self._origin.whole(_recipes(self._held))

    def _write(self) -> None:
        arrays = _names([each.item.name for each in self._held]) | {
            "kinds": np.array([each.item.kind for each in self._held]),
            "about": np.array(self.about().decode()),
        }
        np.savez(self._file, vectors=matrix(self._held), **arrays)


class _Npy(_Npz):
    """The matrix alone, its rows in the order of what was asked for; `about` goes into a .json beside it."""

    def _write(self) -> None:
        np.save(self._file, matrix(self._held), allow_pickle=False)


def _names(names: list[str]) -> dict[str, NDArray[Any]]:
    """`items`, strings (N,), each as wide as the longest; where that is huge, or loses a NUL, JSON in `items_json`."""
    if 4 * len(names) * max(map(len, names)) <= NAMES_BYTES:
        items = np.array(names)
        if items.tolist() == names:
            return {"items": items}
    return {"items_json": np.frombuffer(orjson.dumps(names), np.uint8)}


def _recipes(embedded: Sequence[Embedded]) -> dict[str, str | None]:
    return {each.item.kind: each.recipe for each in embedded}


WRITERS: dict[str, type[_Jsonl | _Parquet | _Npz]] = {
    ".npy": _Npy,
    ".npz": _Npz,
    ".parquet": _Parquet,
    ".jsonl": _Jsonl,
}
BYTES_EACH = {".jsonl": 10}  # of a number, at least; in all others 4


def check_writable(path: Path) -> None:
    """Raises VectorFileError before hours of work are done for a file that cannot be written."""
    if path.suffix.lower() not in WRITERS:
        raise VectorFileError(f"{path} must end in one of {', '.join(WRITERS)}.")
    if path.suffix.lower() == ".parquet" and not find_spec("pyarrow"):
        raise VectorFileError(f"{path} needs pyarrow: pip install 'qwen3-vl-embed[parquet]'.")
    check_place(path)
    if path.suffix.lower() == ".npy":
        check_place(_beside(path))


def check_place(path: Path) -> None:
    """The same for a file of any kind: it can be made, or replaced. Leaves nothing behind."""
    if not path.absolute().parent.is_dir():
        raise VectorFileError(f"{path} cannot be written: there is no folder {path.parent}.")
    if os.path.isdir(path):
        raise VectorFileError(f"{path} cannot be written: it is a folder.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise VectorFileError(f"{path} cannot be written: it is no file.")
    if os.path.isfile(path) and not os.access(path, os.W_OK):
        raise VectorFileError(f"{path} cannot be written: it is write-protected.")
    with told(path):
        _try(path.parent)
        with suppress(FileNotFoundError):
            os.lstat(path)  # its name may be too long


def check_name(path: Path) -> None:
    """The same for what pyarrow writes, whose names are UTF-8."""
    if writable(path) != str(path):
        raise VectorFileError(f"{writable(path)} cannot be written: its name is not UTF-8.")


def _beside(path: Path) -> Path:
    """What says of a .npy file what made it."""
    return path.with_name(f"{path.name}.json")


def check_folder(folder: Path) -> None:
    """The same for a folder that may have to be made, and for files in it."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise VectorFileError(f"{folder} cannot be written: {there} is no folder.")
    with told(folder):
        _try(there)


def _try(folder: Path) -> None:
    """Raises OSError."""
    probe = folder / f".{token_hex(8)}"
    probe.open("xb").close()
    probe.unlink()


class VectorFile:
    """A file that takes vectors as they come: beside `path`, which name it takes in the end, or a new .jsonl at once.

    Whatever ends the block, what came before is kept under `path`. It stays where it lies if the run was not finished
    and `path` is an earlier file. `kept` says where; None when there is nothing. A link at `path` is replaced, not
    followed. In a folder where others may write, their link must not lead our bytes to another file of ours.

    Raises:
        VectorFileError: it cannot be written, or the disk has no room for `count` vectors.
    """

    def __init__(self, path: Path, origin: Origin, count: int) -> None:
        check_writable(path)
        self.kept: Path | None = None
        self.count = 0
        self._path, self._folder = path, path.absolute().parent
        suffix = path.suffix.lower()
        self._bytes_each, self._most_held = origin.dimension() * BYTES_EACH.get(suffix, 4), min(count, ROW_GROUP)
        grows_in_place = suffix == ".jsonl" and not os.path.lexists(path)  # every line of it can be read at any time
        self._partial = path if grows_in_place else path.with_name(f"partial-{token_hex(4)}{path.suffix}")
        with told(path):
            check_room(self._folder, count * self._bytes_each)
            self._file = self._partial.open("xb")
            self._writer = WRITERS[suffix](self._file, origin)
            if isinstance(self._writer, _Npz):
                _reserve(self._file, count * self._bytes_each)

    def __enter__(self) -> Self:
        return self

    def write(self, embedded: Sequence[Embedded]) -> None:
        """A batch, or none. Raises VectorFileError."""
        if embedded:
            with told(self._path):
                if not isinstance(self._writer, _Npz):
                    check_room(self._folder, self._most_held * self._bytes_each)
                self._writer.add(embedded)
            self.count += len(embedded)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            with told(self._path), self._file:
                if self.count:
                    self._writer.finish()
                    self.kept = self._partial
        finally:
            if self.kept is None:
                self._partial.unlink()
        if self.kept and (kind is None or not os.path.lexists(self._path)):
            with told(self._path):
                self.kept = self.kept.replace(self._path)
        if self.kept and isinstance(self._writer, _Npy):
            with replacing(_beside(self.kept)) as beside:
                beside.write(self._writer.about())


def check_room(folder: Path, size: int) -> None:
    """Raises OSError where its disk has no room for so many bytes."""
    if shutil.disk_usage(folder).free < size + SPARE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _reserve(file: io.BufferedWriter, size: int) -> None:
    """For what is written in the end, when it is too late to find no room. Not every file system can."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            file.close()
            os.unlink(file.name)
            raise


@contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well: an interrupted run leaves the old one.

    It lies beside `path`, is new and has a name that nobody knows before. A link at `path` is replaced, not followed.
    In a folder where others may write, their link must not lead our bytes to another file of ours.

    `size`: bytes that it takes, about. A ZipFile that meets a full disk prints a traceback when it is thrown away.

    Raises:
        VectorFileError: it cannot be written, or the disk has no room for it.
    """
    fresh = path.with_name(f".{token_hex(8)}")
    try:
        with told(path):
            check_room(path.absolute().parent, size)
            with fresh.open("xb") as file:
                yield file
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """An OSError of the block becomes a VectorFileError about `path`."""
    try:
        yield
    except OSError as error:
        raise VectorFileError(f"{path} cannot be written ({error.strerror or error}).") from None
