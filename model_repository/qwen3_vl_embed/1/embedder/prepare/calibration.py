"""Centring with statistics from a file: what every vector of a modality shares is taken away.

A vector x (unit length) of a modality becomes (x - mean). As the file says, its `top` principal directions are removed
(all-but-the-top, arXiv 1702.01417, February 2017). Or it is whitened (ZCA with shrinkage, as in arXiv 2512.19115, of
December 2025). `align` moves texts alone, onto the images' distribution (ReAlign, arXiv 2602.07026v3, June 2026). That
is their centre and their spread (anchor and trace alignment), and after scaling to length 1 their centre once more. It
is fitted on texts and images that need not belong together.
`qwen3-vl-embed calibrate` fits the file on data of its own. It belongs to one recipe of one checkpoint and is refused
for any other.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..paths import openable

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = ("text", "image")


class NoSpread(ValueError):
    """All vectors of a modality are equal: nothing can be aligned to them or by them."""


@dataclass(frozen=True)
class Calibration:
    """`mean`: (D,) of each kind; `top`: (k, D) orthonormal rows to remove; `whiten`: (D, D) to multiply with.

    `align`: the texts' scale (1,) and last shift (D,), float32; None where each kind is moved by itself.
    """

    # {"method", "forward" (the recipe it was fitted to), "weights", "samples", "hash" (of the arrays)}
    about: dict[str, Any]
    mean: dict[Kind, NDArray[np.float32]]
    top: dict[Kind, NDArray[np.float32]]
    whiten: dict[Kind, NDArray[np.float32]]
    align: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a file that is not a calibration, or is not as it was written."""
        try:
            with np.load(openable(path), allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(str(arrays.pop("about")))
            if about["hash"] != digest(arrays):
                raise ValueError("its numbers are not those that it was written with")
            found = cls.of(arrays, about)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"EMBED_CALIBRATION: {path} is not a calibration file ({error}); make one with `calibrate`"
            ) from None
        return found

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.float32]], about: dict[str, Any] | None = None) -> Self:
        """From the arrays of `fit`. Raises ValueError: those of a kind are missing."""
        mean, top, whiten = (
            {kind: arrays[f"{part}_{kind}"] for kind in KINDS if f"{part}_{kind}" in arrays}
            for part in ("mean", "top", "whiten")
        )
        if missing := [kind for kind in KINDS if kind not in mean]:
            raise ValueError(f"it has nothing of {' and '.join(missing)}s")
        if len(parts := [arrays[name] for name in ("scale_text", "shift_text") if name in arrays]) == 1:
            raise ValueError("of what aligns texts, it has a part")
        return cls(about or {}, mean, top, whiten, (parts[0], parts[1]) if parts else None)

    def check(self, forward: dict[str, Any], weights: str) -> None:
        """Raises InvalidInput when it was fitted to another recipe or to other weights."""
        if self.about["weights"] != weights:
            raise InvalidInput("options.center: the calibration was fitted to another checkpoint: leave center out")
        fitted = self.about["forward"]
        differing = sorted(name for name in forward if forward[name] != fitted.get(name))
        if differing:
            raise InvalidInput(
                f"options.center: the calibration was fitted with another {', '.join(differing)}: "
                "ask for the recipe that it was fitted with, or leave center out"
            )

    def apply(self, rows: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
        """(…, D) -> (…, D), float32."""
        unit = scaled(rows)
        if self.align:
            if kind == "text":
                scale, shift = self.align
                unit = scaled((unit - self.mean["text"]) * scale + self.mean["image"]) + shift
            return unit.astype(np.float32)
        centred = unit - self.mean[kind]
        if kind in self.top:
            centred = centred - (centred @ self.top[kind].T) @ self.top[kind]
        return (centred @ self.whiten[kind] if kind in self.whiten else centred).astype(np.float32)


def save(file: str | Path | IO[bytes], about: dict[str, Any], arrays: dict[str, NDArray[np.float32]]) -> None:
    """Write a calibration file (.npz): the arrays of `fit`, what they were fitted to, and their hash."""
    np.savez(file, about=json.dumps(about | {"hash": digest(arrays)}), **arrays)


def digest(arrays: dict[str, NDArray[np.float32]]) -> str:
    """sha256 over names, shapes and numbers, twelve hex digits."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(f"{name} {arrays[name].shape}".encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return whole.hexdigest()[:12]


def parsed(method: str) -> tuple[str, float]:
    """A method's name and number, 0 where it has none. Raises ValueError: also before vectors are made for it."""
    name, dash, value = method.partition("-")
    if (name, dash) in {("mean", ""), ("align", "")}:
        return name, 0.0
    if name == "abtt" and re.fullmatch("[1-9][0-9]{0,8}", value):
        return name, int(value)
    if name == "zca" and re.fullmatch(r"[0-9]*\.?[0-9]+", value) and 0 < float(value) <= 1:
        return name, float(value)
    raise ValueError(f"{method}: the methods are mean, abtt-K (K from 1), zca-A (A above 0, up to 1) and align")


def fit(rows: dict[Kind, NDArray[np.float32]], method: str) -> dict[str, NDArray[np.float32]]:
    """The arrays of a calibration file from vectors (N, D) of each kind, fitted to each by itself, but for `align`.

    `method`: `mean`, `abtt-K` (K principal directions), `zca-A` (shrinkage A, 0 < A ≤ 1, towards a scaled identity) or
    `align`.

    Raises:
        ValueError: no such method, nothing that would be left, or nothing that texts could be aligned to or by.
    """
    name, value = parsed(method)
    arrays: dict[str, NDArray[np.float32]] = {}
    for kind, vectors in rows.items():
        unit = scaled(vectors)
        mean = unit.mean(axis=0)
        arrays[f"mean_{kind}"] = mean.astype(np.float32)
        if name == "abtt":
            directions = np.linalg.svd(unit - mean, full_matrices=False)[2]
            if value >= len(directions):
                raise ValueError(f"{method} leaves nothing: {kind}s differ in fewer than {len(directions)} directions")
            arrays[f"top_{kind}"] = directions[: int(value)].astype(np.float32)
        elif name == "zca":
            arrays[f"whiten_{kind}"] = _zca(unit - mean, value).astype(np.float32)
    return arrays | _alignment(rows, arrays) if method == "align" else arrays


def _alignment(
    rows: dict[Kind, NDArray[np.float32]], means: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """scale_text (1,), shift_text (D,)."""
    if missing := [kind for kind in KINDS if kind not in rows]:
        raise ValueError(f"align moves texts onto images: {missing[0]}s are missing")
    text, image = (scaled(rows[kind]) - means[f"mean_{kind}"] for kind in KINDS)
    spread_text, spread_image = ((each**2).sum(axis=1).mean() for each in (text, image))  # the covariances' traces
    if spread_text <= 1e-12 or spread_image <= 1e-12:
        raise NoSpread("align matches the spread of texts and images, and here one has none: all its vectors are equal")
    scale = np.sqrt(spread_image / spread_text)
    moved = scaled(text * scale + means["mean_image"])
    arrays = {"scale_text": scale.reshape(1), "shift_text": means["mean_image"] - moved.mean(axis=0)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def scaled(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """To length 1, (…, D)."""
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


def _zca(centred: NDArray[np.float32], shrinkage: float) -> NDArray[np.float32]:
    covariance = centred.T @ centred / len(centred)
    scale = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance)))
    whitening: NDArray[np.float32] = (vectors / np.sqrt(values)) @ vectors.T
    return whitening
