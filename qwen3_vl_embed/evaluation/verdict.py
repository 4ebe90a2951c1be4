"""Say in words whether the mean distance means anything.

A constant vector has the best possible mean distance, and an untrained network may come near it. What tells knowledge
from that is whether a matched pair is nearer than an unmatched one, at any scale: the AUC. (Not the ratio of the means
alone: a gap between the modalities moves that to 1 and leaves every rank as it was.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qwen3_vl_embed.evaluation.resampling import Figure

ALIKE = 0.6  # AUC: an unmatched pair is the farther one in fewer than six cases of ten; chance is five
UNCOVERED = 0.75  # AUC after centring
NARROW = 0.5  # unmatched mean distance: half of what unrelated directions have


@dataclass(frozen=True)
class Verdict:
    """`kind` for programs, `words` for people."""

    kind: Literal["collapsed", "narrow", "sound"]
    words: str


def judge(raw: Mapping[str, Figure], centred: Mapping[str, Figure]) -> Verdict:
    """The verdict is on the raw vectors, as they are served; the centred ones may explain it."""
    matched, unmatched, auc = (raw[key].value for key in ("matched_mean", "unmatched_mean", "auc"))
    distances = f"matched pairs are {matched:.3f} apart on average, unmatched ones {unmatched:.3f}"
    if auc < ALIKE:
        words = f"The space has collapsed: {distances}, which is alike (AUC {auc:.2f}; chance is 0.50)."
        if unmatched < NARROW:
            words += " All vectors point much the same way, and the mean distance is small for that reason alone: "
            words += "a constant vector would score 0."
        else:
            words += " A text is hardly nearer to its own image than to any other: the mean distance says nothing."
        if (uncovered := centred["auc"].value) >= UNCOVERED:  # removing the means makes no knowledge, it uncovers some
            words += f" With each modality's mean removed pairs can be told apart (AUC {uncovered:.2f}): "
            words += "an offset hides what it knows."
        return Verdict("collapsed", words)
    if unmatched < NARROW:
        return Verdict(
            "narrow",
            f"The space is narrow: {distances}. Most vectors point the same way, which alone makes the mean distance "
            "small. Compare the ratio and the recalls with other models, not the mean distance.",
        )
    return Verdict("sound", f"The space tells pairs apart: {distances} (AUC {auc:.2f}; chance is 0.50).")
