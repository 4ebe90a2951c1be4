"""Centring with statistics from a file: what every vector of a modality shares is taken away.

A vector x (unit length) of a modality becomes (x - mean). As the file says, its `top` principal directions are removed
(all-but-the-top, arXiv 1702.01417), or it is whitened (ZCA with shrinkage, as ReAlign, arXiv 2512.19115).
`qwen3-vl-embed calibrate` fits the file on data of its own. It belongs to one recipe of one checkpoint and is refused
for any other.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..paths import openable

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = ("text", "image")


@dataclass(frozen=True)
class Calibration:
    """`mean`: (D,) of each kind; `top`: (k, D) orthonormal rows to remove; `whiten`: (D, D) to multiply with."""

    # {"method", "forward" (the recipe it was fitted to), "weights", "samples", "hash" (of the arrays)}
    about: dict[str, Any]
    mean: dict[Kind, NDArray[np.float32]]
    top: dict[Kind, NDArray[np.float32]]
    whiten: dict[Kind, NDArray[np.float32]]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a file that is not a calibration, or is not as it was written."""
        try:
            with np.load(openable(path), allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(str(arrays.pop("about")))
            if about["hash"] != digest(arrays):
                raise ValueError("its numbers are not those that it was written with")
            mean, top, whiten = (
                {kind: arrays[f"{part}_{kind}"] for kind in KINDS if f"{part}_{kind}" in arrays}
                for part in ("mean", "top", "whiten")
            )
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a calibration file ({error}); make one with `calibrate`") from None
        return cls(about, mean, top, whiten)

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

    def apply(self, row: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
        """(D,) -> (D,), float32."""
        centred = row / np.linalg.norm(row) - self.mean[kind]
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


def fit(rows: dict[Kind, NDArray[np.float32]], method: str) -> dict[str, NDArray[np.float32]]:
    """The arrays of a calibration file from vectors (N, D) of each kind, fitted to each kind by itself.

    `method`: `mean`, `abtt-K` (K principal directions) or `zca-A` (shrinkage A, 0…1, towards a scaled identity).

    Raises:
        ValueError: no such method.
    """
    name, _, value = method.partition("-")
    arrays: dict[str, NDArray[np.float32]] = {}
    for kind, vectors in rows.items():
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        mean = unit.mean(axis=0)
        arrays[f"mean_{kind}"] = mean.astype(np.float32)
        if name == "abtt":
            directions = np.linalg.svd(unit - mean, full_matrices=False)[2]
            arrays[f"top_{kind}"] = directions[: int(value)].astype(np.float32)
        elif name == "zca":
            arrays[f"whiten_{kind}"] = _zca(unit - mean, float(value)).astype(np.float32)
        elif method != "mean":
            raise ValueError(f"{method}: the methods are mean, abtt-K and zca-A")
    return arrays


def _zca(centred: NDArray[np.float32], shrinkage: float) -> NDArray[np.float32]:
    covariance = centred.T @ centred / len(centred)
    scale = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance)))
    whitening: NDArray[np.float32] = (vectors / np.sqrt(values)) @ vectors.T
    return whitening
