"""What a check finds: one line each, and what the line says about it."""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class Verdict(StrEnum):
    """From best to worst."""

    SKIPPED = "skipped"  # CUDA's own, on a CPU
    OK = "ok"
    SLOW = "SLOW"  # right, and not as fast as predicted
    FAIL = "FAIL"  # wrong, or not there


@dataclass(frozen=True)
class Figure:
    """One line: what was measured, its value, and what was expected."""

    what: str
    value: float | str
    unit: str = ""
    expected: str = ""
    verdict: Verdict = Verdict.OK

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else number(self.value)
        expected = f"  ({self.expected})" if self.expected else ""
        return f"{self.verdict:<7}  {self.what}: {value}{' ' * bool(self.unit)}{self.unit}{expected}"


def number(value: float) -> str:
    """Four digits; what is within a thousandth of 1 keeps what it differs by."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.7g}" if abs(value - 1) < 1e-3 else f"{value:.4g}"


def told(what: str, value: float | str, unit: str = "", expected: str = "") -> Figure:
    """For the reader: no bound."""
    return Figure(what, value, unit, expected)


def bounded(
    otherwise: Verdict,
    what: str,
    value: float,
    unit: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    expected: str = "",
) -> Figure:
    """Outside the bounds (or NaN) it is `otherwise`; without bounds (another card, a CPU) it is only told."""
    within = (least is None or value >= least) and (most is None or value <= most)
    bounds = [f"{sign} {bound:.6g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None]
    said = ", ".join([*bounds, *filter(None, [expected])])
    return Figure(what, value, unit, said, Verdict.OK if within else otherwise)


right = partial(bounded, Verdict.FAIL)  # outside something is wrong
fast = partial(bounded, Verdict.SLOW)  # outside it is slow


def skipped(what: str) -> Figure:
    """What only CUDA has."""
    return Figure(what, "CUDA's own", verdict=Verdict.SKIPPED)
