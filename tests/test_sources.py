"""What a word, a folder, standard input or a CSV file turns into, and what is refused rather than guessed."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from qwen3_vl_embed import Item, ItemError
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import (
    Skipped,
    from_csv,
    from_folder,
    from_image,
    from_lines,
    from_word,
)
from tests.conftest import deny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/b.png, photos/a.JPG, photos/below/c.webp, photos/notes.txt, bare (a PNG without a suffix)"""
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    swatch = Image.new("RGB", (32, 32), "red")
    swatch.save(photos / "b.png")
    swatch.save(photos / "a.JPG", "JPEG")
    swatch.save(photos / "below" / "c.webp")
    swatch.save(tmp_path / "bare", "PNG")
    (photos / "notes.txt").write_text("red\n")
    return tmp_path


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


@pytest.mark.parametrize("word", ["red", "a red photo", "photos/red", "x" * 5000, "nul\0byte", "../..red", "色"])
def test_a_word_is_a_text(word):
    assert from_word(word) == [Item.text(word)]
    assert Item.text(word).read() == word


def test_an_image_file_is_an_image(folder):
    path = folder / "photos" / "b.png"
    assert from_word(str(path)) == [Item.image(path)]
    assert Item.image(path).read() == path.read_bytes()


def test_an_image_without_a_suffix_is_an_image(folder):
    assert from_word(str(folder / "bare")) == [Item.image(folder / "bare")]


def test_a_folder_is_all_images_below_it_sorted(folder):
    photos = folder / "photos"
    expected = [photos / "a.JPG", photos / "b.png", photos / "below" / "c.webp"]
    assert [each.name for each in from_word(str(photos)) if isinstance(each, Item)] == [str(path) for path in expected]


def test_a_missing_file_or_folder_is_never_a_text():
    missing = ("missing.png", "photos/*.JPEG", "https://example.org/photo.webp", "missing/", "missing/*")
    for word in missing:
        with pytest.raises(SourceError, match="write --text before them"):
            from_word(word)


def test_a_file_that_is_no_image_is_refused(folder):
    with pytest.raises(SourceError, match="not an image"):
        from_word(str(folder / "photos" / "notes.txt"))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no image"):
        from_folder(tmp_path)


def test_an_image_must_be_there_and_readable(tmp_path):
    with pytest.raises(SourceError, match="There is no image"):
        from_image(tmp_path / "missing")
    with pytest.raises(ItemError, match="cannot be read"):
        Item.image(tmp_path / "gone.png").read()
    assert Item.image(tmp_path / "gone.png").size() == 0


def test_lines_keep_their_order_and_their_numbers():
    items = from_lines("\ufeffred\r\n blue \n\n色\n\n".encode())
    assert names(items) == ["red", " blue ", "", "色"]
    assert items[2].origin == "line 3 of stdin"
    assert from_lines(b"") == from_lines(b"\n") == []


def test_what_is_not_utf8_fails_alone():
    good, bad = from_lines(b"red\nred\xff\n")
    assert good.read() == "red"
    for item in (bad, Item.text(b"red\xff".decode(errors="surrogateescape"))):
        with pytest.raises(ItemError, match="not UTF-8"):
            item.read()


def test_an_image_on_stdin_is_no_text(folder):
    with pytest.raises(SourceError, match="name its file"):
        from_lines((folder / "bare").read_bytes())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_spreadsheets_and_windows_write(tmp_path, encoding):
    assert names(from_lines("rötlich\r\nblau\r\n".encode(encoding))) == ["rötlich", "blau"]
    (tmp_path / "c.csv").write_text("name;hex\r\nrötlich, hell;1\r\n", encoding=encoding)
    assert names(from_csv(tmp_path / "c.csv", "name")) == ["rötlich, hell"]


def test_what_lies_in_folders(folder):
    """Nothing stops or hangs: what is an image is embedded, whatever it is called; the rest is told."""
    photos, outside = folder / "photos", folder / "outside"
    for name, format in (("d.jfif", "JPEG"), ("e.jpe", "JPEG"), ("bare", "PNG")):
        Image.new("RGB", (32, 32), "red").save(photos / name, format)
    (photos / "._b.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (photos / "x.png").mkdir()
    (photos / "x.png" / "inside.png").write_bytes((photos / "b.png").read_bytes())
    os.mkfifo(photos / "fifo.png")
    outside.mkdir()
    (outside / "o.png").write_bytes((photos / "b.png").read_bytes())
    (photos / "link").symlink_to(outside)
    (photos / "below" / "back").symlink_to(photos)
    (photos / "dangling.png").symlink_to("nowhere")
    found = from_folder(photos)
    images = [str(Path(each.name).relative_to(photos)) for each in found if isinstance(each, Item)]
    assert images == [
        *("a.JPG", "b.png", "bare", "below/c.webp", "d.jfif", "dangling.png", "e.jpe", "link/o.png", "x.png/inside.png")
    ]
    skipped = [Path(each.name).name for each in found if isinstance(each, Skipped)]
    assert skipped == ["._b.png", "fifo.png", "notes.txt"]
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        from_word(str(photos / "fifo.png"))


def test_a_folder_that_cannot_be_read_fails_by_name(folder, monkeypatch):
    """Nobody knows which images are in it, so not everything is embedded."""
    deny(monkeypatch, folder / "photos" / "below")
    [closed] = [each for each in from_folder(folder / "photos") if each.name.endswith("below")]
    with pytest.raises(ItemError, match=r"below: the folder cannot be read \(Permission denied\)"):
        closed.read()


def test_an_image_behind_a_closed_door_is_not_said_to_be_missing(monkeypatch):
    def stat(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "stat", stat)
    for find in (from_word, from_image):
        with pytest.raises(SourceError, match=r"The image red.png cannot be read \(Permission denied\)"):
            find("red.png")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10**10)  # sparse
    with pytest.raises(ItemError, match=r"10,000,000,000 bytes; an image may have 20,971,520"):
        Item.image(tmp_path / "huge.png").read(20_971_520)


def test_an_image_whose_name_is_not_utf8_has_a_name_that_can_be_written():
    item = Item.image(Path(b"red\xff.png".decode(errors="surrogateescape")))
    assert item.name == r"red\udcff.png"


def test_csv_column(tmp_path):
    path = tmp_path / "colours.csv"
    path.write_text('\ufeffname,hex\n"red, dark",#800000\nblue,#0000ff\n', encoding="utf-8")
    items = from_csv(path, "name")
    assert names(items) == ["red, dark", "blue"]
    assert items[1].origin == f"row 2 of {path}"


def test_csv_refusals(tmp_path):
    path = tmp_path / "colours.csv"
    path.write_text("name,hex\nred,#f00\n")
    with pytest.raises(SourceError, match="Its columns are: name, hex"):
        from_csv(path, "colour")
    with pytest.raises(SourceError, match="cannot be read"):
        from_csv(tmp_path / "missing.csv", "name")
    path.write_text("name,name\nred,blue\n")
    with pytest.raises(SourceError, match="more than one column name"):
        from_csv(path, "name")


def test_a_bad_row_fails_alone(tmp_path):
    path = tmp_path / "colours.csv"
    path.write_bytes(b"name\nred\xff\n" + b"x" * 200_000 + b"\nblue\n")
    bad, huge, blue = from_csv(path, "name")
    with pytest.raises(ItemError, match="not UTF-8"):
        bad.read()
    assert (len(huge.name), blue.name, blue.origin) == (200_000, "blue", f"row 3 of {path}")
