"""One thing to embed."""

from dataclasses import dataclass

from .options import Options

NO_OPTIONS = Options()


@dataclass(frozen=True)
class EmbedInput:
    """A text, an image, or both for one vector; neither is answered with `InvalidInput`."""

    text: str | None = None
    image: bytes | None = None  # an encoded file: PNG, JPEG, WebP, GIF, BMP or TIFF
    options: Options = NO_OPTIONS
