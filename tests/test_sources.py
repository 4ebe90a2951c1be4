"""What a word, a folder, standard input or a CSV file turns into, and what is refused rather than guessed."""

from pathlib import Path

import pytest
from PIL import Image

from qwen3_vl_embed.cli.sources import Item, SourceError, from_csv, from_folder, from_image, from_lines, from_word


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
    assert from_word(word)[0].read() == word


def test_an_image_file_is_an_image(folder):
    path = folder / "photos" / "b.png"
    [item] = from_word(str(path))
    assert (item.kind, item.name, item.read()) == ("image", str(path), path.read_bytes())


def test_an_image_without_a_suffix_is_an_image(folder):
    assert from_word(str(folder / "bare"))[0].kind == "image"


def test_a_folder_is_all_images_below_it_sorted(folder):
    photos = folder / "photos"
    expected = [photos / "a.JPG", photos / "b.png", photos / "below" / "c.webp"]
    assert names(from_word(str(photos))) == [str(path) for path in expected]


def test_a_missing_image_is_never_a_text():
    for word in ("missing.png", "photos/*.JPEG", "https://example.org/photo.webp"):
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
    with pytest.raises(SourceError, match="cannot be read"):
        Item.image(tmp_path / "gone.png").read()
    assert Item.image(tmp_path / "gone.png").size() == 0


def test_lines_keep_their_order_and_their_numbers():
    items = from_lines("\ufeffred\r\n blue \n\n色\n\n".encode())
    assert names(items) == ["red", " blue ", "", "色"]
    assert items[2].origin == "line 3 of stdin"
    assert from_lines(b"") == from_lines(b"\n") == []


def test_lines_that_are_not_utf8_are_refused():
    with pytest.raises(SourceError, match="not UTF-8"):
        from_lines(b"red\xff\n")


def test_a_word_that_is_not_utf8_is_refused():
    with pytest.raises(SourceError, match="not UTF-8"):
        Item.text(b"red\xff".decode(errors="surrogateescape"))


def test_an_image_whose_name_is_not_utf8_has_a_name_that_can_be_written():
    item = Item.image(Path(b"red\xff.png".decode(errors="surrogateescape")))
    assert item.name == "red?.png"


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
    path.write_bytes(b"name\nred\xff\n")
    with pytest.raises(SourceError, match="cannot be read"):
        from_csv(path, "name")
