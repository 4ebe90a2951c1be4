"""Names that the survey has not, composed of words that it has: "very dark teal", "pale yellowish green".

Their colours are derived from the survey itself. "Dark" does to teal what it does, in the median, to the colours of
which the survey has both "X" and "dark X".
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from qwen3_vl_embed.evaluation.colours import Palette

MODIFIERS = (
    "dark", "deep", "darkish", "very dark", "light", "lightish", "very light", "pale", "very pale", "bright", "soft",
    "dusty", "dull", "faded", "muted", "dirty",
)  # fmt: skip
TINTS = {
    "greenish": "green", "brownish": "brown", "reddish": "red", "pinkish": "pink", "purplish": "purple",
    "bluish": "blue", "yellowish": "yellow", "orangish": "orange", "greyish": "grey",
}  # fmt: skip
HELD_OUT = Path(__file__).with_name("held_out.txt")


@dataclass(frozen=True)
class Composition:
    """A composed name and the colour that it should mean, CIELAB (3,); sRGB may not reach it."""

    name: str
    lab: np.ndarray
    base: np.ndarray  # the survey's colour that it starts from

    @property
    def opposite(self) -> np.ndarray:
        """As far from the base, the other way."""
        return 2 * self.base - self.lab


class Composer:
    """Composes names over a palette; what each word does is measured in that palette once."""

    def __init__(self, palette: Palette) -> None:
        self._lab = dict(zip(palette.names, palette.lab, strict=True))
        self._shifts = {modifier: self._measure_modifier(modifier) for modifier in MODIFIERS}
        self._weights = {tint: self._measure_tint(tint) for tint in TINTS}
        words = {word for phrase in (*MODIFIERS, *TINTS) for word in phrase.split()}
        self.bases = [name for name in palette.names if not words & set(name.split())]

    def compose(self, base: str, modifier: str | None = None, tint: str | None = None) -> Composition:
        """`[modifier] [tint] base`, for instance "pale yellowish green"."""
        name = " ".join(word for word in (modifier, tint, base) if word)
        lab = self._lab[base]
        if tint is not None:
            lab = lab + self._weights[tint] * (self._lab[TINTS[tint]] - lab)
        if modifier is not None:
            lightness, chroma = self._shifts[modifier]
            room = 100 - lab[0] if lightness > 0 else lab[0]
            lab = np.array([lab[0] + lightness * room, *(lab[1:] * chroma)])
        return Composition(name, lab, self._lab[base])

    def all(self) -> list[Composition]:
        """Every composition that is no name of the survey and not tinted with its own hue ("greenish green")."""
        choices = product(self.bases, (None, *MODIFIERS), (None, *TINTS))
        composed = (
            self.compose(base, modifier, tint)
            for base, modifier, tint in choices
            if (modifier or tint) and (tint is None or TINTS[tint] not in base.split())
        )
        return [composition for composition in composed if composition.name not in self._lab]

    def _pairs(self, phrase: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """CIELAB of (X, "phrase X") for every X of which the survey has both."""
        longer = {name: f"{phrase} {name}" for name in self._lab}
        return [(self._lab[name], self._lab[full]) for name, full in longer.items() if full in self._lab]

    def _measure_modifier(self, modifier: str) -> tuple[float, float]:
        """(share of the way to white or, below 0, to black; factor of chroma): medians over the survey's pairs."""
        before, after = np.array(self._pairs(modifier)).transpose(1, 2, 0)  # both (3, P)
        step = after[0] - before[0]
        lightness = step / np.where(step > 0, 100 - before[0], before[0])
        chroma = np.hypot(*after[1:]) / np.hypot(*before[1:])
        return float(np.median(lightness)), float(np.median(chroma))

    def _measure_tint(self, tint: str) -> float:
        """How far towards the tint's own hue, 0…1 along the straight line in CIELAB: the median over the pairs."""
        before, after = np.array(self._pairs(tint)).swapaxes(0, 1)  # both (P, 3)
        way = self._lab[TINTS[tint]] - before
        return float(np.median(((after - before) * way).sum(axis=1) / (way * way).sum(axis=1)))


def split(compositions: list[Composition]) -> tuple[list[Composition], list[Composition]]:
    """(for training, held out): training never sees the names in `held_out.txt`.

    These were drawn at random, once, over 36 common bases: a few of every modifier and tint alone, then both together.
    All have the meant colour and its opposite at least CIEDE2000 10 apart.
    """
    names = set(HELD_OUT.read_text().splitlines())
    return [c for c in compositions if c.name not in names], [c for c in compositions if c.name in names]
