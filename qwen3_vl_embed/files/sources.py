"""What to embed: words, image files, folders, lines of standard input, a column of a CSV file.

Images are decoded by the server.
"""

import codecs
import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any

from PIL import Image

from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.items import Item, writable

# Wider than what the server decodes: a photo.heic is better refused by name than embedded as three syllables.
IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif"),
}
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")  # Pillow's names of what a server decodes
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DELIMITERS = ",;\t|"
HEAD = 2**16  # bytes in which a CSV file's headings end


@dataclass(frozen=True)
class Skipped:
    """What lies in a folder and is not embedded, and why."""

    name: str
    reason: str


def from_word(word: str) -> list[Item | Skipped]:
    """An image file is that image, a folder all images below it, anything else the text as it stands.

    Raises SourceError rather than guess: for a file that is no image, and for a name like `red.png` that is not there.
    """
    if os.path.isdir(word):  # not Path.is_dir, which raises for texts longer than a file name may be
        return from_folder(Path(word))
    path = Path(word)
    if os.path.isfile(word):
        if path.suffix.lower() in IMAGE_SUFFIXES or _is_image(path):
            return [Item.image(path)]
        raise SourceError(
            f"{word} is a file, but not an image. Embed its lines with `embed - < {word}`, "
            f"its column with --csv, or the word itself with --text."
        )
    if os.path.exists(word):
        raise SourceError(f"{word} is neither a file nor a folder. To embed these words as a text, write --text.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"There is no image {word}. To embed these words as a text, write --text before them.")
    return [Item.text(word)]


def from_image(path: Path) -> Item:
    if not path.is_file():
        raise SourceError(f"There is no image {path}.")
    return Item.image(path)


def from_folder(folder: Path) -> list[Item | Skipped]:
    """All images below the folder, by suffix or by content, sorted by path; links are followed, each folder once."""
    found = sorted(below(folder), key=lambda each: each[0])
    if not any(isinstance(each, Item) for _, each in found):
        raise SourceError(f"The folder {folder} holds no image. To embed its name as a text, write --text {folder}.")
    return [each for _, each in found]


def below(folder: Path) -> Iterator[tuple[Path, Item | Skipped]]:
    """The same folder by folder, as they are read, with their paths; and what is no image, with why."""
    unreadable: list[OSError] = []
    entered: set[tuple[int, int]] = set()  # a link may lead back to where it lies
    for name, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        there = os.stat(name)
        if (there.st_dev, there.st_ino) in entered:
            folders.clear()
            continue
        entered.add((there.st_dev, there.st_ino))
        folders.sort()
        yield from ((path := Path(name, file), _item(path)) for file in sorted(files))
    for error in unreadable:
        path = Path(error.filename)
        yield path, Skipped(writable(path), error.strerror or str(error))


def _item(path: Path) -> Item | Skipped:
    looks = path.suffix.lower() in IMAGE_SUFFIXES
    if path.exists() and not path.is_file():
        return Skipped(writable(path), "no file")  # to open a FIFO is to wait for its other end
    if path.name.startswith("._"):  # macOS's notes on another file, under a name like its own
        looks = False
    return Item.image(path) if looks or _is_image(path) else Skipped(writable(path), "no image that can be read")


def from_lines(content: bytes) -> list[Item]:
    """One text for each line (standard input). Empty lines at the end do not count. Raises SourceError for an image."""
    if _is_image(BytesIO(content)):
        raise SourceError("Standard input is an image, not lines of text: name its file.")
    text = _decoded(content).rstrip("\r\n")
    lines = text.split("\n") if text else []
    return [Item.text(line.removesuffix("\r"), f"line {number} of stdin") for number, line in enumerate(lines, start=1)]


def from_csv(path: Path, column: str) -> list[Item]:
    """One text for each row: the cell under the heading `column`. A row that is not UTF-8 is an item that fails."""
    try:
        with path.open("rb") as file:
            headings, rows = csv_rows(file, column)
            if headings.count(column) != 1:
                how_many = "no column" if column not in headings else "more than one column"
                raise SourceError(f"{path} has {how_many} {column}. Its columns are: {', '.join(headings) or 'none'}.")
            return [Item.text(row[column] or "", f"row {i} of {path}") for i, row in enumerate(rows, start=1)]
    except (OSError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a CSV file ({error}).") from None


def csv_rows(file: IO[bytes], column: str | None) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The headings, and the rows as they are read: UTF-8, or what the file's first bytes say.

    Spreadsheets of many countries put semicolons between cells; the headings tell, one of which is `column`. Bytes that
    are not UTF-8 stay, as lone surrogates, and `Item.read` refuses them. Raises SourceError.
    """
    csv.field_size_limit(sys.maxsize)  # a cell that is too long for the model is that row's own error
    start = file.read(HEAD)
    file.seek(0)
    if start.startswith(UTF16):
        text = _decoded(file.read())
        lines: Iterator[str] = StringIO(text, newline="")
    else:
        text = _decoded(start)
        lines = _lines(file)
    head = text[:HEAD]
    each = [(mark, next(csv.reader(StringIO(head, newline=""), delimiter=mark), [])) for mark in DELIMITERS]
    delimiter, headings = next((pair for pair in each if column in pair[1]), each[0])
    return headings, csv.DictReader(lines, delimiter=delimiter)


def _lines(file: IO[bytes]) -> Iterator[str]:
    text = TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    try:
        yield from text
    finally:
        text.detach()  # its opener closes the file


def _decoded(content: bytes) -> str:
    """UTF-8, or what its first bytes say; bytes that are not stay, as lone surrogates, and `Item.read` refuses them."""
    if not content.startswith(UTF16):
        return content.decode("utf-8-sig", "surrogateescape")
    try:
        return content.decode("utf-16", "surrogatepass")
    except UnicodeDecodeError as error:
        raise SourceError(f"It begins like UTF-16 and is none (byte {error.start}): save it as UTF-8.") from None


def _is_image(file: Path | IO[bytes]) -> bool:
    """Reads the header alone."""
    try:
        with Image.open(file, formats=FORMATS):
            return True
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError):
        return False
