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
from itertools import zip_longest
from pathlib import Path
from typing import IO

from PIL import Image

from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.items import Item, failing, writable

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

    Raises SourceError rather than guess: for a file that is no image, and for a name like `red.png` or `photos/` that
    is not there.
    """
    if os.path.isdir(word):  # not Path.is_dir, which raises for texts longer than a file name may be
        return from_folder(Path(word))
    path = Path(word)
    if os.path.isfile(word):
        if path.suffix.lower() in IMAGE_SUFFIXES or is_image(path):
            return [Item.image(path)]
        raise SourceError(
            f"{word} is a file, but not an image. Embed its lines with `embed - < {word}`, "
            f"its column with --csv, or the word itself with --text."
        )
    if os.path.exists(word):
        raise SourceError(f"{word} is neither a file nor a folder. To embed these words as a text, write --text.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"{_no_image(word)}. To embed these words as a text, write --text before them.")
    if word.endswith(("/", "/*")):
        raise SourceError(f"There is no folder {word}. To embed these words as a text, write --text before them.")
    return [Item.text(word)]


def from_image(path: Path) -> Item:
    if not os.path.isfile(path):
        raise SourceError(f"{_no_image(path)}.")
    return Item.image(path)


def _no_image(path: Path | str) -> str:
    try:
        os.stat(path)
    except PermissionError as error:
        return f"The image {path} cannot be read ({error.strerror})"
    except (OSError, ValueError):
        pass
    return f"There is no image {path}"


def from_folder(folder: Path) -> list[Item | Skipped]:
    """All images below the folder, by suffix or by content, sorted by path; links are followed, each folder once."""
    found = sorted(below(folder), key=lambda each: each[0])
    if not any(isinstance(each, Item) for _, each in found):
        raise SourceError(f"The folder {folder} holds no image. To embed its name as a text, write --text {folder}.")
    return [each for _, each in found]


def below(folder: Path) -> Iterator[tuple[Path, Item | Skipped]]:
    """The same folder by folder, as they are read, with their paths; and what is no image, with why.

    A folder that cannot be read is an item that fails: nobody knows what is in it.
    """
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
        yield path, failing("image", writable(path), f"the folder cannot be read ({error.strerror}).")


def _item(path: Path) -> Item | Skipped:
    looks = path.suffix.lower() in IMAGE_SUFFIXES
    if os.path.exists(path) and not os.path.isfile(path):
        return Skipped(writable(path), "no file")  # to open a FIFO is to wait for its other end
    if path.name.startswith("._"):  # macOS's notes on another file, under a name like its own
        looks = False
    return Item.image(path) if looks or is_image(path) else Skipped(writable(path), "no image that can be read")


def from_lines(content: bytes) -> list[Item]:
    """One text for each line (standard input). Empty lines at the end do not count. Raises SourceError for an image."""
    if is_image(BytesIO(content)):
        raise SourceError("Standard input is an image, not lines of text: name its file.")
    text = _decoded(content).rstrip("\r\n")
    lines = text.split("\n") if text else []
    return [Item.text(line.removesuffix("\r"), f"line {number} of stdin") for number, line in enumerate(lines, start=1)]


def from_csv(path: Path, column: str) -> list[Item]:
    """One text for each row: the cell under the heading `column`. A row that is not UTF-8, or no row of this table, is
    an item that fails.
    """
    try:
        with path.open("rb") as file:
            headings, rows = csv_rows(file, column)
            if headings.count(column) != 1:
                how_many = "no column" if column not in headings else "more than one column"
                raise SourceError(f"{path} has {how_many} {column}. Its columns are: {', '.join(headings) or 'none'}.")
            numbered = ((f"row {number} of {path}", row) for number, row in enumerate(rows, start=1))
            return [
                failing("text", name, row) if isinstance(row, str) else Item.text(row[column] or "", name)
                for name, row in numbered
            ]
    except (OSError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a CSV file ({error}).") from None


def csv_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """The cells under these headings, row by row, without the blanks around them.

    Raises:
        SourceError: it cannot be read, a heading is not there once, or a row is not UTF-8 or no row of this table.
    """
    try:
        with path.open("rb") as file:
            headings, rows = csv_rows(file, columns[0])
            if any(headings.count(each) != 1 for each in columns):
                raise SourceError(f"{path} needs a first line with the headings {','.join(columns)}.")
            found = []
            for number, row in enumerate(rows, start=1):
                if isinstance(row, str):
                    raise SourceError(f"{path}, row {number}: {row}")
                cells = {each: (row[each] or "").strip() for each in columns}
                if any(writable(cell) != cell for cell in cells.values()):
                    raise SourceError(f"{path}, row {number} is not UTF-8.")
                found.append(cells)
            return found
    except (OSError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a CSV file ({error}).") from None


def csv_rows(file: IO[bytes], column: str | None) -> tuple[list[str], Iterator[dict[str, str | None] | str]]:
    """The headings, and the rows as they are read: UTF-8, or what the first bytes say. In a row's place, why none.

    A quote that does not end would take the rows after it into a text; a comma without quotes would cut one short.

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
        lines = text_lines(file, newline="")
    head = text[:HEAD]
    each = [(mark, next(csv.reader(StringIO(head, newline=""), delimiter=mark), [])) for mark in DELIMITERS]
    delimiter, headings = next((pair for pair in each if column in pair[1]), each[0])
    return headings, _rows(headings, csv.reader(lines, delimiter=delimiter, strict=True))


def _rows(headings: list[str], cells: Iterator[list[str]]) -> Iterator[dict[str, str | None] | str]:
    next(cells, None)  # the headings
    while True:
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"the row cannot be read ({error}): a quote within a cell is written twice."
            continue
        if any(row[len(headings) :]):
            yield f"it has {len(row)} cells, and there are {len(headings)} headings."
        elif row:
            yield dict(zip_longest(headings, row[: len(headings)]))


def text_lines(file: IO[bytes], newline: str) -> Iterator[str]:
    """As they are read, with their ends: UTF-8 or, as the first bytes say, UTF-16. Bytes that are not UTF-8 stay."""
    marked = file.read(2) in UTF16
    file.seek(0)
    encoding, errors = ("utf-16", "surrogatepass") if marked else ("utf-8-sig", "surrogateescape")
    text = TextIOWrapper(file, encoding, errors, newline=newline)
    try:
        yield from text
    finally:
        if not file.closed:  # by its opener, who may be through before we are
            text.detach()


def _decoded(content: bytes) -> str:
    """UTF-8, or what its first bytes say; bytes that are not stay, as lone surrogates, and `Item.read` refuses them."""
    if not content.startswith(UTF16):
        return content.decode("utf-8-sig", "surrogateescape")
    try:
        return content.decode("utf-16", "surrogatepass")
    except UnicodeDecodeError as error:
        raise SourceError(f"It begins like UTF-16 and is none (byte {error.start}): save it as UTF-8.") from None


def is_image(file: Path | IO[bytes]) -> bool:
    """Reads the header alone."""
    try:
        with Image.open(file, formats=FORMATS):
            return True
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError):
        return False
