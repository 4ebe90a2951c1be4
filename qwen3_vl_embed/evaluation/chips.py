"""Colour chips in HTML: what is found for each text, and where the mistakes go.

A chip is an <i> of the class c0, c1, … of its pair; `chip_styles` gives the classes their colour, or picture.
"""

import re
from html import escape

import numpy as np

from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import Report
from qwen3_vl_embed.evaluation.retrieval import ranks

SHOWN = 16  # answers to each query
LETTERS = 160  # of a text that is said again and again: in each of its chips, in cards
MISTAKES = 30
HUBS = 12
OPEN = 8  # cards that are shown at once
# The survey asked people, and people answered. The page is made to be shown.
RUDE = re.compile(r"\b([sp])(hit|oop?|uke|iss|not)\b|\b(b|d|v)(arf|ooger|iarrhea|omit)\b")
FIRST = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")


def chip_styles(pairs: Pairs) -> str:
    """One CSS rule for each pair."""
    if pairs.rgb is not None:
        return "".join(f".c{i}{{background:#{bytes(rgb).hex()}}}" for i, rgb in enumerate(pairs.rgb))
    pictures = (f"url(data:image/jpeg;base64,{each})center/cover" for each in pairs.thumbnails)
    return "".join(f".c{i}{{background:{picture}}}" for i, picture in enumerate(pictures))


def chip(pairs: Pairs, index: int, extra: str = "") -> str:
    return f'<i class="c{index}{extra}" title="{named(pairs, index, LETTERS)}"></i>'


def named(pairs: Pairs, index: int, most: int | None = None) -> str:
    """The text in HTML, its first `most` letters; in colours' names, of a rude word the first letter."""
    name = pairs.names[index]
    if pairs.rgb is not None:
        name = RUDE.sub(lambda found: found[0][0] + "*" * (len(found[0]) - 1), name)
    return escape(name if most is None or len(name) <= most else name[:most] + "…")


def _isolated(pairs: Pairs, index: int) -> str:
    """Beside other words: one that is written from right to left turns none of them."""
    return f"<bdi>{named(pairs, index, LETTERS)}</bdi>"


def ranked_rows(report: Report) -> str:
    """Every text with its nearest images; the basic colours first, then the worst."""
    pairs, cosines = report.pairs, report.spaces["raw"].text_to_image
    rank = ranks(cosines)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :SHOWN].tolist()
    basic = [pairs.names.index(name) for name in FIRST if name in pairs.names]
    rows = []
    for index in basic + [index for index in np.argsort(-rank, kind="stable").tolist() if index not in basic]:
        chips = "".join(chip(pairs, each, " own" if each == index else "") for each in nearest[index])
        head = f"{chip(pairs, index)}<span>{named(pairs, index)}</span><b>{rank[index]}</b>"
        rows.append(f"<li>{head}<div>{chips}</div></li>\n")
    return "".join(rows)


def mistakes(report: Report, direction: str) -> str:
    """The queries whose first answer is wrong, the farthest off first: as colours where they have one, else by rank."""
    pairs, cosines = report.pairs, getattr(report.spaces["raw"], direction)
    rank, first = ranks(cosines), cosines.argmax(axis=1)
    off = rank if report.differences is None else report.differences[np.arange(len(first)), first]
    wrong = [index for index in np.argsort(-off, kind="stable") if first[index] != index]
    if not wrong:
        return "<p>None.</p>"
    cards = []
    for query in wrong[:MISTAKES]:
        answer = first[query]
        difference = "" if report.differences is None else f"ΔE {report.differences[query, answer]:.0f} · "
        words = f"{_isolated(pairs, query)} → {_isolated(pairs, answer)}"
        shown = chip(pairs, query) + chip(pairs, answer)
        cards.append(_card(shown, words, f"{difference}right one at rank {rank[query]}"))
    return f"<p>{len(wrong)} wrong first answers; the farthest off come first.</p>{_cards(cards)}"


def hubs(report: Report, direction: str) -> str:
    """The answers that most queries get by mistake."""
    pairs, first = report.pairs, getattr(report.spaces["raw"], direction).argmax(axis=1)
    wrong = np.bincount(first[first != np.arange(len(first))], minlength=len(first))
    most = [index for index in np.argsort(-wrong, kind="stable")[:HUBS].tolist() if wrong[index] > 1]
    cards = [_card(chip(pairs, each), _isolated(pairs, each), f"{wrong[each]} times") for each in most]
    return _cards(cards) if cards else "<p>None more than once.</p>"


def _cards(cards: list[str]) -> str:
    """The first at once, the others behind a line to click."""
    first, others = cards[:OPEN], cards[OPEN:]
    more = f"<details><summary>{len(others)} more</summary><ul class=cards>{''.join(others)}</ul></details>"
    return f"<ul class=cards>{''.join(first)}</ul>{more if others else ''}"


def _card(shown: str, words: str, small: str) -> str:
    return f"<li>{shown}<span>{words}<small>{small}</small></span></li>\n"
