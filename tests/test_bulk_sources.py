"""Where rows come from: every form of a source gives the same rows, and what is broken fails alone."""

import csv
import io
import pickle
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import BinaryIO, Literal

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3_vl_embed import ItemError
from qwen3_vl_embed.bulk.sources import Columns, Row, opened
from qwen3_vl_embed.cli.validation import swatch
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import Skipped

NAMES = ["blue", "green", "red"]
PICTURES = {name: swatch(name) for name in NAMES}


def nothing(id: str) -> bool:
    return False


def rows(spec: object, columns: Columns = Columns(), known=nothing) -> list[Row]:  # noqa: B008  (frozen)
    return [row for row in opened(str(spec), columns).rows(known) if isinstance(row, Row)]


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
    assert rows(spec, columns, known={row.id for row in found}.__contains__) == []
    assert [row.id for row in rows(spec, columns, known={found[1].id}.__contains__)] == [found[0].id, found[2].id]


@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_the_same_rows_for_another_process(photos, tmp_path, form):
    spec, columns = FORMS[form](tmp_path)
    source = opened(str(spec), columns)
    pieces = pickle.loads(pickle.dumps(list(source.pieces())))
    found = [row for piece in pieces for row in piece.rows(nothing)]
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
        assert rows(spec, columns, known={row.id for row in found}.__contains__) == []


def test_a_server_gives_one_picture_and_those_that_a_page_lists(photos, tmp_path):
    with served(tmp_path, Ranges) as address:
        [row] = rows(f"{address}/photos/red.png")
        assert content(row) == PICTURES["red"]
        assert [content(row) for row in rows(f"{address}/photos/")] == list(PICTURES.values())
        with pytest.raises(SourceError, match="There is no "):
            rows(f"{address}/nothing.tar")
        [missing] = rows(as_jsonl(tmp_path, [{"f": f"{address}/photos/nothing.png"}]), Columns(image="f"))
        assert "it cannot be read (FileNotFoundError" in content(missing)


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
        found = list(source.rows(nothing))
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
    found = list(opened(str(photos), Columns()).rows(nothing))
    assert [each.reason for each in found if isinstance(each, Skipped)] == ["no image that can be read"]


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
        ("empty.tar", Columns(), "has no image"),
    ],
)
def test_what_cannot_be_a_source_is_a_sentence(tmp_path, monkeypatch, spec, columns, sentence):
    monkeypatch.chdir(tmp_path)
    as_csv(tmp_path, [{"name": "red", "n": 1}])
    table(tmp_path, name=["red"], n=[1])
    Path("table.md").write_text("no table")
    tar(Path("empty.tar"), {})
    with pytest.raises(SourceError, match=sentence):
        opened(spec, columns)
