"""Two sides' vectors of the same inputs: where they agree, what is wrong with each, and the cause of a difference.

A cause is named only where both sides are known: each gives, for every input, the vector of some variant of ours.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qwen3_vl_embed.compare.inputs import KINDS, Input
from qwen3_vl_embed.compare.sides import Got, NotAsked, Side, Vector

if TYPE_CHECKING:  # torch, where a cause is looked for
    from qwen3_vl_embed.compare.variants import Variant, Variants

AGREE, DIFFER, UNKNOWN = "agree", "differ", "unknown"
EQUAL = 1e-6  # cosine distance up to which two vectors are the same
ROUNDING = 0.999  # least cosine of bfloat16 to float32: README.md
UNIT = 1e-3  # how far off 1 a length may be
Progress: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Row:
    """One input: the cosine of the two vectors, asked for alone and in a list of its kind, or why there is none."""

    name: str
    kind: str
    alone: float | None
    together: float | None
    agrees: bool
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """Why vectors differ.

    `settings`: by name, the values of A and those of B; of several, these inputs fit each. `options`: of a request to
    ours that make A's, and B's; None where no option does.
    """

    settings: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    options: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]


@dataclass
class Comparison:
    """What was seen.

    `least`: by kind, the cosine that counts as agreement. `causes`: by kind; of several, each fits. `known`: by side
    and kind, the variant of ours that it is.
    """

    names: tuple[str, str]
    rows: list[Row] = field(default_factory=list)
    least: dict[str, float] = field(default_factory=dict)
    verdict: str = UNKNOWN
    remarks: list[str] = field(default_factory=list)
    causes: dict[str, list[Cause]] = field(default_factory=dict)
    padding: dict[str, list[str]] = field(default_factory=dict)  # by side: ways that give what it gives in a list
    known: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)


@dataclass
class Answers:
    """What one side gave for each input, asked for alone and in lists; `found`: the variants of ours, by kind."""

    name: str  # A or B
    alone: list[Got]
    together: list[Got]
    found: "dict[str, list[Variant]]" = field(default_factory=dict)

    def vectors(self, members: Iterable[int]) -> dict[int, Vector]:
        return {i: got for i in members if not isinstance(got := self.alone[i], str)}


def compare(
    sides: tuple[Side, Side], inputs: Sequence[Input], least: float, variants: "Variants | None", progress: Progress
) -> Comparison:
    """Ask both; where they differ, find out why.

    `least`: a cosine; inputs that are near each other must agree more nearly, to a tenth of their distance. Where all
    have one vector, agreement says nothing, and is none.
    `variants`: of the checkpoint that is said to be behind both; None to look for no cause.
    """
    result = Comparison((sides[0].name, sides[1].name))
    kinds = {kind: [i for i, item in enumerate(inputs) if item.kind == kind] for kind in KINDS}
    kinds = {kind: members for kind, members in kinds.items() if members}
    both = []
    for letter, side in zip("AB", sides, strict=True):
        alone, together = ([*map(_sound, side.vectors(inputs, how))] for how in progress((False, True), side.name))
        both.append(Answers(letter, alone, together))
    for kind, members in kinds.items():
        spread = min(_look(result, kind, each, members) for each in both)
        result.least[kind] = 1 - min(1 - least, spread / 10)
    a, b = both
    sizes = [{len(vector) for vector in each.vectors(range(len(inputs))).values()} for each in both]
    if all(sizes) and sizes[0] != sizes[1]:
        one, other = (" or ".join(map(str, sorted(each))) for each in sizes)
        result.remarks.append(
            f"A's vectors have {one} numbers, B's {other}. A cosine is of the first numbers, as many as both have."
        )
    for i, item in enumerate(inputs):
        pairs = (a.alone[i], b.alone[i]), (a.together[i], b.together[i])
        single, listed = (cosine(*pair) for pair in pairs)
        least = result.least[item.kind]
        agrees = all(value is not None and value >= least for value in (single, listed)) and least <= 1 - EQUAL
        agrees &= all(len(one) == len(other) for one, other in pairs)
        errors = dict.fromkeys(got for pair in pairs for got in pair if isinstance(got, str))
        result.rows.append(Row(item.name, item.kind, single, listed, agrees and not errors, tuple(errors)))
    asked = {
        kind: members
        for kind, members in kinds.items()
        if not any(isinstance(each.alone[i], NotAsked) for each in both for i in members)
    }
    wrong = [kind for kind, members in asked.items() if not all(result.rows[i].agrees for i in members)]
    if not wrong:
        result.verdict = AGREE if asked else UNKNOWN
        return result
    if variants:
        search = _Causes(result, inputs, kinds, both, variants, progress)
        explained = [search.explain(kind) for kind in wrong]
        result.verdict = DIFFER if all(explained) else UNKNOWN
    seen = [value for row in result.rows if row.kind in wrong for value in (row.alone, row.together)]
    if result.verdict == UNKNOWN and min(-1 if value is None else value for value in seen) >= ROUNDING:
        result.remarks.append(f"All cosines are above {ROUNDING}: rounding to 16 bits moves vectors as far (--least).")
    return result


@dataclass
class _Causes:
    """The search for causes, over what the two sides gave."""

    result: Comparison
    inputs: Sequence[Input]
    kinds: Mapping[str, list[int]]
    both: list[Answers]
    variants: "Variants"
    progress: Progress

    def explain(self, kind: str) -> bool:
        """Whether it is known why vectors of a kind differ: asked for alone, and in a list."""
        members, least = self.kinds[kind], self.result.least[kind]
        if any(self.result.rows[i].errors for i in members):
            return False
        for side in self.both:  # texts first: they tell most cheaply what the prompt is
            for each in KINDS[: KINDS.index(kind) + 1]:
                if each in self.kinds and each not in side.found:
                    side.found[each] = self._search(side, each)
        known = []
        sizes = {len(side.alone[i]) for side in self.both for i in members}
        if len(sizes) > 1 or any((self.result.rows[i].alone or 0) < least for i in members):
            self.result.causes[kind] = causes(*(side.found[kind] for side in self.both))
            known.append(bool(self.result.causes[kind]))
        for side in self.both:
            if min(cosine(side.alone[i], side.together[i]) or 0 for i in members) < min(least, 1 - EQUAL):
                known.append(self._padding(side))
        return bool(known) and all(known)

    def _search(self, side: Answers, kind: str) -> "list[Variant]":
        vectors = side.vectors(self.kinds[kind])
        if not vectors or self.result.least[kind] > 1 - EQUAL:  # all the same: whatever is constant would fit
            return []
        known = [variant for found in side.found.values() for variant in found]
        inputs = [self.inputs[i] for i in vectors]
        found = self.variants.find(inputs, [*vectors.values()], self.result.least[kind], known, self.progress)
        if found.variants:
            told = {each.setting: each.value for each in next(iter(found.variants))}
            self.result.known.setdefault(side.name, {})[kind] = told
        elif found.nearest:
            near = ", ".join(f"{each.setting}: {each.value}" for each in found.nearest[0])
            self.result.remarks.append(
                f"{side.name}, {kind}: no variant of ours gives all its vectors. The nearest on the first has a cosine "
                f"of {found.nearest[1]:.5f} ({near})."
            )
        return list(found.variants)

    def _padding(self, side: Answers) -> bool:
        """Whether a wrong way of padding gives what this side gives of all texts in one list."""
        from qwen3_vl_embed.compare.padding import faults

        texts, variants = self.kinds.get("text", []), side.found.get("text", [])
        theirs = [got for i in texts if not isinstance(got := side.together[i], str)]
        if side.name not in self.result.padding:
            self.result.padding[side.name] = []
            if variants and len(theirs) == len(texts):
                ids = [self.variants.sequence(self.inputs[i], variants[0]).tokens.ids for i in texts]
                found = faults(self.variants.embedder.checkpoint, ids, theirs, self.result.least["text"])
                self.result.padding[side.name] = found
        return bool(self.result.padding[side.name])


def causes(a: "Sequence[Variant]", b: "Sequence[Variant]") -> list[Cause]:
    """The fewest settings in which a variant of A is another than one of B; several where as few others do it too."""
    differing: dict[frozenset[str], list[tuple[Variant, Variant]]] = defaultdict(list)
    for pair in product(a, b):
        differing[frozenset(x.setting for x, y in zip(*pair, strict=True) if x != y)].append(pair)
    fewest = min(map(len, differing), default=0)
    found = []
    for settings, pairs in differing.items():
        if len(settings) == fewest > 0:
            values: dict[str, tuple[dict[str, None], dict[str, None]]] = defaultdict(lambda: ({}, {}))
            for pair in pairs:
                for side, variant in enumerate(pair):
                    for each in variant:
                        if each.setting in settings:
                            values[each.setting][side][each.value] = None
            named = {name: (tuple(one), tuple(other)) for name, (one, other) in values.items()}
            found.append(Cause(named, (_options(pairs[0][0], settings), _options(pairs[0][1], settings))))
    return found


def _options(variant: "Variant", settings: frozenset[str]) -> Mapping[str, Any] | None:
    """Of a request to ours; None where no option makes one of these settings."""
    chosen = [each.options for each in variant if each.setting in settings]
    if any(options is None for options in chosen):
        return None
    options = {name: value for each in chosen for name, value in (each or {}).items()}
    made = {each.setting: each.options for each in variant}
    if made["end"] == {"pooling": "eos"}:  # a pooling of ours: of the last token, never a mean
        return options | {"pooling": "eos"} if made["pooling"] == {"pooling": "last"} else None
    return options


def _look(result: Comparison, kind: str, side: Answers, members: list[int]) -> float:
    """The median distance of one side's vectors of a kind; remarks say what is wrong with them."""

    def remark(sentence: str) -> None:
        result.remarks.append(f"{side.name}, {kind}: {sentence}")

    vectors = side.vectors(members)
    refused = [got for i in members if isinstance(got := side.together[i], str)]
    if len(refused) == len(members) == len(vectors):
        remark(f"not compared in a list. {refused[0]}")
        for i in members:
            side.together[i] = side.alone[i]
    for got, count in Counter(
        got
        for i in members
        for got in {str(each) for each in (side.alone[i], side.together[i]) if isinstance(each, str)}
    ).items():
        remark(f"{count} of {len(members)}: {got}")
    lengths = [float(np.linalg.norm(vector)) for vector in vectors.values()]
    if any(abs(length - 1) > UNIT for length in lengths):
        remark(f"lengths are {min(lengths):.3g} … {max(lengths):.3g}, not 1.")
    company = [value for i in members if (value := cosine(side.alone[i], side.together[i])) is not None]
    if company and min(company) < 1 - EQUAL:
        rounding = ", as rounding to 16 bits does" if min(company) >= ROUNDING else ""
        remark(f"a list changes the vectors, to a cosine of {min(company):.5f}{rounding}.")
    distances = [1 - (cosine(one, other) or 0) for one, other in combinations(vectors.values(), 2)]
    if distances and max(distances) < EQUAL:
        remark(f"all {len(vectors)} inputs have the same vector.")
    return max(float(np.median(distances)), 0.0) if distances else 1.0


def _sound(got: Got) -> Got:
    if isinstance(got, str) or (np.isfinite(got).all() and got.any()):
        return got
    return "The vector is zero." if np.isfinite(got).all() else "The vector holds NaN or infinity."


def cosine(one: Got, other: Got) -> float | None:
    """Of two vectors, in the dimensions that both have: one may be the other's first so many. None without both."""
    if isinstance(one, str) or isinstance(other, str):
        return None
    size = min(len(one), len(other))
    x, y = one[:size].astype(np.float64), other[:size].astype(np.float64)
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), np.finfo(np.float64).tiny))
