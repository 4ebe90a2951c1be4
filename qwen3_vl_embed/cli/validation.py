"""Check a running server: its contract, its vectors' shape and norm, and whether a colour's name finds the colour."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3_vl_embed.client import Client
from qwen3_vl_embed.contract import ContractError, read_contract
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.pictures import encoded

# The eleven basic colour terms (Berlin & Kay 1969), each with the sRGB value that most people gave that name in the
# XKCD colour survey (https://xkcd.com/color/rgb/), which is the survey that the colour benchmark asks about.
BASIC_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0x00, 0x00, 0x00),
    "white": (0xFF, 0xFF, 0xFF),
    "red": (0xE5, 0x00, 0x00),
    "green": (0x15, 0xB0, 0x1A),
    "yellow": (0xFF, 0xFF, 0x14),
    "blue": (0x03, 0x43, 0xDF),
    "brown": (0x65, 0x37, 0x00),
    "purple": (0x7E, 0x1E, 0x9C),
    "pink": (0xFF, 0x81, 0xC0),
    "orange": (0xF9, 0x73, 0x06),
    "grey": (0x92, 0x95, 0x91),
}
NAMES = list(BASIC_COLOURS)
SWATCH_SIDE = 244  # pixels, as in the benchmark
NORM_TOLERANCE = 1e-3
LEAST_AGREEMENT = 0.999  # cosine of an item embedded in a list and alone: batching moves the last bits of bfloat16


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `detail` says what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Validation:
    """`checks` in the order they were made; `cosines` float32 (11, 11): a row is a name, a column a swatch."""

    checks: list[Check]
    cosines: NDArray[np.float32]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def best(self, name: str) -> str:
        """The basic colour whose swatch is nearest to the name."""
        return NAMES[int(self.cosines[NAMES.index(name)].argmax())]


def validate(client: Client, strict: bool = False) -> Validation:
    """Ask the server about the basic colours. `strict` wants every name to find its swatch, else red alone must.

    Raises AdapterError when the server cannot be asked.
    """
    model = client.model()
    # The server's own recipe, but unit vectors even where it leaves them as they are.
    options: dict[str, Any] = {} if model["recipe"]["normalize"] else {"normalize": True}
    texts = client.embed_text(NAMES, **options)  # (11, D)
    images = client.embed_image([swatch(name) for name in NAMES], **options)
    if texts.shape != images.shape:
        raise AdapterError(f"Texts have {texts.shape[1]} dimensions and images {images.shape[1]}.")
    checks = [_contract(client)]
    told, seen = model["dimension"], texts.shape[1]
    checks.append(Check("dimension", told == seen, f"texts and images have {seen}, the checkpoint {told}"))
    listed = np.concatenate([texts, images])  # (22, D)
    off = float(np.abs(np.linalg.norm(listed, axis=1) - 1).max())
    checks.append(Check("unit norm", off <= NORM_TOLERANCE, f"{len(listed)} vectors, at most {off:.1e} off 1"))
    options["dimensions"] = told  # spelled out, so that no cache answers
    single = [client.embed_text(name, **options) for name in NAMES]
    single += [client.embed_image(swatch(name), **options) for name in NAMES]
    least = float((_unit(listed) * _unit(np.stack(single))).sum(axis=1).min())
    checks.append(Check("list = single", least >= LEAST_AGREEMENT, f"{len(listed)} items, least cosine {least:.6f}"))
    cosines = _unit(texts) @ _unit(images).T  # (11, 11)
    checks.append(_red(cosines))
    if strict:
        checks.append(_every_colour(cosines))
    return Validation(checks, cosines)


def swatch(name: str) -> bytes:
    """A basic colour as a solid PNG."""
    return encoded(Image.new("RGB", (SWATCH_SIDE, SWATCH_SIDE), BASIC_COLOURS[name]))


def _contract(client: Client) -> Check:
    try:
        contract = read_contract(client.openapi())
    except ContractError as error:
        return Check("contract", False, str(error))
    if contract.text_items != contract.image_items:
        counts = f"{contract.text_items} texts, but {contract.image_items} images"
        return Check("contract", False, f"/openapi.json allows {counts}: the benchmark reads one limit for both.")
    return Check("contract", True, f"/txt/embed and /img/embed take lists of up to {contract.max_items}")


def _red(cosines: NDArray[np.float32]) -> Check:
    row = cosines[NAMES.index("red")]
    own, others = float(row[NAMES.index("red")]), np.delete(row, NAMES.index("red"))
    rival = [name for name in NAMES if name != "red"][int(others.argmax())]
    detail = f"cosine {own:.3f} with its own swatch; next is {rival}, {others.max():.3f}"
    return Check("red", own > 0 and own > others.max(), detail)


def _every_colour(cosines: NDArray[np.float32]) -> Check:
    own = cosines.diagonal()
    found = int(((own > 0) & (cosines.argmax(axis=1) == np.arange(len(NAMES)))).sum())
    return Check("every colour", found == len(NAMES), f"{found} of {len(NAMES)} names find their own swatch")


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units
