"""One thing to embed, and its vector."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen3_vl_embed import pictures
from qwen3_vl_embed.errors import ItemError

Kind = Literal["text", "image"]
MOST_BYTES = 64 * 1024 * 1024  # of one image, where a server tells no limit of its own


@dataclass(frozen=True)
class Item:
    """One text or one image.

    `name` is what output files call it: the text itself, or the image's path. `origin` is what messages call it.
    An image is read from `path`, or is `content`: an encoded file, or pixels (`pictures.Pixels`).
    """

    kind: Kind
    name: str
    origin: str
    path: Path | None = None
    content: bytes | pictures.Pixels | None = None

    @classmethod
    def text(cls, text: str, origin: str | None = None) -> "Item":
        return cls("text", text, origin or f'"{text[:60]}"')

    @classmethod
    def image(cls, path: Path) -> "Item":
        return cls("image", writable(path), writable(path), path)

    def read(self, most: int = MOST_BYTES) -> str | bytes:
        """The text, or the image file's bytes.

        Raises ItemError when the text is not UTF-8, or the file cannot be read or has more than `most` bytes. So it
        does for pixels that no file of an image can hold.
        """
        if self.path is not None:
            try:
                there = self.path.stat()
                if not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
                    raise self._refused("it is no file.")  # to read a FIFO is to wait, /dev/zero has no end
                if there.st_size > most:
                    raise self._refused(f"the file has {there.st_size:,} bytes; an image may have {most:,}.")
                return self.path.read_bytes()
            except OSError as error:
                raise self._refused(f"the file cannot be read ({error.strerror}).") from None
        if self.content is None:
            if any("\ud800" <= letter <= "\udfff" for letter in self.name):  # bytes that were not UTF-8
                raise self._refused("this is not UTF-8 text.")
            return self.name
        try:
            return self.content if isinstance(self.content, bytes) else pictures.encoded(self.content)
        except ValueError as error:
            raise self._refused(str(error)) from None

    def size(self) -> int:
        """Bytes that it puts into a request, about; 0 for a file that is gone (reading it then says so)."""
        if self.path is not None:
            return os.path.getsize(self.path) if os.path.isfile(self.path) else 0
        if self.content is None:
            return len(self.name)
        return len(self.content) if isinstance(self.content, bytes) else pictures.size(self.content)

    def _refused(self, reason: str) -> ItemError:
        return ItemError(f"{self.origin}: {reason}")


@dataclass(frozen=True)
class Embedded:
    """One item, its vector, float32 (D,), the id of the recipe that made it, and its tokens.

    `tokens`: of the whole sequence, the prompt's too; None where the server does not say.
    """

    item: Item
    vector: NDArray[np.float32]
    recipe: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Elsewhere(Item):
    """An image that is read when its turn has come: `load` is told how many bytes it may have, and returns them.

    What it raises, an OSError or a ValueError, is this item's own error.
    """

    load: Callable[[int], bytes] | None = None

    def read(self, most: int = MOST_BYTES) -> str | bytes:
        """As `Item.read`."""
        assert self.load is not None
        try:
            return self.load(most)
        except OSError as error:
            raise self._refused(f"the file cannot be read ({error.strerror or error}).") from None
        except ValueError as error:
            raise self._refused(str(error)) from None

    def size(self) -> int:
        """0: nobody knows yet."""
        return 0


def failing(kind: Kind, name: str, told: str, origin: str | None = None) -> Elsewhere:
    """What was asked for, and cannot be: reading it raises `told`."""
    return Elsewhere(kind, name, origin or name, load=partial(_refuse, told))


def _refuse(told: str, most: int) -> bytes:
    raise ValueError(told)


def writable(path: Path | str) -> str:
    """A file name may hold any bytes, the output only UTF-8. Names that differ stay so."""
    return str(path).encode(errors="backslashreplace").decode()
