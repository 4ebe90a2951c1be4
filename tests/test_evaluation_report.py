"""What a report is made of and what it leaves behind: sources, files, the page."""

import csv
import io
import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import captions, colours
from evaluation.labels import GROUPS
from evaluation.page import page
from evaluation.pairs import EvaluationError, Pairs, load
from evaluation.report import Report, report
from evaluation.tsv import COLUMNS, tsv

N = 40
PALETTE = colours.xkcd()
NAMES = tuple(PALETTE.names[::20][:N])
RGB = PALETTE.rgb[::20][:N]
WEIGHTS = np.random.default_rng(0).normal(size=(3, 16))


def seen(rgb: np.ndarray) -> np.ndarray:
    """A vector that knows the colour: float (…, 16)."""
    return np.sin(np.asarray(rgb) / 80 @ WEIGHTS)


def pairs(rgb: np.ndarray | None = RGB, names: tuple[str, ...] = NAMES, **more) -> Pairs:
    image = seen(RGB).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=image.shape)
    return Pairs(names, (image + 0.3 * noise).astype(np.float32), image, rgb, **more)


@pytest.fixture(scope="module")
def found() -> Report:
    return report(pairs(about={"source": "forty colours", "model": {"checkpoint": "some/tiny"}}), "tiny <1>")


class Document(HTMLParser):
    """What a browser would see: whether tags close, and what is fetched."""

    VOID = frozenset({"meta", "input", "image", "path", "use", "rect", "br", "stop"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(found):
    text = page(found)
    document = Document(text)
    assert document.open == []
    assert all(address.startswith("data:image/png;base64,") for address in document.fetched)
    assert not re.search(r"url\((?!data:|#)|@import|<script", text)
    assert "tiny &lt;1&gt;" in text
    assert "$" not in re.sub(r"<style>.*</style>|data:[^\"]*", "", text, flags=re.DOTALL)


def test_the_page_shows_every_figure_and_every_name(found):
    text = page(found)
    for labels in GROUPS.values():
        for label in labels:
            assert label.value(found.figures["raw"][label.key]) in text
    assert all(f'title="{name}"' in text for name in NAMES)
    assert found.verdict.words in text
    assert text.count("<svg") == text.count('role="img" aria-label=') == 10


def test_every_figure_has_a_label(found):
    assert {label.key for labels in GROUPS.values() for label in labels} == set(found.figures["raw"])


def test_names_cannot_break_the_page():
    names = ('"><b>', "</style>", *NAMES[2:])
    text = page(report(pairs(names=names), "x"))
    assert Document(text).open == []
    assert "&quot;&gt;&lt;b&gt;" in text


@pytest.mark.parametrize("rgb", [RGB, None])
def test_a_collapsed_space_has_a_page_too(rgb):
    same = np.ones((N, 8), dtype=np.float32)
    text = page(report(Pairs(NAMES, same, same, rgb), "constant"))
    assert "The space has collapsed" in text
    assert "nan" not in re.sub(r"<style>.*</style>|data:[^\"]*|<i [^>]*>", "", text, flags=re.DOTALL).lower().split()


def test_json_is_plain(found):
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["pairs"] == N
    assert set(told["raw"]) == set(told["centred"])
    assert told["verdict"]["kind"] == found.verdict.kind


def test_tsv_has_the_benchmarks_columns(found):
    written = tsv("tiny", N, found.figures["raw"], datetime(2026, 1, 2, 3, 4, 5))
    [row] = csv.DictReader(io.StringIO(written, newline=""), delimiter="\t")
    assert tuple(row) == COLUMNS
    assert (row["timestamp"], row["model_name"], row["n_colors"]) == ("2026-01-02T03:04:05", "tiny", str(N))
    text, image = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (found.pairs.text, found.pairs.image))
    distance = 1 - (text.astype(float) * image).sum(axis=1)
    assert row["mean_distance"] == f"{distance.mean():.6f}"
    assert row["variance"] == f"{distance.var():.6f}"


def test_vectors_are_kept_as_they_came(found, tmp_path):
    found.pairs.save(tmp_path / "vectors.npz")
    again = load(tmp_path / "vectors.npz")
    for name in ("text", "image", "rgb"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found.pairs, name))
    assert (again.names, again.about, again.thumbnails) == (found.pairs.names, found.pairs.about, ())


def test_a_file_that_is_no_vectors_file(tmp_path):
    (tmp_path / "v.npz").write_bytes(b"no")
    with pytest.raises(EvaluationError, match=r"is not a vectors\.npz"):
        load(tmp_path / "v.npz")
    with pytest.raises(EvaluationError, match="There is no file"):
        load(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name,colour\nred,#ff0000\n", "headings name,hex"),
        ("name,hex\nred,#ff00\n", "line 2: a row is a name and a colour"),
        ("name,hex\n,#ff0000\n", "line 2"),
        ("name,hex\nred\n", "line 2"),
    ],
)
def test_a_palette_that_is_none(tmp_path, content, sentence):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(colours.PaletteError, match=sentence):
        colours.read_palette(tmp_path / "c.csv")


def write_images(folder: Path) -> None:
    folder.mkdir()
    for index, (name, rgb) in enumerate(zip(NAMES, RGB, strict=True)):
        Image.new("RGB", (30, 20), tuple(rgb.tolist())).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"{name}\n")


def test_captions_beside_images_or_in_a_table(tmp_path):
    write_images(tmp_path / "photos")
    beside = captions.read_folder(tmp_path / "photos")
    assert [each.caption for each in beside] == list(NAMES)
    (tmp_path / "photos" / "captions.csv").write_text("file,caption\n01.png,a second thing\n00.png,a first thing\n")
    table = captions.read_folder(tmp_path / "photos")
    assert [(each.path.name, each.caption) for each in table] == [
        ("01.png", "a second thing"),
        ("00.png", "a first thing"),
    ]
    (tmp_path / "photos" / "captions.csv").write_text("file,caption\ngone.png,nothing\n")
    with pytest.raises(captions.CaptionError, match=r"There is no image .*gone\.png"):
        captions.read_folder(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(captions.CaptionError, match="holds no captioned images"):
        captions.read_folder(tmp_path / "empty")
