"""A folder of images with captions: pairs of a file and the text that belongs to it.

Captions are a CSV file in the folder with the headings file and caption, or a .txt of the same name beside each image.
"""

import base64
import os.path
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import IMAGE_SUFFIXES, csv_table

SHOWN = IMAGE_SUFFIXES - {".avifs", ".heic", ".heif"}  # by Pillow
THUMBNAIL = (96, 96)  # pixels at most
NOTE = "._"  # of macOS, on another file, under a name like its own


@dataclass(frozen=True)
class Captioned:
    """An image file and its caption."""

    path: Path
    caption: str


def read_folder(folder: Path) -> list[Captioned]:
    """Every captioned image, in the order of the CSV file, else sorted by path.

    Raises:
        SourceError: no folder, no captions, two CSV files, an empty caption, or a file that is not there or that lies
            outside of the folder: what somebody else packed must not show or send what else is on this machine.
    """
    if not folder.is_dir():
        raise SourceError(f"There is no folder {folder}.")
    tables = sorted(each for each in folder.glob("*.csv") if not each.name.startswith(NOTE))
    for table in tables:
        _check_inside(table, folder)
    if len(tables) > 1:
        raise SourceError(f"{folder} holds {len(tables)} CSV files; leave one, with the headings file,caption.")
    if tables:
        rows = csv_table(tables[0], "file", "caption")
        found = [Captioned(folder / row["file"], row["caption"]) for row in rows]
    else:
        found = _from_texts(folder)
    for each in found:
        _check_inside(each.path, folder)
        if not os.path.isfile(each.path):  # not Path.is_file, which raises for names longer than may be
            raise SourceError(f"There is no image {each.path}.")
        if not each.caption:
            raise SourceError(f"{each.path} has an empty caption.")
    return found


def _from_texts(folder: Path) -> list[Captioned]:
    looks = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SHOWN]
    images = [path for path in looks if path.is_file() and not path.name.startswith(NOTE)]
    captioned = []
    for image in images:
        if (path := image.with_suffix(".txt")).is_file():
            _check_inside(path, folder)
            try:
                captioned.append(Captioned(image, path.read_text(encoding="utf-8-sig").strip()))
            except (OSError, UnicodeDecodeError) as error:
                raise SourceError(f"{path} cannot be read as UTF-8 text ({error}).") from None
    if not captioned:
        raise SourceError(
            f"{folder} holds no captioned images: put a CSV file with the headings file,caption into it, "
            "or a .txt of the same name beside each image."
        )
    return captioned


def _check_inside(path: Path, folder: Path) -> None:
    """Wherever `..`, an absolute path or links lead."""
    try:
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a NUL in the name
        inside = False
    if not inside:
        raise SourceError(f"{path} leads out of {folder}: put the file itself into the folder.")


def thumbnail(path: Path) -> str:
    """A small JPEG of the image, in base64. Raises SourceError."""
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's plugins raise many types on broken files
        raise SourceError(f"{path} cannot be shown ({type(error).__name__}: {error}).") from None
    small.thumbnail(THUMBNAIL)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
