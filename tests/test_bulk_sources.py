"""Where rows come from: every form of a source gives the same rows, and what is broken fails alone."""

import csv
import gzip
import io
import os
import pickle
import re
import socket
import tarfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar, Literal

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3_vl_embed import ItemError
from qwen3_vl_embed.bulk import sources
from qwen3_vl_embed.bulk.parts import Parts, Place, schema
from qwen3_vl_embed.bulk.sources import Columns, Row, opened
from qwen3_vl_embed.cli.validation import swatch
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import Skipped
from qwen3_vl_embed.files.vectors import Origin
from qwen3_vl_embed.items import Embedded
from tests.conftest import deny

NAMES = ["blue", "green", "red"]
PICTURES = {name: swatch(name) for name in NAMES}


def rows(spec: object, columns: Columns = Columns()) -> list[Row]:  # noqa: B008  (frozen)
    return [row for row in opened(str(spec), columns).rows() if isinstance(row, Row)]


def names(found: list[Row]) -> list[tuple[str, str]]:
    """By what a job that goes on knows them."""
    return [(row.id, row.item.name) for row in found]


def content(row: Row) -> str | bytes:
    try:
        return row.item.read(10**6)
    except ItemError as error:
        return f"failed: {error}"


def tar(path: Path, members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in PICTURES.items():
        (folder / f"{name}.png").write_bytes(data)
    return folder


def table(folder: Path, **columns: list) -> Path:
    path = folder / "table.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def as_csv(folder: Path, rows: list[dict]) -> Path:
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_jsonl(folder: Path, rows: list[dict]) -> Path:
    path = folder / "table.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def in_memory(folder: Path) -> str:
    for name, data in PICTURES.items():
        fsspec.filesystem("memory").pipe(f"/pictures/{name}.png", data)
    return "memory://pictures/*.png"


FORMS = {
    "folder": lambda at: (at / "photos", Columns()),
    "glob": lambda at: (at / "photos" / "*.png", Columns()),
    "remote glob": lambda at: (in_memory(at), Columns()),
    "remote folder": lambda at: (in_memory(at).removesuffix("/*.png"), Columns()),
    "tar": lambda at: (tar(at / "a.tar", {f"{n}.png": d for n, d in PICTURES.items()}), Columns()),
    "tar.gz": lambda at: (tar(at / "a.tar.gz", {f"{n}.png": d for n, d in PICTURES.items()}, "w:gz"), Columns()),
    "parquet, bytes": lambda at: (table(at, image=list(PICTURES.values())), Columns(image="image")),
    "parquet, Hugging Face": lambda at: (
        table(at, image=[{"bytes": data, "path": None} for data in PICTURES.values()]),
        Columns(image="image"),
    ),
    "parquet, paths": lambda at: (table(at, file=[f"photos/{n}.png" for n in NAMES]), Columns(image="file")),
    "csv, paths": lambda at: (as_csv(at, [{"f": f"photos/{n}.png"} for n in NAMES]), Columns(image="f")),
    "csv, whole paths": lambda at: (as_csv(at, [{"f": at / f"photos/{n}.png"} for n in NAMES]), Columns(image="f")),
    "jsonl, paths": lambda at: (as_jsonl(at, [{"f": f"photos/{n}.png"} for n in NAMES]), Columns(image="f")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_each_once(photos, tmp_path, form):
    spec, columns = FORMS[form](tmp_path)
    found = rows(spec, columns)
    assert [content(row) for row in found] == list(PICTURES.values())
    assert len({row.id for row in found}) == 3
    assert names(rows(spec, columns)) == names(found)


@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_the_same_rows_for_another_process(photos, tmp_path, form):
    spec, columns = FORMS[form](tmp_path)
    source = opened(str(spec), columns)
    pieces = pickle.loads(pickle.dumps(list(source.pieces())))
    found = [row for piece in pieces for row in piece.rows()]
    assert [(row.id, content(row)) for row in found] == [(row.id, content(row)) for row in rows(spec, columns)]


class Ranges(SimpleHTTPRequestHandler):
    """The standard library's file server, and ranges, as other servers have them."""

    ranges = True

    def send_head(self) -> BinaryIO | None:
        range_ = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (self.ranges and range_ and path.is_file()):
            return super().send_head()
        content = path.read_bytes()
        first, last = int(range_[1]), min(int(range_[2] or len(content)), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        return io.BytesIO(content[first : last + 1])

    def end_headers(self) -> None:
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


class NoRanges(Ranges):
    ranges = False


@contextmanager
def served(folder: Path, handler: type[Ranges]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


BY_HTTP = ["tar", "tar.gz", "parquet, bytes", "parquet, paths", "csv, paths", "jsonl, paths"]


@pytest.mark.parametrize("query", ["", "?signature=a%2Fb&x=1"])
@pytest.mark.parametrize("handler", [Ranges, NoRanges])
@pytest.mark.parametrize("form", BY_HTTP)
def test_a_server_gives_the_same_images(photos, tmp_path, form, handler, query):
    """A path in a cell begins at the table's own address. An address may be signed."""
    path, columns = FORMS[form](tmp_path)
    with served(tmp_path, handler) as address:
        spec = f"{address}/{Path(path).name}{query}"
        found = rows(spec, columns)
        assert [content(row) for row in found] == list(PICTURES.values())
        assert len({row.id for row in found}) == 3
        assert names(rows(spec, columns)) == names(found)


def test_a_server_gives_one_picture_and_those_that_a_page_lists(photos, tmp_path):
    with served(tmp_path, Ranges) as address:
        [row] = rows(f"{address}/photos/red.png")
        assert content(row) == PICTURES["red"]
        assert [content(row) for row in rows(f"{address}/photos/")] == list(PICTURES.values())
        with pytest.raises(SourceError, match="There is no "):
            rows(f"{address}/nothing.tar")
        [missing] = rows(as_jsonl(tmp_path, [{"f": f"{address}/photos/nothing.png"}]), Columns(image="f"))
        assert "it cannot be read (HTTPError: 404 " in content(missing)


WHOLE = np.random.default_rng(0).bytes(270_000)


class Odd(NoRanges):
    """Answers that are not as they should be: the path says which."""

    asked: ClassVar = Counter[str]()

    def do_GET(self) -> None:
        what, body = self.path.strip("/"), WHOLE
        self.asked[what] += 1
        first = self.asked[what] == 1
        headers, status = {"Content-Length": str(len(body))}, 200
        if what in ("busy", "failing", "down"):
            status = {"busy": 429, "failing": 500, "down": 503}[what] if first or what == "down" else 200
            headers |= {"Retry-After": "1"} if what == "busy" else {}
        elif what in ("loop", "file", "redirect"):
            status = 302
            headers["Location"] = {"loop": "/loop", "file": "file:///etc/hostname", "redirect": "/whole"}[what]
        elif what == "gzip":
            body = gzip.compress(body)
            headers = {"Content-Length": str(len(body)), "Content-Encoding": "gzip"}
        elif what == "longer":
            headers["Content-Length"] = str(len(body) + 1)
        elif what == "part":
            body, status = body[:1000], 206
            headers["Content-Length"] = "1000"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body), 7001):
            self.wfile.write(body[start : start + 7001])
            if what == "drip":
                time.sleep(0.1)


def test_an_image_at_an_address_is_whole_or_its_row_failed(tmp_path, monkeypatch):
    """However it comes. What has come so far is no image."""
    waited: list[float] = []
    monkeypatch.setattr(sources, "URL_SECONDS", 2.0)  # what drips takes 3.9 s
    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waited.append))
    with served(tmp_path, Odd) as address:
        whole = ["whole", "redirect", "gzip", "busy", "failing"]
        failed = {
            "longer": "RemoteProtocolError",
            "part": "HTTPError: 206",
            "loop": "TooManyRedirects",
            "file": "unsupported protocol 'file://'",
            "down": "HTTPError: 503 ",
            "drip": "after 2 s it was not whole",
        }
        urls = [f"{address}/{what}" for what in (*whole, *failed)] + [f"HTTP{address[4:]}/whole"]
        found = list(map(content, rows(as_jsonl(tmp_path, [{"f": url} for url in urls]), Columns(image="f"))))
    assert [each == WHOLE for each in found] == [True] * len(whole) + [False] * len(failed) + [True]
    for what, told in zip(failed.values(), found[len(whole) : -1], strict=True):
        assert what in told
    assert (Odd.asked["busy"], Odd.asked["down"]) == (2, sources.TRIES)
    assert waited == [1.0] * (2 + sources.TRIES - 1)


class CutShort(NoRanges):
    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(2 * 10**6))
        self.connection.close()


@pytest.mark.parametrize("form", ["csv", "parquet", "tar"])
def test_a_large_table_of_a_server_without_ranges(tmp_path, form):
    """Larger than what fsspec asks for at once, which is 5 MiB."""
    texts = [str(number) * 2000 for number in np.random.default_rng(0).integers(10**8, 10**9, 400)]
    columns = Columns(text="txt")
    if form == "csv":
        path = as_csv(tmp_path, [{"txt": text} for text in texts])
    elif form == "parquet":
        path = tmp_path / "table.parquet"
        pq.write_table(pa.table({"txt": texts}), path, compression="none", use_dictionary=False)
    else:
        path = tar(tmp_path / "many.tar", {f"{number}.txt": text.encode() for number, text in enumerate(texts)})
    with served(tmp_path, NoRanges) as address:
        assert list(map(content, rows(f"{address}/{path.name}", columns))) == texts
    with served(tmp_path, CutShort) as address:
        if form == "tar":
            *_, last = rows(f"{address}/{path.name}", columns)
            assert "it cannot be read to its end" in content(last)
        else:
            with pytest.raises(SourceError, match="cannot be read"):
                rows(f"{address}/{path.name}", columns)


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        ("metadata/v1.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
    ],
)
def test_a_table_whose_log_says_what_it_holds_is_refused(tmp_path, log, name):
    """Its files hold rows that were removed, and those of old versions."""
    for of_table in (tmp_path / "one", tmp_path / "many" / "two"):
        (of_table / log).parent.mkdir(parents=True)
        (of_table / log).write_text("{}")
        pq.write_table(pa.table({"t": ["red"]}), of_table / "part-0.parquet")
    for spec in ("one", "many", "one/*.parquet", "one/part-0.parquet"):
        with pytest.raises(SourceError, match=f"is of a {name} table.*removed rows"):
            rows(tmp_path / spec, Columns(text="t"))


def test_what_is_counted_is_what_comes(photos, tmp_path):
    for form in FORMS:
        spec, columns = FORMS[form](tmp_path)
        assert opened(str(spec), columns).count() in (3, None), form


def test_texts_and_the_columns_beside_them(tmp_path):
    written = [{"id": "a", "name": "red", "price": 3}, {"id": "b", "name": "blue", "price": None}]
    for path in (
        table(tmp_path, **{key: [row[key] for row in written] for key in written[0]}),
        as_jsonl(tmp_path, written),
    ):
        source = opened(str(path), Columns(text="name"))
        found = list(source.rows())
        assert source.schema.names == ["name", "price"]
        assert [(row.id, content(row)) for row in found] == [("a", "red"), ("b", "blue")]
    assert [row.carried["price"] for row in found] == ["3", None]


def test_a_semicolon_csv_of_utf16_with_line_breaks_in_cells(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes('price;name\r\n1;"dark\r\nteal"\r\n2;grün\r\n'.encode("utf-16"))
    assert [content(row) for row in rows(path, Columns(text="name"))] == ["dark\r\nteal", "grün"]


def test_samples_of_a_tar_file(tmp_path):
    members = {}
    for name in NAMES:
        members |= {f"deep/{name}.png": PICTURES[name], f"deep/{name}.txt": name.encode(), f"deep/{name}.json": b"{}"}
    path = tar(tmp_path / "shard.tar", members)
    found = rows(path)
    assert [row.id for row in found] == [f"shard.tar/deep/{name}.png" for name in NAMES]
    assert [dict(row.carried) for row in found] == [{"txt": name, "json": "{}"} for name in NAMES]
    assert [content(row) for row in rows(path, Columns(text="txt"))] == NAMES


def test_a_file_that_breaks_off_is_a_row_that_failed_and_the_next_goes_on(tmp_path):
    whole = tar(tmp_path / "1.tar", {f"{n}.png": d for n, d in PICTURES.items()}).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(whole) // 16])
    found = rows(tmp_path / "*.tar")
    good = [row for row in found if not str(content(row)).startswith("failed")]
    assert [row.id for row in good][-3:] == [f"1.tar/{name}.png" for name in NAMES]
    assert [row.id for row in found if row not in good] == ["0.tar"]

    (tmp_path / "late.parquet").write_bytes(b"PAR1 and no more")
    table(tmp_path, name=NAMES).rename(tmp_path / "early.parquet")
    *texts, broken = rows(tmp_path / "*.parquet", Columns(text="name"))
    assert [content(row) for row in texts] == NAMES
    assert content(broken).startswith("failed: late.parquet: it cannot be read to its end")


def test_cells_that_hold_nothing_fail_alone(tmp_path):
    path = as_jsonl(tmp_path, [{"f": "red.png"}, {"f": None}, {"f": ""}, {"f": 3}, {}])
    with path.open("ab") as file:
        file.write(b"no JSON\n")
    missing, *others = map(content, rows(path, Columns(image="f")))
    assert "the file cannot be read" in missing
    assert [each.rpartition(": ")[2] for each in others] == [
        *["the cell is empty."] * 2,
        "the cell holds no image.",
        "the cell is empty.",
        "the line is no JSON object.",
    ]


def test_a_row_opens_no_more_than_its_table_may(tmp_path):
    """Whoever writes a table does not write who its reader is: other kinds of addresses could be the reader's own."""
    addresses = [
        "file:///etc/hostname",
        "memory://pictures/red.png",
        "ssh://host/x.png",
        "simplecache::file:///etc/hostname",
    ]
    in_memory(tmp_path)
    refused = list(map(content, rows(as_jsonl(tmp_path, [{"f": each} for each in addresses]), Columns(image="f"))))
    assert all("is opened only for a table that lies there too" in each for each in refused)
    fsspec.filesystem("memory").pipe("/t.jsonl", b'{"f": "memory://pictures/red.png"}\n{"f": "pictures/red.png"}\n')
    assert list(map(content, rows("memory://t.jsonl", Columns(image="f")))) == [PICTURES["red"]] * 2


def test_an_image_in_a_data_url_and_one_that_is_too_large(tmp_path):
    import base64

    url = "data:image/png;base64," + base64.b64encode(PICTURES["red"]).decode()
    [row] = rows(as_jsonl(tmp_path, [{"f": url}]), Columns(image="f"))
    assert row.item.read(10**6) == PICTURES["red"]
    assert len(row.item.name) < 300
    with pytest.raises(ItemError, match="more than 10 bytes"):
        row.item.read(10)


def test_what_lies_beside_images_is_told(photos):
    (photos / "notes.md").write_text("no image")
    found = list(opened(str(photos), Columns()).rows())
    assert [each.reason for each in found if isinstance(each, Skipped)] == ["no image that can be read"]


def test_a_folder_that_cannot_be_read_is_a_row_that_failed(photos, monkeypatch):
    (photos / "closed").mkdir()
    deny(monkeypatch, photos / "closed")
    [row] = [row for row in opened(str(photos), Columns()).rows() if row.id == "closed"]
    with pytest.raises(ItemError, match=r"closed: the folder cannot be read \(Permission denied\)"):
        row.item.read()
    deny(monkeypatch, photos)
    with pytest.raises(PermissionError):
        opened(str(photos), Columns())


def test_what_a_file_system_raises_of_its_own_is_a_sentence(monkeypatch):
    class Odd(Exception):
        pass

    def find(*_):
        raise Odd("no route")

    monkeypatch.setattr(fsspec.core, "url_to_fs", find)
    with pytest.raises(SourceError, match=r"hf://datasets/x cannot be read \(no route\)"):
        opened("hf://datasets/x", Columns(text="name"))


def test_a_folder_of_tables_of_which_some_cannot_be_read_is_refused(tmp_path, monkeypatch):
    for place in (tmp_path, tmp_path / "closed"):
        place.mkdir(exist_ok=True)
        (place / "a.csv").write_text("name\nred\n")
    deny(monkeypatch, tmp_path / "closed")
    with pytest.raises(SourceError, match="Permission denied"):
        opened(str(tmp_path), Columns(text="name"))


@pytest.mark.parametrize("columns", [Columns(), Columns(text="name")])
def test_a_source_is_the_same_by_every_spelling(photos, columns, monkeypatch):
    (photos / "a.csv").write_text("name\nred\n")
    (photos / "below").mkdir()
    (photos.parent / "link").symlink_to(photos)
    monkeypatch.chdir(photos / "below")
    spellings = [str(photos), f"{photos}/", "..", "../", "../below/..", str(photos.parent / "link")]
    sources = [opened(each, columns) for each in spellings]
    assert {(each.name, each.root) for each in sources} == {(sources[0].name, str(photos))}
    assert len({tuple(row.id for row in each.rows() if isinstance(row, Row)) for each in sources}) == 1


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 3, 5], np.int32)), pa.py_buffer(b"red\xff\xfe")]
)
CARRIED = {
    "a list": pa.array([["a"], None, []]),
    "a map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "a structure": pa.array([{"a": 1}, None, {"a": None}]),
    "a category": pa.array(["x", None, "y"]).dictionary_encode(),
    "nanoseconds": pa.array([1, None, 3]).cast(pa.timestamp("ns")),
    "a date beyond Python's": pa.array([2**50, None, 0]).cast(pa.timestamp("ms")),
    "views": pa.array(["x", None, "a string that is longer than twelve bytes"], pa.string_view()),
    "a uuid": pa.array([b"0123456789abcdef", None, b"0123456789abcdef"], pa.uuid()),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("what", CARRIED)
def test_a_column_of_any_type_is_carried_over_as_it_is(tmp_path, what):
    """With nulls, which DuckDB and Polars write, and values that Python has none for."""
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"name": NAMES, "other": CARRIED[what]}), path)
    source = opened(str(path), Columns(text="name"))
    origin = Origin("http://here", {"id": "a", "dimension": 2}, {})
    with Parts(Place(tmp_path, "x", schema(2, "float32", source.schema), origin, {})) as parts:
        parts.write([Embedded(item, np.zeros(2, np.float32)) for item in parts.items(source.rows())])
    part = pq.read_table(tmp_path / "part-x-00000.parquet")
    before, after = pq.read_table(path)["other"], part["other"]
    assert after.equals(before.cast(after.type))
    assert after.type == before.type or what == "views"
    assert part.filter(pa.array([True, False, True]))["other"] == after.take([0, 2])


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array([1, 2]).cast(pa.timestamp("ns")), [f"1970-01-01 00:00:00.00000000{i}" for i in (1, 2)]),
        (pa.array([float("nan"), None]), ["table.parquet:1", "table.parquet:2"]),
        (pa.array([10**30, None], pa.decimal128(38, 0)), [f"1{'0' * 30}", "table.parquet:2"]),
    ],
)
def test_ids_of_any_type_tell_rows_apart(tmp_path, column, ids):
    assert [row.id for row in rows(table(tmp_path, name=["red", "blue"], id=column), Columns(text="name"))] == ids


def test_texts_of_other_writers(tmp_path):
    """Views are texts too; one that is no UTF-8 fails alone."""
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"name": pa.array(NAMES, pa.string_view())}), path)
    assert [content(row) for row in rows(path, Columns(text="name"))] == NAMES
    pq.write_table(pa.table({"name": NOT_UTF8}), path)
    red, broken = map(content, rows(path, Columns(text="name")))
    assert (red, broken) == ("red", "failed: row 2 of table.parquet: this is not UTF-8 text.")


def test_a_folder_of_tables_is_one_table(tmp_path):
    """As Spark, Hive and DuckDB write it. A file that is not like the first fails alone, and says how."""
    folder = tmp_path / "out"
    for part, columns in {
        "part=0/a.parquet": {"name": ["red"], "n": [1]},
        "part=0/b.parquet": {"name": ["blue"], "n": ["many"]},
        "part=1/c.parquet": {"title": ["green"]},
        "part=1/d.parquet": {"name": [3]},
        "part=2/e.parquet": {"n": pa.array([None], pa.int32()), "name": ["white"]},
        "_temporary/f.parquet": {"name": ["no"]},
    }.items():
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / part)
    for beside in ("_SUCCESS", ".a.parquet.crc", "_metadata"):
        (folder / beside).write_bytes(b"")
    found = rows(folder, Columns(text="name"))
    parts = ["part=0/a", "part=0/b", "part=1/c", "part=1/d", "part=2/e"]
    assert [row.id.partition(".")[0] for row in found] == parts
    told = [content(row) for row in found]
    assert (told[0], told[4]) == ("red", "white")
    assert "its column n is of string, and in the first file of int64" in told[1]
    assert "has no column name. Its columns are: title" in told[2]
    assert "is of int64, not of texts" in told[3]
    assert content(rows(folder / "part=0" / "*", Columns(text="name"))[0]) == "red"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name,n\nred,1\n"open,2\nblue,3\n', ["red", "failed: table.csv:2: the row cannot be read (unexpected end"]),
        ('name,n\n"say \\"hi\\"",1\nblue,2\n', ["failed: table.csv:1: the row cannot be read (", "blue"]),
        ("name,n\nred, or dark,1\nblue,2,,\n", ["failed: table.csv:1: it has 3 cells, and there are 2", "blue"]),
        ("name,,\nred,x,y\n", ["red"]),
    ],
)
def test_a_row_of_cells_that_are_not_the_tables_fails_alone(tmp_path, text, expected):
    """A comma or a quote that nobody escaped would cut a text short, or put the rows after it into it."""
    path = tmp_path / "table.csv"
    path.write_text(text)
    found = [content(row) for row in rows(path, Columns(text="name"))]
    assert len(found) == len(expected)
    assert all(each.startswith(begin) for each, begin in zip(found, expected, strict=True)), found


def test_json_lines_of_other_writers(tmp_path):
    """NaN, numbers of any size as ids, blank lines, keys that come later, half a surrogate pair, another encoding."""
    path = tmp_path / "table.json"
    lines = ["", '{"name": "red", "id": 100000000000000000000001, "x": NaN}', "  "]
    lines += ['{"name": "blue", "id": 100000000000000000000002, "late": "l"}', '{"name": "\\ud800", "id": 3}', ""]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("\n".join(lines).encode(encoding))
        found = rows(path, Columns(text="name"))
        assert [row.id for row in found] == ["100000000000000000000001", "100000000000000000000002", "3"]
        assert [content(row) for row in found[:2]] == ["red", "blue"]
        assert "not UTF-8 text" in content(found[2])
        assert opened(str(path), Columns(text="name")).schema.names == ["name", "x", "late"]
    path.write_bytes('{"name": "caf\xe9"}\n{"name": "red"}\n'.encode("latin-1"))
    assert [content(row) for row in rows(path, Columns(text="name"))][1] == "red"


def test_lines_in_utf_16_are_their_texts(tmp_path):
    """What PowerShell's > writes."""
    (tmp_path / "lines.txt").write_bytes("red\r\nblue\r\n".encode("utf-16"))
    assert [content(row) for row in rows(tmp_path / "lines.txt")] == ["red", "blue"]


def test_zstandard_is_read_by_what_is_there(photos, tmp_path):
    def packed(path: Path) -> Path:
        path.with_suffix(f"{path.suffix}.zst").write_bytes(pa.Codec("zstd").compress(path.read_bytes(), asbytes=True))
        return path.with_suffix(f"{path.suffix}.zst")

    for path, columns in (
        (as_jsonl(tmp_path, [{"f": f"photos/{name}.png"} for name in NAMES]), Columns(image="f")),
        (as_csv(tmp_path, [{"f": f"photos/{name}.png"} for name in NAMES]), Columns(image="f")),
        (tar(tmp_path / "a.tar", {f"{name}.png": data for name, data in PICTURES.items()}), Columns()),
    ):
        assert [content(row) for row in rows(packed(path), columns)] == list(PICTURES.values())


def test_an_image_written_as_base64_is_one(tmp_path):
    [row] = rows(as_jsonl(tmp_path, [{"f": b64encode(PICTURES["red"]).decode()}]), Columns(image="f"))
    assert (content(row), row.item.name) == (PICTURES["red"], "table.jsonl:1")


def test_tar_files_of_other_writers(tmp_path):
    """A README first, macOS's notes, a name that is there twice, and an end that is cut within a header."""
    members = {"README": b"read me", "._a.png": b"\0\5\x16\7", "a.png": PICTURES["red"], "b.png": PICTURES["blue"]}
    whole = tar(tmp_path / "a.tar", members)
    assert [row.id for row in rows(whole)] == ["a.tar/a.png", "a.tar/b.png"]
    with tarfile.open(whole) as file:
        [*_, last] = file.getmembers()
    cut = whole.read_bytes()[: last.offset + 100]
    (tmp_path / "b.tar").write_bytes(cut)
    assert [content(row) for row in rows(tmp_path / "*.tar")][-1].startswith("failed: b.tar: it cannot be read to its")
    with tarfile.open(tmp_path / "twice.tar", "w") as file:
        for data in (PICTURES["red"], PICTURES["blue"]):
            member = tarfile.TarInfo("a.png")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    assert [content(row) for row in rows(tmp_path / "twice.tar")] == [PICTURES["red"], PICTURES["blue"]]


def test_what_is_no_file_is_not_read(photos):
    """A FIFO has no end that anybody would wait for, and /dev/zero none at all."""
    os.mkfifo(photos / "pipe.png")
    as_csv(photos, [{"f": "/dev/zero"}, {"f": "pipe.png"}, {"f": "red.png"}])
    zero, pipe, red = map(content, rows(photos / "table.csv", Columns(image="f")))
    assert zero.endswith("(/dev/zero): it is no file.")
    assert pipe.endswith("(pipe.png): it is no file.")
    assert red == PICTURES["red"]
    assert [content(row) for row in rows(photos / "*.png")].count(PICTURES["red"]) == 1


def test_a_server_that_says_nothing_costs_its_own_row_some_seconds(photos, tmp_path, monkeypatch):
    """fsspec's own limit is five minutes for each row."""
    monkeypatch.setattr(sources, "SILENT_SECONDS", 1.0)  # the other one answers sooner, on a busy machine too
    with socket.create_server(("127.0.0.1", 0)) as silent, served(photos, Ranges) as address:
        urls = [f"http://127.0.0.1:{silent.getsockname()[1]}/x.png", f"{address}/red.png"]
        started = time.monotonic()
        found = [content(row) for row in rows(as_jsonl(tmp_path, [{"f": url} for url in urls]), Columns(image="f"))]
        assert time.monotonic() - started < 60
    assert "it cannot be read (" in found[0]
    assert found[1] == PICTURES["red"]


def test_a_name_is_itself_before_it_is_a_pattern(photos):
    (photos / "red.png").rename(photos / "[1] red?.png")
    assert [content(row) for row in rows(photos / "[1] red?.png")] == [PICTURES["red"]]


def test_names_that_are_not_utf8_stay_apart(photos):
    for name in (b"caf\xe8.png", b"caf\xe9.png"):
        (photos / os.fsdecode(name)).write_bytes(PICTURES["red"])
    assert len({row.id for row in rows(photos)}) == 5


@pytest.mark.parametrize(
    ("spec", "columns", "sentence"),
    [
        ("missing.csv", Columns(text="name"), "There is no "),
        ("nothing/*.tar", Columns(), "There is no nothing"),
        ("memory://nowhere/", Columns(), "There is no "),
        ("table.csv", Columns(), "Which column of "),
        ("table.csv", Columns(text="nam"), "has no column nam. Its columns are: name, n"),
        ("table.csv", Columns(text="name", id="sku"), "has no column sku"),
        ("table.parquet", Columns(text="n"), "is of int64, not of texts"),
        ("table.md", Columns(), "is none of .parquet, .csv"),
        ("nowhere://x.tar", Columns(), "cannot be read"),
        ("", Columns(), "an empty string"),
        (".", Columns(image="f"), "has no column f"),
        ("red.png", Columns(image="f"), "has no columns"),
        ("twice.csv", Columns(text="name"), "more than one column n: rename"),
        ("latin.csv", Columns(text="name"), "not UTF-8"),
        ("empty.csv", Columns(text="name"), "it is empty"),
        ("empty.tar", Columns(), "has no image"),
    ],
)
def test_what_cannot_be_a_source_is_a_sentence(tmp_path, monkeypatch, spec, columns, sentence):
    monkeypatch.chdir(tmp_path)
    as_csv(tmp_path, [{"name": "red", "n": 1}])
    table(tmp_path, name=["red"], n=[1])
    Path("table.md").write_text("no table")
    tar(Path("empty.tar"), {})
    Path("red.png").write_bytes(PICTURES["red"])
    Path("twice.csv").write_text("name,n,n\nred,1,2\n")
    Path("latin.csv").write_text("name,pr\xe9\nred,1\n", "latin-1")
    Path("empty.csv").touch()
    with pytest.raises(SourceError, match=sentence):
        opened(spec, columns)
