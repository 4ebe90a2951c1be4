"""What two sides are asked for: texts, images, and images with a text, which show what two ways to a vector differ in.

Edges and a weave show another resize. Sizes on both sides of the usual pixel bounds show other bounds. A turned and a
transparent image show another decoder, texts of different lengths padding.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.sources import from_folder
from qwen3_vl_embed.items import Item
from qwen3_vl_embed.pictures import encoded

KINDS = ("text", "image", "both")
TEXTS = (
    "red",
    "very dark teal",
    "naïve café, ночь 夜 🎨",
    "A dog runs over wet sand; behind it the sea is grey.",
    "Two red circles and a blue square lie on a white table. The square is the smaller one, and its edge is broken in "
    "three places. Nobody has drawn a shadow, so it cannot be said where the light comes from.",
)
TURNED = 6  # EXIF's orientation: a viewer turns the stored picture by a quarter, clockwise
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Input:
    """A text, an image's file, or both for one vector."""

    name: str
    text: str | None = None
    image: bytes | None = None

    @property
    def kind(self) -> str:
        return KINDS[0] if self.image is None else KINDS[1] if self.text is None else KINDS[2]


def standard() -> list[Input]:
    """The default set: small first, since a search is over at the first input that differs."""
    small = encoded(_picture(100, 75, 1))
    images = {
        "picture 100×75": small,
        "picture 75×230": encoded(_picture(75, 230, 2)),
        "plain red 244×244": encoded(Image.new("RGB", (244, 244), (229, 0, 0))),
        "turned by EXIF 240×160": _turned(_picture(240, 160, 3)),
        "transparent 150×150": _transparent(_picture(150, 150, 4)),
        "picture 1280×880": encoded(_picture(1280, 880, 5)),  # over 1024×1024 pixels
    }
    both = [Input(f"picture 100×75 and “{text}”", text, small) for text in TEXTS[1:3]]
    return [Input(text, text) for text in TEXTS] + [Input(name, image=file) for name, file in images.items()] + both


def own(texts: Path | None, images: Path | None) -> list[Input]:
    """The lines of a file that are not blank, and the images of a folder.

    Raises:
        SourceError: one cannot be read, or holds none.
    """
    lines: list[str] = []
    if texts:
        try:
            lines = [line for line in texts.read_text("utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{texts} cannot be read as lines of UTF-8 ({error}).") from None
        if not lines:
            raise SourceError(f"{texts} holds no text.")
    if images and not images.is_dir():
        raise SourceError(f"{images} is no folder of images.")
    found = [item for item in from_folder(images) if isinstance(item, Item)] if images else []
    files = [Input(item.name, image=content) for item in found if isinstance(content := item.read(), bytes)]
    return [Input(line, line) for line in lines] + files


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """Random patches of colour with hard edges, woven finely."""
    cells = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)).astype(int)
    rows, columns = np.mgrid[:height, :width]
    weave = np.where((columns // 2 + rows // 3) % 2, 24, -24)[..., None]
    return Image.fromarray(np.clip(pixels + weave, 0, 255).astype(np.uint8))


def _turned(image: Image.Image) -> bytes:
    """In colours of full resolution, which all decoders read alike."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    return file.getvalue()


def _transparent(image: Image.Image) -> bytes:
    """From opaque on the left to nothing on the right."""
    ramp = np.linspace(255, 0, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return encoded(image)
