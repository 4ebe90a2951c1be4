"""What is evaluated: N texts and N images with their vectors, row i of one belonging to row i of the other."""

import json
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.colours import rgb_to_lab
from qwen3_vl_embed.files.errors import SourceError

FEWEST = 10  # pairs: below, halves and five-fold cross-validation mean nothing
MOST = 3000  # everything is compared with everything: beyond, the matrices need more memory than a laptop has


BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def check_count(pairs: int) -> None:
    """Raises SourceError: also for those who would embed them first."""
    if not FEWEST <= pairs <= MOST:
        raise SourceError(f"There are {pairs} pairs; a report needs {FEWEST} to {MOST}.")


@dataclass(frozen=True)
class Pairs:
    """Row i of `text` (N, D) is the vector of `names[i]`, row i of `image` (N, D) that of its image.

    `rgb` is uint8 (N, 3) for solid colours and None for other images; `thumbnails` are then small JPEGs in base64, to
    look at. `about` is what a reader wants to know of the run: server, model, options, source.
    """

    names: tuple[str, ...]
    text: FloatArray
    image: FloatArray
    rgb: NDArray[np.uint8] | None = None
    thumbnails: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises SourceError. They may come from a file that somebody else made, and go into a page."""
        check_count(len(self.names))
        if self.text.shape != self.image.shape or len(self.text) != len(self.names):
            shapes = f"{len(self.names)} names, texts {self.text.shape}, images {self.image.shape}"
            raise SourceError(f"The vectors do not fit together: {shapes}.")
        if self.rgb is not None and (self.rgb.dtype.str, self.rgb.shape) != ("|u1", (len(self), 3)):
            raise SourceError(f"Colours are uint8 ({len(self)}, 3), not {self.rgb.dtype} {self.rgb.shape}.")
        if self.thumbnails and len(self.thumbnails) != len(self):
            raise SourceError(f"There are {len(self.thumbnails)} thumbnails of {len(self)} images.")
        if not all(isinstance(each, str) and BASE64.fullmatch(each) for each in self.thumbnails):
            raise SourceError("A thumbnail is not base64 of a picture.")
        for kind, vectors in (("text", self.text), ("image", self.image)):
            if not (np.isfinite(vectors).all() and vectors.any(axis=1).all()):
                raise SourceError(f"A {kind} vector is zero or not finite: it has no direction to compare.")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def lab(self) -> FloatArray:
        """CIELAB, float64 (N, 3). Only for solid colours."""
        if self.rgb is None:
            raise SourceError("These images have no one colour.")
        return rgb_to_lab(self.rgb)

    def save(self, file: IO[bytes]) -> None:
        """Write an .npz that opens without pickle."""
        arrays: dict[str, NDArray[Any]] = {"names": np.array(self.names), "text": self.text, "image": self.image}
        if self.rgb is not None:
            arrays["rgb"] = self.rgb
        if self.thumbnails:
            arrays["thumbnails"] = np.array(self.thumbnails)
        np.savez_compressed(file, about=np.array(json.dumps(self.about)), **arrays)


def load(path: Path) -> Pairs:
    """What `Pairs.save` wrote.

    Raises:
        SourceError: the file is not there, or is not such a file.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # it leaves a broken one open
            names = file["names"]
            if names.ndim != 1:
                raise ValueError(f"its names are an array {names.shape}")
            return Pairs(
                names=tuple(
                    (name if isinstance(name, bytes) else str(name).encode()).decode() for name in names.tolist()
                ),
                text=file["text"].astype(np.float32, casting="same_kind"),
                image=file["image"].astype(np.float32, casting="same_kind"),
                rgb=file.get("rgb"),
                thumbnails=tuple(np.asarray(file.get("thumbnails", ())).tolist()),
                about=_told(json.loads(str(file["about"]))) if "about" in file else {},
            )
    except FileNotFoundError:
        raise SourceError(f"There is no file {path}.") from None
    except (
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise SourceError(f"{path} is not a vectors.npz of a report ({error}).") from None


def _told(about: Any) -> dict[str, Any]:
    """`about` as `save` wrote it. Raises ValueError: it goes into a page, and into a file's name."""
    groups = [about, about.get("model", {}), about.get("options", {})] if isinstance(about, dict) else [about]
    if not all(isinstance(group, dict) for group in groups):
        raise ValueError("about is not a JSON object of objects")
    words = [about.get(key, "") for key in ("source", "server")]
    words += [groups[1].get(key) or "" for key in ("checkpoint", "dtype", "device")]
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ValueError("about holds something else than words")
    json.dumps(about, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return about
