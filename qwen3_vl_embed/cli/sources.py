"""What to embed: words, image files, folders, lines of standard input, a column of a CSV file.

Knows files and names; does not decode images (the server does) and does not know vectors or HTTP.
"""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

# Wider than what the server decodes: a photo.heic is better refused by name than embedded as three syllables.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif"}


class SourceError(Exception):
    """What was named cannot be read, or could mean two things; the message says which and what to write instead."""


@dataclass(frozen=True)
class Item:
    """One thing to embed.

    `name` is what the output files call it: the text itself, or the image's path. `origin` is what messages call it.
    An image is read from `path`, or made here: then `content` is its file.
    """

    kind: Literal["text", "image"]
    name: str
    origin: str
    path: Path | None = None
    content: bytes | None = None

    @classmethod
    def text(cls, text: str, origin: str | None = None) -> "Item":
        origin = origin or f'"{text[:60]}"'
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes of the command line that were not UTF-8
            raise SourceError(f"{origin!a} is not UTF-8 text.")
        return cls("text", text, origin)

    @classmethod
    def image(cls, path: Path) -> "Item":
        name = str(path).encode(errors="replace").decode()  # a file name may hold any bytes, the output only UTF-8
        return cls("image", name, name, path)

    def read(self) -> str | bytes:
        """The text, or the image file's bytes. Raises SourceError when the file cannot be read."""
        if self.path is None:
            return self.name if self.content is None else self.content
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise SourceError(f"the file cannot be read ({error.strerror}).") from None

    def size(self) -> int:
        """Bytes that it puts into a request, about; 0 for a file that is gone (reading it then says so)."""
        if self.path is None:
            return len(self.name if self.content is None else self.content)
        return self.path.stat().st_size if self.path.is_file() else 0


def from_word(word: str) -> list[Item]:
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
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"There is no image {word}. To embed these words as a text, write --text before them.")
    return [Item.text(word)]


def from_image(path: Path) -> Item:
    if not path.is_file():
        raise SourceError(f"There is no image {path}.")
    return Item.image(path)


def from_folder(folder: Path) -> list[Item]:
    """All images below the folder, sorted by path."""
    images = [Item.image(path) for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise SourceError(f"The folder {folder} holds no image. To embed its name as a text, write --text {folder}.")
    return images


def from_lines(content: bytes) -> list[Item]:
    """One text for each line of UTF-8 (standard input). Empty lines at the end do not count."""
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"Standard input is not UTF-8 text (byte {error.start}).") from None
    lines = text.split("\n") if text else []
    return [Item.text(line.removesuffix("\r"), f"line {number} of stdin") for number, line in enumerate(lines, start=1)]


def from_csv(path: Path, column: str) -> list[Item]:
    """One text for each row: the cell under the heading `column`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_column(csv.DictReader(file), path, column))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a UTF-8 CSV file ({error}).") from None


def _column(rows: "csv.DictReader[str]", path: Path, column: str) -> Iterator[Item]:
    headings: Iterable[str] = rows.fieldnames or []
    if column not in headings:
        raise SourceError(f"{path} has no column {column}. Its columns are: {', '.join(headings) or 'none'}.")
    for number, row in enumerate(rows, start=1):
        yield Item.text(row[column] or "", f"row {number} of {path}")


def _is_image(path: Path) -> bool:
    """Reads the header alone."""
    try:
        with Image.open(path):
            return True
    except (OSError, Image.DecompressionBombError):
        return False
