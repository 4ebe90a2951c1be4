"""The rows of folders, globs, tar files and tables, read as they are needed and never all at once.

Images are bytes here: the server decodes them.
"""

import csv
import json
import os
import re
import tarfile
import time
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from io import BytesIO, RawIOBase
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

import fsspec
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientError, ClientTimeout
from fsspec.compression import register_compression
from fsspec.utils import infer_compression

from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import IMAGE_SUFFIXES, Skipped, below, csv_rows, is_image, text_lines
from qwen3_vl_embed.items import MOST_BYTES, Elsewhere, Item, failing, writable
from qwen3_vl_embed.protocol import retry_after

PIECE = 512  # rows that are handed to another process at a time
BATCH = 64  # rows of a Parquet file that are decoded at a time: they may hold images
VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}  # of which pyarrow 25 takes no rows out
FIRST = 1000  # lines of JSON whose keys are columns
URL_SECONDS, SILENT_SECONDS = 120.0, 20.0  # of an image at an address: in all, and without a byte
TRIES = 3  # of an image at an address whose server is busy or failing
PASSING = {429, 500, 502, 503, 504}  # what such a server answers
HTTP = ("http://", "https://")
OF_ANY_TABLE = {"http", "https", "data"}  # whose URLs any table may hold; others only a table that lies there too
BROKEN = (
    OSError, EOFError, ValueError, ClientError, zlib.error, tarfile.TarError, csv.Error, pa.ArrowException, SourceError,
)  # fmt: skip


class Zstd(RawIOBase):
    """What pyarrow unpacks, which is there anyhow; and from its beginning again."""

    def __init__(self, file: Any, **_: Any) -> None:
        self._file = file
        self._streams: list[pa.CompressedInputStream] = []  # all: one that goes away closes the file
        self.seek(0)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return int(self._streams[-1].readinto(into))

    def seek(self, place: int, whence: int = 0) -> int:
        """To 0 alone."""
        self._file.seek(place)
        self._streams.append(pa.CompressedInputStream(self._file, "zstd"))
        return place


register_compression("zstd", Zstd, "zst", force=True)


@dataclass(frozen=True)
class Columns:
    """What of a table, or of a tar file's samples, is embedded, one of the first two; and what tells rows apart."""

    text: str | None = None
    image: str | None = None
    id: str | None = None
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))  # what goes along, as the first file has it

    @property
    def content(self) -> str | None:
        return self.text or self.image


@dataclass(frozen=True)
class Row:
    """One thing to embed, what it is called, and the columns that go with its vector: strings, or arrays of one."""

    id: str
    item: Item
    carried: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """One file, or one folder, of a source; `path` as fsspec takes it, `name` as ids begin."""

    path: str
    name: str
    columns: Columns = Columns()

    def schema(self) -> pa.Schema:
        """The columns that are carried over. Raises SourceError where what is to be embedded is not there."""
        return pa.schema([])

    def count(self) -> int | None:
        """Rows, about; None where only reading it all would tell."""
        return None

    def rows(self) -> Iterator[Row | Skipped]:
        """A file that breaks off is a row that failed, and the others go on."""
        try:
            yield from self._rows()
        except BROKEN as error:
            told = str(error) if isinstance(error, SourceError) else f"it cannot be read to its end ({error})."
            yield Row(self.name, failing("image", self.name, told))

    def pieces(self) -> "Iterator[File] | None":
        """The same rows, in pieces that another process reads by itself; None where it is better handed the rows."""
        return None

    def _rows(self) -> Iterator[Row | Skipped]:
        raise NotImplementedError

    def _open(self, compression: str | None = None, streamed: bool = False) -> Any:
        """`streamed`: to be read from its beginning to its end alone."""
        if compression == "infer":
            compression = infer_compression(self.name)  # the path may be a signed address
        if not self.path.startswith(HTTP) or fsspec.filesystem("http").info(self.path).get("partial"):
            return fsspec.open(self.path, "rb", compression=compression)
        # From a server without ranges it comes in one answer, for as long as its rows take; or first into a file.
        patient = {"client_kwargs": {"timeout": ClientTimeout(None, None, SILENT_SECONDS, SILENT_SECONDS)}}
        if streamed:
            return fsspec.open(self.path, "rb", compression=compression, block_size=0, **patient)
        return fsspec.open(f"simplecache::{self.path}", "rb", compression=compression, http=patient, https=patient)

    def _id(self, cell: Any, number: int) -> str:
        return f"{self.name}:{number}" if cell is None or cell == "" or cell != cell else str(cell)

    def _item(self, cell: Any, name: str, number: int) -> Item:
        """What a cell of the column holds that is embedded."""
        origin = f"row {number} of {self.name}"
        if self.columns.image:
            return _picture(cell, name, origin, self.path)
        if isinstance(cell, str):
            return Item.text(cell, origin)
        return failing("text", name, f"the cell is {'empty' if cell is None else 'no text'}.", origin)


@dataclass(frozen=True)
class Picture(File):
    """A file that is itself an image."""

    def count(self) -> int:
        return 1

    def _rows(self) -> Iterator[Row]:
        yield Row(self.name, _at(self.path, self.name, "", "file"))


@dataclass(frozen=True)
class Folder(File):
    """All images below a folder of this machine, by suffix or by content; ids are paths from there."""

    def count(self) -> int:
        return sum(isinstance(each, Item) for _, each in below(Path(self.path)))

    def _rows(self) -> Iterator[Row | Skipped]:
        for path, found in below(Path(self.path)):
            if isinstance(found, Skipped):
                yield found
            else:
                name = writable(path.relative_to(self.path).as_posix())
                yield Row(name, replace(found, name=name))


@dataclass(frozen=True)
class Given(File):
    """Rows that somebody read already."""

    given: tuple[Row | Skipped, ...] = ()

    def _rows(self) -> Iterator[Row | Skipped]:
        yield from self.given


@dataclass(frozen=True)
class Lines(File):
    """A text a line."""

    def count(self) -> int | None:
        if "://" in self.path:
            return None
        with self._open("infer") as file:
            chunks: Iterator[bytes] = iter(partial(file.read, 2**20), b"")
            return sum(chunk.count(b"\n") for chunk in chunks)

    def _rows(self) -> Iterator[Row]:
        with self._open("infer") as file:
            for number, line in enumerate(text_lines(file, newline="\n"), start=1):
                name = self._id(None, number)
                yield Row(name, Item.text(line.rstrip("\r\n"), name))


@dataclass(frozen=True)
class Table(Lines):
    """A table of strings, with headings. What is carried is strings: of what is none, its JSON."""

    def _rows(self) -> Iterator[Row]:
        id_column, content = self.columns.id, self.columns.content or ""
        with self._open("infer") as file:
            for number, cells in self._cells(file):
                called = cells.get(id_column) if id_column and isinstance(cells, Mapping) else None
                name = self._id(called, number)
                if isinstance(cells, Mapping):
                    carried = {key: _json(cell) for key, cell in cells.items()}
                    yield Row(name, self._item(cells.get(content), name, number), carried)
                else:
                    yield Row(name, failing("text", name, cells))

    def _cells(self, file: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """The rows, by number; in a row's place, why there is none."""
        raise NotImplementedError

    def _schema_of(self, headings: list[str]) -> pa.Schema:
        if not any(headings):
            raise EOFError("it is empty")
        _check(self.columns, headings, self.path)
        if writable("".join(headings)) != "".join(headings):
            raise SourceError(f"The headings of {self.path} are not UTF-8: save it as UTF-8.")
        return pa.schema([(name, pa.string()) for name in headings if name])


@dataclass(frozen=True)
class Csv(Table):
    """Cells are strings. UTF-8, or UTF-16 with a mark; commas, semicolons, tabs or bars."""

    def schema(self) -> pa.Schema:
        with self._open("infer") as file:
            return self._schema_of(csv_rows(file, self.columns.content)[0])

    def count(self) -> int | None:
        lines = super().count()
        return lines and lines - 1

    def _cells(self, file: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        headings, rows = csv_rows(file, self.columns.content)
        if any(headings):
            _check(self.columns, headings, self.path)
        yield from enumerate(rows, start=1)


@dataclass(frozen=True)
class Jsonl(Table):
    """An object a line. Columns are the keys of FIRST lines."""

    def schema(self) -> pa.Schema:
        with self._open("infer") as file:
            first = [cells for _, cells in islice(self._cells(file), FIRST)]
        if first and isinstance(first[0], str):
            raise SourceError(f"{self.path} does not begin with a line that is a JSON object.")
        return self._schema_of(list(dict.fromkeys(key for each in first if isinstance(each, Mapping) for key in each)))

    def _cells(self, file: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """Of the lines that are not blank."""
        for number, line in enumerate(text_lines(file, newline="\n"), start=1):
            if line.strip():
                yield number, _object(line)


@dataclass(frozen=True)
class Parquet(File):
    """Texts, or images as bytes, paths, URLs or Hugging Face's {bytes, path}. All other columns are carried."""

    groups: tuple[int, ...] | None = None  # of rows; None: all

    def schema(self) -> pa.Schema:
        with self._open() as file:
            whole = pq.ParquetFile(file).schema_arrow
        content = self._content(whole)
        kept = [each for each in whole if each.name != content.name or _is_string(each.type)]
        return pa.schema([each.with_type(VIEWS.get(each.type, each.type)) for each in kept])

    def _content(self, whole: pa.Schema) -> pa.Field:
        _check(self.columns, whole.names, self.path)
        content = whole.field(self.columns.content)
        if self.columns.text and not _is_string(content.type):
            raise SourceError(f"The column {content.name} of {self.path} is of {content.type}, not of texts.")
        return content

    def count(self) -> int:
        with self._open() as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    def pieces(self) -> Iterator[File]:
        with self._open() as file:
            count = pq.ParquetFile(file).num_row_groups
        for group in range(count):
            yield Parquet(self.path, self.name, self.columns, (group,))

    def _rows(self) -> Iterator[Row]:
        content, id_column = self.columns.content, self.columns.id
        assert content is not None
        with self._open() as opened:
            file = pq.ParquetFile(opened)
            here = file.schema_arrow.names
            self._content(file.schema_arrow)
            carried = [each for each in self.columns.carried if each.name in here]
            wanted = {content, *(each.name for each in carried), *([id_column] if id_column else [])}
            groups = self.groups or range(file.num_row_groups)
            number = sum(file.metadata.row_group(each).num_rows for each in range(min(groups, default=0)))
            for batch in file.iter_batches(BATCH, row_groups=groups, columns=list(wanted)):
                beside = {each.name: self._cast(batch[each.name], each) for each in carried}
                for i, cell in enumerate(batch[content]):
                    number += 1
                    name = self._id(_plain(batch[id_column][i]) if id_column else None, number)
                    item = self._item(_plain(cell), name, number)
                    yield Row(name, item, {key: column.slice(i, 1) for key, column in beside.items()})

    def _cast(self, column: pa.Array, wanted: pa.Field) -> pa.Array:
        try:
            return column.cast(wanted.type)
        except pa.ArrowException:
            told = f"its column {wanted.name} is of {column.type}, and in the first file of {wanted.type}."
            raise SourceError(told) from None


@dataclass(frozen=True)
class Tar(File):
    """Images, each a row, or with `--text txt` texts; also compressed. As in WebDataset, files whose names are the same
    up to the first dot are one sample. Its texts and JSON are columns, for those endings that the first sample has.
    """

    def schema(self) -> pa.Schema:
        samples = (sample for _, sample in self._samples(None))
        first = next((sample for sample in samples if any(map(self._wants, sample))), None)
        if first is None:
            wanted = self.columns.content
            raise EOFError(f"it has {f'no file that ends in .{wanted}' if wanted else 'no image'}")
        return pa.schema([(each, pa.string()) for each in first if not _is_image(each)])

    def _rows(self) -> Iterator[Row]:
        carried = tuple(self.columns.carried.names)
        for key, sample in self._samples(carried):
            columns = {name: sample.get(name, b"") for name in carried}
            told = {name: cell.decode(errors="replace") for name, cell in columns.items() if isinstance(cell, bytes)}
            for ending, content in sample.items():
                name = f"{self.name}/{key}.{ending}"
                if not self._wants(ending):
                    continue
                if isinstance(content, str):
                    item: Item = failing("image", name, content)
                elif self.columns.text:
                    item = Item.text(content.decode(errors="surrogateescape").rstrip("\r\n"), name)
                else:
                    item = Item("image", name, name, content=content)
                yield Row(name, item, told)

    def pieces(self) -> Iterator[File]:
        yield self

    def _wants(self, ending: str) -> bool:
        return ending == self.columns.content if self.columns.content else _is_image(ending)

    def _samples(self, carried: tuple[str, ...] | None) -> Iterator[tuple[str, dict[str, bytes | str]]]:
        """The key and, by ending, each file's content; a reason where it is too large. `carried`: None is all."""
        key, sample = "", dict[str, bytes | str]()
        zstd = "zstd" if self.name.lower().endswith(".zst") else None  # the others are known by what they hold
        with self._open(zstd, streamed=True) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=Member) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("._"):  # macOS's notes on another file
                    continue
                stem, _, ending = path.name.partition(".")
                here = writable(str(path.with_name(stem))) if stem else writable(member.name)
                if here != key or ending in sample:
                    if sample:
                        yield key, sample
                    key, sample = here, {}
                if self._wants(ending) or carried is None or ending in carried:
                    sample[ending] = _member(tar, member)
        if sample:
            yield key, sample


@dataclass(frozen=True)
class Source:
    """What was named: its files, and the folder in which the paths of its rows begin (None: it is elsewhere).

    `name`: two sources of one name may hold the same rows, others only rows of the same ids.
    """

    files: tuple[File, ...]
    root: str | None
    schema: pa.Schema
    name: str

    def rows(self) -> Iterator[Row | Skipped]:
        for file in self.files:
            yield from file.rows()

    def pieces(self) -> Iterator[File]:
        """The same rows, for several processes."""
        for _, files in groupby(self.files, type):
            rows = list[Iterable[Row | Skipped]]()
            for file in files:
                if (pieces := file.pieces()) is None:
                    rows.append(file.rows())
                else:
                    yield from pieces
            several = chain.from_iterable(rows)
            while given := tuple(islice(several, PIECE)):
                yield Given("", "", given=given)

    def count(self) -> int | None:
        """Rows, about; None where only reading it all would tell, or a file cannot be read."""
        try:
            counts = [file.count() for file in self.files]
        except BROKEN:
            return None
        return None if None in counts else sum(filter(None, counts))


FILES: dict[str, type[File]] = {
    ".parquet": Parquet, ".csv": Csv, ".tsv": Csv, ".jsonl": Jsonl, ".ndjson": Jsonl, ".json": Jsonl, ".txt": Lines,
    ".tar": Tar, ".tgz": Tar,
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Beside a table's Parquet files, which hold removed rows and old versions too. Only its log says which are its own.
LOGS = {"_delta_log/*": "Delta Lake", ".hoodie/*": "Hudi", "metadata/*.metadata.json": "Iceberg"}


def opened(spec: str, columns: Columns) -> Source:
    """A folder, a glob, a file, here or at any URL that fsspec opens. With a column it is a folder of tables.

    Raises:
        SourceError: there is nothing, nothing that can be read, or not the columns that are asked for.
    """
    if not spec:
        raise SourceError("The source has no name: it is an empty string.")  # which is this folder to others
    if os.path.isdir(spec) and not columns.content:
        with os.scandir(spec):  # or an OSError
            root = os.path.realpath(spec)
        return Source((Folder(spec, ""),), root, pa.schema([]), root)
    try:
        system, path = fsspec.core.url_to_fs(spec)
        here = "file" in system.protocol
        path = os.path.realpath(path) if here else path
        marks = "*" if path.startswith(HTTP) else "*?["  # where ? begins a query
        is_folder, is_there = system.isdir(path), system.exists(path)
        if is_folder:
            for _ in os.walk(path, onerror=_raise) if here else ():  # fsspec passes over a folder that it cannot read
                pass
            wanted = _is_table if columns.content else _is_image
            below = sorted(system.find(path))
            paths = [each for each in below if wanted(each.removeprefix(path))]
        elif not is_there and any(mark in path for mark in marks):
            paths = [each for each in sorted(system.glob(path)) if _kind(each) or not _is_hidden(each)]
        else:
            paths = [path] if is_there else []
        start = path if is_folder else os.path.dirname(re.split(r"[*?\[]", unsigned(path))[0])
        beside = below if is_folder else [] if start.startswith(HTTP) else _logs(system, start)
    except Exception as error:  # each file system raises its own library's
        raise SourceError(f"{spec} cannot be read ({error}).") from None
    for log, format in LOGS.items() if columns.content else ():
        if any(PurePosixPath(each).match(log) for each in beside):
            told = f"{spec} is of a {format} table, whose files hold removed rows and old versions too."
            raise SourceError(f"{told} Write what the table holds now to Parquet, and embed that.")
    if not paths:
        what = "table" if columns.content else "image"
        raise SourceError(f"There is no {spec}." if not is_folder else f"{spec} holds no {what}.")
    urls = paths if here else list(map(system.unstrip_protocol, paths))
    names = [unsigned(each).removeprefix(start).lstrip("/") for each in paths]
    files = [_file(url, name, columns) for url, name in zip(urls, names, strict=True)]
    schema = _schema(files)
    id_column = columns.id or ("id" if "id" in schema.names else None)
    schema = pa.schema([each for each in schema if each.name != id_column])
    known = replace(columns, id=id_column, carried=schema)
    asked = {"text": columns.text, "image": columns.image, "id": columns.id}
    place = start if here else system.unstrip_protocol(start)
    name = " ".join([place, *(f"--{flag} {each}" for flag, each in asked.items() if each)])
    return Source(tuple(replace(each, columns=known) for each in files), start if here else None, schema, name)


def _raise(error: OSError) -> None:
    raise error


def _logs(system: Any, folder: str) -> list[str]:
    """Files of a table's log in its own folder."""
    return [found for log in LOGS for found in system.glob(f"{folder}/{log}")]


def unsigned(path: str) -> str:
    """Without the query of an address, which may change while the file does not."""
    return path.partition("?")[0] if path.startswith(HTTP) else path


def _schema(files: list[File]) -> pa.Schema:
    """The first one's that can be read."""
    broken = ""
    for file in files:
        try:
            return file.schema()
        except SourceError:
            raise
        except BROKEN as error:
            broken = broken or f"{file.path} cannot be read ({error})."
    raise SourceError(broken)


def _file(path: str, name: str, columns: Columns) -> File:
    kind = _kind(name)
    if kind is None:
        raise SourceError(f"{path} is none of {', '.join(FILES)}, and no image.")
    if kind in (Csv, Jsonl, Parquet) and not columns.content:
        raise SourceError(f"Which column of {path} is to be embedded? Write --text COLUMN or --image COLUMN.")
    if kind in (Picture, Lines) and (columns.content or columns.id):
        raise SourceError(f"{path} has no columns: leave --text, --image and --id out.")
    return kind(path, name, columns)


def _kind(name: str) -> type[File] | None:
    bare = next((name.lower().removesuffix(each) for each in COMPRESSED if name.lower().endswith(each)), name.lower())
    return FILES.get(os.path.splitext(bare)[1]) or (Picture if _is_image(name) else None)


def _is_hidden(name: str) -> bool:
    """What Spark, Hive and macOS write beside files, such as `_SUCCESS`."""
    return name.rpartition("/")[2].startswith(("_", "."))


def _is_table(path: str) -> bool:
    return not any(map(_is_hidden, path.split("/"))) and _kind(path) in (Csv, Jsonl, Parquet, Tar)


def _check(columns: Columns, names: list[str], path: str) -> None:
    for name in (columns.content, columns.id):
        if name is not None and name not in names:
            raise SourceError(f"{path} has no column {name}. Its columns are: {', '.join(names) or 'none'}.")
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise SourceError(f"{path} has more than one column {twice[0]}: rename all but one.")


def _picture(cell: Any, name: str, origin: str, table: str) -> Item:
    """An image of a table's cell: bytes, Hugging Face's {bytes, path}, or where it is."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return Item("image", name, origin, content=cell)
    if isinstance(cell, str) and (content := _from_base64(cell)):
        return Item("image", name, origin, content=content)
    if isinstance(cell, str) and cell:
        return _at(cell, cell, table, origin)
    return failing("image", name, "the cell is empty." if not cell else "the cell holds no image.", origin)


def _from_base64(cell: str) -> bytes | None:
    """An image that somebody wrote as text; None for a path."""
    try:
        content = b64decode(cell, validate=True)
    except ValueError:
        return None
    return content if is_image(BytesIO(content)) else None


def _at(address: str, name: str, table: str, origin: str) -> Item:
    """An image at a URL, or at a path: from the table's folder, where it is not a whole one."""
    scheme = address.partition(":")[0] if "://" in address or address.startswith("data:") else ""
    if not scheme and "://" in table:
        address = f"{unsigned(table).rpartition('/')[0]}/{address}"
        scheme = address.partition(":")[0]
    address = scheme.lower() + address[len(scheme) :]
    scheme = scheme.lower()
    if not scheme:
        path = Path(os.path.dirname(table), address)
        return Item("image", writable(name), writable(f"{origin} ({address})" if table else address), path)
    if table and scheme not in OF_ANY_TABLE and not table.startswith(f"{scheme}://"):
        told = f"a URL of {scheme} is opened only for a table that lies there too."
        return failing("image", name, told, origin)
    short = name if len(name) <= 200 else f"{name[:200]}…"
    return Elsewhere("image", short, f"{origin} ({short[:80]})", load=partial(_fetched, address))


def _fetched(address: str, most: int) -> bytes:
    """Raises ValueError: it is many libraries that fail here, each in its own way."""
    try:
        if address.startswith(HTTP):
            content = _downloaded(address, most)
        else:
            with fsspec.open(address, "rb") as file:
                content = file.read(most + 1)
    except Exception as error:
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error}).") from None
    if len(content) > most:
        raise ValueError(f"the file has more than {most:,} bytes.")
    return content


@cache
def _web() -> httpx.Client:
    """Of this process, whose threads share its connections. It goes from http(s) to nothing else."""
    return httpx.Client(follow_redirects=True)


def _downloaded(address: str, most: int) -> bytes:
    """All that is there, or the first bytes beyond `most`. Not by fsspec, whose stream returns what has come so far.

    Raises httpx.HTTPError, also for another answer than 200; from a server that is busy or failing at the last try.
    """
    for again in reversed(range(TRIES)):
        until = time.monotonic() + URL_SECONDS
        with _web().stream("GET", address, timeout=SILENT_SECONDS) as response:
            if response.status_code == httpx.codes.OK:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > most:
                        break
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout(f"after {URL_SECONDS:g} s it was not whole")
                return bytes(content)
        wait = max(1.0, retry_after(response))
        if not again or response.status_code not in PASSING or wait > SILENT_SECONDS:
            break
        time.sleep(wait)
    raise httpx.HTTPError(f"{response.status_code} {response.reason_phrase}")


class Member(tarfile.TarInfo):
    """One whose header is cut off or damaged is an error. The library takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """Raises tarfile.ReadError."""
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    if member.size > MOST_BYTES:
        return f"the file has {member.size:,} bytes; {MOST_BYTES:,} are read."
    file: IO[bytes] | None = tar.extractfile(member)
    assert file is not None
    return file.read()


def _object(line: str) -> dict[str, Any] | str:
    """By the library that reads what other libraries write: NaN, and whole numbers of any size."""
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        read = None
    return read if isinstance(read, dict) else "the line is no JSON object."


def _json(cell: Any) -> str | None:
    return (
        cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, separators=(",", ":"))
    )


def _plain(cell: pa.Scalar) -> Any:
    """Its Python value. One that Python has none for (text that is no UTF-8, nanoseconds) is a string."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return bytes(cell.as_buffer()).decode(errors="surrogateescape")
    except (ValueError, OverflowError):
        return cell.cast(pa.string()).as_py()


def _is_string(type: pa.DataType) -> bool:
    value = type.value_type if pa.types.is_dictionary(type) else type
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _is_image(name: str) -> bool:
    return os.path.splitext(f"x.{name}")[1].lower() in IMAGE_SUFFIXES
