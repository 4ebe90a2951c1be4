"""Everything that is known of N pairs, in one object: figures raw and centred, verdict, what was run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from qwen3_vl_embed.evaluation import FloatArray, distances, geometry, perception, probe, retrieval
from qwen3_vl_embed.evaluation.colours import delta_e
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.resampling import INTERVAL, RESAMPLES, Figure, Resampling
from qwen3_vl_embed.evaluation.space import Space, centred, raw
from qwen3_vl_embed.evaluation.verdict import Verdict, judge


@dataclass(frozen=True)
class Report:
    """`figures` by name, for the space "raw" and "centred".

    `differences`: CIEDE2000 of each colour with each, (N, N); None for images of more than one colour.
    """

    name: str
    date: datetime
    pairs: Pairs
    differences: FloatArray | None
    spaces: Mapping[str, Space]
    figures: Mapping[str, Mapping[str, Figure]]
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """For json.dumps; what has no value (0 / 0 in a collapsed space) is null."""
        return {
            "name": self.name,
            "date": self.date.isoformat(timespec="seconds"),
            "pairs": len(self.pairs),
            "dimension": self.pairs.text.shape[1],
            "about": self.pairs.about,
            "verdict": asdict(self.verdict),
            "intervals": {"percentiles": INTERVAL, "resamples": RESAMPLES},
            **{space: {name: _plain(each) for name, each in found.items()} for space, found in self.figures.items()},
        }


def report(pairs: Pairs, name: str) -> Report:
    """Evaluate the vectors, raw and centred. A few seconds for the 949 colours."""
    spaces = {"raw": raw(pairs), "centred": centred(pairs)}
    resampling = Resampling(len(pairs))
    differences = None if pairs.rgb is None else delta_e(pairs.lab, pairs.lab)
    wanted = probe.wanted(pairs)
    figures = {}
    for kind, space in spaces.items():
        found = distances.figures(space, resampling) | retrieval.figures(space, resampling)
        found |= geometry.figures(space, resampling)
        if differences is not None:
            found |= perception.figures(space, differences, resampling)
        if wanted is not None:
            found |= probe.figures(space, wanted, resampling)
        figures[kind] = found
    return Report(name, datetime.now(), pairs, differences, spaces, figures, judge(figures["raw"], figures["centred"]))


def values(space: Space) -> dict[str, float]:
    """Distances and ranks without intervals, for those who ask often."""
    resampling = Resampling(space.pairs, resamples=0)
    found = distances.figures(space, resampling) | retrieval.figures(space, resampling)
    return {name: figure.value for name, figure in found.items()}


def _plain(figure: Figure) -> dict[str, float | None]:
    values = asdict(figure)
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
