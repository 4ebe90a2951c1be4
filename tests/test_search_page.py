"""What the search page asks, over HTTP: who may ask, which files it shows, and that a bad question is a sentence."""

import csv
import io
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qwen3_vl_embed import Client
from qwen3_vl_embed.cli.validation import BASIC_COLOURS, swatch
from qwen3_vl_embed.search.index import Index, build
from qwen3_vl_embed.search.page import Page, Server
from qwen3_vl_embed.search.queries import Searcher
from tests.test_search import colours, spread, write  # noqa: F401  (a fixture)


def served(index: Index, url: str) -> Iterator[str]:
    """A page of this index on a free port."""
    with Client(url, retry_for_s=0) as client, Server(("127.0.0.1", 0), Page(Searcher(index, client))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """An index of five rows: a picture, a broken one, a link out of the folder, a path out of it, a text."""
    place = tmp_path_factory.mktemp("pictures")
    folder = place / "shown"
    folder.mkdir()
    (place / "secret.png").write_bytes(swatch("red"))
    (folder / "red.png").write_bytes(swatch("red"))
    (folder / "broken.png").write_bytes(swatch("red")[:60])
    (folder / "link.png").symlink_to(place / "secret.png")
    items = ["red.png", "broken.png", "link.png", "../secret.png"]
    files = [
        write(place / "a.parquet", spread(4, 8), "image", str(folder), item=items),
        write(place / "b.parquet", spread(1, 8, 1), "text"),
    ]
    build(files, place / "index")
    return place / "index"


@pytest.fixture(scope="module")
def http(pictures) -> Iterator[httpx.Client]:
    """To a page whose server is gone."""
    for url in served(Index(pictures), "http://127.0.0.1:9"):
        with httpx.Client(base_url=url) as client:
            yield client


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *[("0", 200), ("1", 422), ("2", 404), ("3", 404), ("4", 404), ("5", 404), ("-1", 404), ("0x0", 404), ("", 404)],
        *[("../index.json", 404), ("%2e%2e%2findex.json", 404), ("..%2f..%2fsecret.png", 404), ("/etc/hostname", 404)],
        ("²", 404),
    ],
)
def test_thumbnails_are_of_rows_below_the_folder_alone(http, name, status):
    answer = http.get(f"/thumbnail/{name}")
    assert answer.status_code == status, answer.text
    if status == 200:
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.format == "WEBP"
            assert np.abs(np.array(image.convert("RGB"), int) - BASIC_COLOURS["red"]).max() < 8
    else:
        assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    "path", ["/page.py", "/../page.py", "/page/../../page.py", "/%2e%2e/index.py", "/queries", "/x"]
)
def test_nothing_else_is_served(http, path):
    assert http.get(path).status_code == 404


@pytest.mark.parametrize("name", ["../index.json", "0" * 64, "%2e%2e/index.json", "x"])
def test_a_dropped_picture_goes_by_its_digest(http, name):
    assert http.get(f"/picture/{name}").status_code == 404
    kept = http.post("/picture", content=swatch("blue")).json()["picture"]
    assert http.get(f"/picture/{kept}").headers["content-type"] == "image/webp"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_names_and_other_pages_are_refused(http, headers, status):
    for answer in (http.get("/about", headers=headers), http.post("/search", json={"like": "0"}, headers=headers)):
        assert answer.status_code == status


def test_every_answer_says_that_nothing_comes_from_elsewhere(http):
    for path in ("/", "/page.js", "/page.css", "/about", "/thumbnail/0", "/nothing"):
        headers = http.get(path).headers
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    page = Path("qwen3_vl_embed/search/page/page.html").read_text()
    assert "http" not in page
    assert "style=" not in page
    assert not re.search(r"\son\w+=", page)


@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    [
        ({}, 400, "Type words, pick a colour"),
        ({"text": "red"}, 502, "Nothing answers at"),
        ({"colour": "red"}, 400, "is no colour"),
        ({"colour": "#gggggg"}, 400, "non-hexadecimal"),
        ({"like": "17"}, 404, "no such row"),
        ({"like": {}}, 404, "no such row"),
        ({"picture": "../x"}, 404, "drop it again"),
        ({"like": 0, "words": "x"}, 400, "could not convert"),
        ([], 400, ""),
        ("red", 400, ""),
    ],
)
def test_a_bad_question_is_a_sentence(http, asked, status, sentence):
    answer = http.post("/search", json=asked)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize("body", [b'{"like": 0, "count": 1e999}', 100_000 * b"["])
def test_json_that_python_gives_up_is_a_bad_question(http, body):
    """The connection broke."""
    assert http.post("/search", content=body).status_code == 400


def test_a_body_that_is_too_long_or_none_is_refused(http):
    with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
        raw.sendall(f"POST /picture HTTP/1.1\r\nHost: {http.base_url.netloc.decode()}\r\n".encode())
        raw.sendall(b"Content-Length: 1000000000\r\n\r\n")
        answer = raw.makefile("rb").read()  # to the end: what comes after is nobody's request
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert http.post("/search", content=b"no JSON").status_code == 400


def test_rows_are_saved_with_their_columns_and_vectors(http, pictures):
    text = http.post("/export", json={"rows": [4, 0], "form": "csv"}).text
    assert [row[:3] for row in csv.reader(io.StringIO(text))] == [
        ["id", "kind", "item"],
        ["image 0", "image", "red.png"],
        ["text 0", "text", "text 0"],
    ]
    table = pq.read_table(io.BytesIO(http.post("/export", json={"rows": ["0"], "form": "parquet"}).content))
    np.testing.assert_array_equal(table["embedding"].to_pylist()[0], Index(pictures).vectors[0])
    assert http.post("/export", json={"rows": [99], "form": "csv"}).status_code == 404


def test_hits_say_what_they_are(http):
    answer = http.post("/search", json={"like": "0", "count": 3}).json()
    assert len(answer["hits"]) == 2  # of three, less itself
    assert {tuple(hit) for hit in answer["hits"]} == {("id", "kind", "item", "row", "picture", "cosine", "percentile")}
    assert [hit["picture"] for hit in answer["hits"] if hit["item"] in ("link.png", "../secret.png")] == [False] * len(
        [hit for hit in answer["hits"] if hit["item"] in ("link.png", "../secret.png")]
    )


def test_a_picture_with_more_pixels_than_are_shown_is_not_decoded(http, tmp_path):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    kept = http.post("/picture", content=file.getvalue()).json()["picture"]
    assert http.get(f"/picture/{kept}").status_code == 422


def test_the_folder_of_kept_pictures_is_nobody_elses(http, pictures):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    assert http.post("/picture", content=file.getvalue()).status_code == 200
    assert os.stat(pictures / "queries").st_mode & 0o077 == 0
