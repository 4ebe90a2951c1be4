"""What a report is made of and what it leaves behind: sources, files, the page."""

import base64
import csv
import hashlib
import io
import json
import os
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen3_vl_embed.evaluation import captions, chips, colours
from qwen3_vl_embed.evaluation.labels import GROUPS
from qwen3_vl_embed.evaluation.page import page
from qwen3_vl_embed.evaluation.pairs import Pairs, load
from qwen3_vl_embed.evaluation.report import Report, report
from qwen3_vl_embed.evaluation.tsv import COLUMNS, tsv
from qwen3_vl_embed.files.errors import SourceError

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


@pytest.fixture(scope="module")
def text(found) -> str:
    return page(found)


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


def test_the_page_is_whole_and_fetches_nothing(text):
    document = Document(text)
    assert document.open == []
    assert all(address.startswith("data:image/png;base64,") for address in document.fetched)
    assert not re.search(r"url\((?!data:|#)|@import", text)
    assert "tiny &lt;1&gt;" in text
    assert "$" not in re.sub(r"<style>.*</style>|data:[^\"]*", "", text, flags=re.DOTALL)


def test_the_page_runs_its_own_script_alone(text):
    """A policy before anything else names it by its hash; attributes that run script are none of it."""
    policy = re.search(r'^<meta http-equiv="Content-Security-Policy" content="([^"]*)">$', text, re.MULTILINE)
    assert policy.start() < text.index("<style>")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert {"default-src 'none'", f"script-src 'sha256-{digest}'"} <= set(policy[1].split("; "))
    assert not re.search(r"<[^>]*\son[a-z]+=", text)


def test_the_page_shows_every_figure_and_every_name(found, text):
    for labels in GROUPS.values():
        for label in labels:
            assert label.value(found.figures["raw"][label.key]) in text
    titles = set(re.findall(r'title="([^"]*)"', text))
    assert len(titles) == len(NAMES)
    assert set(NAMES) - titles == {"snot green"}  # which is a rude word
    assert found.verdict.words in text
    assert text.count("<svg") == text.count('role="img" aria-label=') == 8


def test_the_page_is_made_to_be_shown():
    """What people answered is measured; of a rude word the page shows the first letter."""
    names = ("baby shit brown", "grapefruit", "dark grass green", "poop", *NAMES[4:])
    text = page(report(pairs(names=names), "x"))
    assert "shit" not in text
    for name in ("baby s*** brown", "grapefruit", "dark grass green", "p***"):
        assert f'title="{name}"' in text


def test_what_is_long_is_folded():
    """Eight mistakes at once, of thirty that are shown."""
    image = seen(RGB).astype(np.float32)
    unsure = Pairs(NAMES, np.roll(image, 1, axis=0), image, RGB)
    cards = chips.mistakes(report(unsure, "x"), "text_to_image")
    assert cards.count("<li>") == 30
    assert re.sub(r"<details>.*</details>", "", cards, flags=re.DOTALL).count("<li>") == 8


def test_every_link_of_the_page_has_its_place(text):
    places = re.findall(r'href="#([a-z]+)"', text)
    assert places == ["found", "mistakes", "pool", "distances", "colour", "figures", "method"]
    assert all(re.search(rf'<h2 id="?{place}"?>', text) for place in places)


def test_every_figure_has_a_label(found):
    assert {label.key for labels in GROUPS.values() for label in labels} == set(found.figures["raw"])


def test_names_cannot_break_the_page():
    names = ('"><b>', "</style>", *NAMES[2:])
    text = page(report(pairs(names=names), "x"))
    assert Document(text).open == []
    assert "&quot;&gt;&lt;b&gt;" in text


def test_long_texts_leave_the_page_small():
    """Whole they are said once, and not in each of 17 chips."""
    image = seen(RGB).astype(np.float32)
    unsure = Pairs(tuple(f"{index} " + 10_000 * "x" for index in range(N)), np.roll(image, 1, axis=0), image)
    text = page(report(unsure, "x"))
    assert text.count(10_000 * "x") == N
    assert max(map(len, re.findall(r'title="([^"]*)"', text))) < 200


def test_a_text_that_runs_to_the_left_turns_nothing_beside_it():
    image = seen(RGB).astype(np.float32)
    turned = Pairs(("\u202eevil", *NAMES[1:]), np.roll(image, 1, axis=0), image, RGB)
    cards = chips.mistakes(report(turned, "x"), "text_to_image")
    assert cards.count("\u202eevil") == cards.count("<bdi>\u202eevil</bdi>") + cards.count('title="\u202eevil"') > 1


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
    with (tmp_path / "vectors.npz").open("wb") as file:
        found.pairs.save(file)
    again = load(tmp_path / "vectors.npz")
    for name in ("text", "image", "rgb"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found.pairs, name))
    assert (again.names, again.about, again.thumbnails) == (found.pairs.names, found.pairs.about, ())


def test_names_as_other_programs_write_them(tmp_path):
    """Of bytes, and vectors of halves: what h5py and TensorFlow give."""
    vectors = seen(RGB)
    np.savez(
        tmp_path / "v.npz",
        names=np.array([name.encode() for name in NAMES]),
        text=vectors.astype(np.float16),
        image=vectors.astype(np.float64),
    )
    found = load(tmp_path / "v.npz")
    assert found.names == NAMES
    np.testing.assert_allclose(found.text, found.image, atol=1e-3)


HOSTILE = "x)}</style><script>alert('npz')</script>"
PICTURE = captions.thumbnail(Path(__file__).parent.parent / "examples" / "red.png")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"thumbnails": np.array([HOSTILE] * N)}, "not base64"),
        ({"thumbnails": np.array([PICTURE] * (N - 1) + ["a;b"])}, "not base64"),
        ({"thumbnails": np.array([PICTURE])}, "1 thumbnails of 40"),
        ({"thumbnails": np.zeros(N)}, "not base64"),
        ({"rgb": np.array([[HOSTILE] * 3] * N)}, r"uint8 \(40, 3\)"),
        ({"rgb": np.zeros((N, 4), dtype=np.uint8)}, r"uint8 \(40, 3\)"),
        ({"text": np.array([["a"] * 16] * N)}, "is not a vectors"),
        ({"text": np.ones(N)}, "do not fit|is not a vectors"),
        ({"about": np.array("[1]")}, "is not a vectors"),
        ({"about": np.array('{"model": 1}')}, "is not a vectors"),
        ({"about": np.array('{"model": {"checkpoint": [1]}}')}, "is not a vectors"),
        ({"about": np.array('{"server": "\\ud800"}')}, "is not a vectors"),
        ({"about": np.array('{"server": "http://a\\u0000"}')}, "is not a vectors"),
        ({"names": np.array([[name] for name in NAMES])}, "is not a vectors"),
        ({"names": np.array(["\ud800"] * N)}, "is not a vectors"),
        ({"names": np.array([object()] * N, dtype=object)}, "is not a vectors"),
    ],
)
def test_what_somebody_else_made_of_it_is_refused(tmp_path, arrays, sentence):
    """In a sentence, before anything of it can reach a page."""
    vectors = seen(RGB).astype(np.float32)
    whole = {"names": np.array(NAMES), "text": vectors, "image": vectors, "rgb": RGB, "about": np.array("{}")}
    np.savez(tmp_path / "v.npz", **(whole | arrays))
    with pytest.raises(SourceError, match=sentence):
        load(tmp_path / "v.npz")


def test_a_damaged_file_is_refused(tmp_path, found):
    file = io.BytesIO()
    found.pairs.save(file)
    content = file.getvalue()
    for cut in (4, 100, len(content) // 2):
        for damaged in (content[:cut], content[:cut] + bytes(64) + content[cut + 64 :]):
            (tmp_path / "v.npz").write_bytes(damaged)
            with pytest.raises(SourceError, match=r"is not a vectors\.npz|vector is zero|do not fit"):
                load(tmp_path / "v.npz")


def test_a_file_that_is_no_vectors_file(tmp_path):
    (tmp_path / "v.npz").write_bytes(b"no")
    with pytest.raises(SourceError, match=r"is not a vectors\.npz"):
        load(tmp_path / "v.npz")
    with pytest.raises(SourceError, match="There is no file"):
        load(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name,colour\nred,#ff0000\n", "headings name,hex"),
        ("name,hex\nred,#ff00\n", "row 1: a row is a name and a colour"),
        ("name,hex\n,#ff0000\n", "row 1"),
        ("name,hex\nred\n", "row 1"),
        ("name,hex\nred,#ff0000\nlight, blue,#0000ff\n", "row 2: it has 3 cells, and there are 2 headings"),
        ('name,hex\nred,#ff0000\n"blue,#0000ff\ngreen,#00ff00\n', "row 2: .*quote"),
        ("name,hex,hex\nred,#ff0000,#0000ff\n", "headings name,hex"),
        ("name,hex\ngr\udcfcn,#00ff00\n", "row 1 is not UTF-8"),
    ],
)
def test_a_palette_that_is_none(tmp_path, content, sentence):
    (tmp_path / "c.csv").write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(SourceError, match=sentence):
        colours.read_palette(tmp_path / "c.csv")


def test_what_spreadsheets_write_is_a_palette(tmp_path):
    """Semicolons, UTF-16 with a mark, other columns."""
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "c.csv").write_text("n;hex;name\r\n1; #FF0000;röt\r\n\r\n2;0000ff;blue;\r\n", encoding)
        palette = colours.read_palette(tmp_path / "c.csv")
        assert palette.names == ("röt", "blue")
        assert palette.rgb.tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("rows", ["00.png,a dog, asleep\n", '00.png,"a dog\n01.png,a cat\n'])
def test_no_part_of_a_caption_is_lost(tmp_path, rows):
    """A comma without quotes cut the caption short; a quote that does not end took the rows after it into it."""
    write_images(tmp_path / "photos")
    (tmp_path / "photos" / "captions.csv").write_text("file,caption\n" + rows)
    with pytest.raises(SourceError, match="row 1: "):
        captions.read_folder(tmp_path / "photos")


def test_a_note_of_macos_is_no_table_of_captions(tmp_path):
    write_images(tmp_path / "photos")
    (tmp_path / "photos" / "captions.csv").write_text("file,caption\n00.png,a thing\n")
    (tmp_path / "photos" / "._captions.csv").write_bytes(b"\0\5\x16\7")
    assert [each.caption for each in captions.read_folder(tmp_path / "photos")] == ["a thing"]


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
    with pytest.raises(SourceError, match=r"There is no image .*gone\.png"):
        captions.read_folder(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no captioned images"):
        captions.read_folder(tmp_path / "empty")


@pytest.mark.parametrize("file", ["../secret.png", "{outside}", "link.png", "links/secret.png", "a\0b.png", "a" * 300])
def test_a_caption_file_stays_in_its_folder(tmp_path, file):
    """Whoever packed it must not put a picture from elsewhere on this machine into the report."""
    (tmp_path / "photos").mkdir()
    outside = tmp_path / "secret.png"
    Image.new("RGB", (30, 20)).save(outside)
    (tmp_path / "photos" / "link.png").symlink_to(outside)
    (tmp_path / "photos" / "links").symlink_to(tmp_path)
    table = tmp_path / "photos" / "captions.csv"
    table.write_text(f"file,caption\n{file.format(outside=outside)},mine\n")
    with pytest.raises(SourceError, match=r"leads out of|There is no image"):
        captions.read_folder(tmp_path / "photos")


def test_a_caption_is_not_read_from_elsewhere(tmp_path):
    write_images(tmp_path / "photos")
    (tmp_path / "secret").write_text("what only its owner may read")
    (tmp_path / "photos" / "00.txt").unlink()
    (tmp_path / "photos" / "00.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=r"00\.txt leads out of"):
        captions.read_folder(tmp_path / "photos")
    (tmp_path / "photos" / "00.txt").unlink()
    (tmp_path / "photos" / "captions.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=r"captions\.csv leads out of"):
        captions.read_folder(tmp_path / "photos")


def test_what_only_looks_like_an_image_is_passed_over(tmp_path):
    photos = tmp_path / "photos"
    write_images(photos)
    (photos / "x.png").mkdir()
    os.mkfifo(photos / "y.png")
    (photos / "._00.png").write_bytes(b"\0\5\x16\7")
    for name in ("x", "y", "._00"):
        (photos / f"{name}.txt").write_text("nothing\n")
    assert [each.caption for each in captions.read_folder(photos)] == list(NAMES)


def test_links_inside_the_folder_are_followed(tmp_path):
    write_images(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "captions.csv").write_text("file,caption\n./00.png,a thing\n")
    assert captions.read_folder(tmp_path / "link")[0].caption == "a thing"


def test_an_image_that_cannot_be_shown_is_a_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SourceError, match=r"a\.png cannot be shown"):
        captions.thumbnail(tmp_path / "a.png")
