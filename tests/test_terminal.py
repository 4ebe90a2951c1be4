"""What a person sees on a terminal, narrow and wide: tables fit, and colours are chips only where there are colours."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cli import terminal
from cli.sources import Item
from cli.validation import NAMES, Check, Validation
from cli.vectors import Embedded

COSINES = np.eye(len(NAMES), dtype=np.float32)
COSINES[NAMES.index("grey"), NAMES.index("black")] = 2
VALIDATION = Validation([Check("red", True, "it does"), Check("contract", False, "no such path")], COSINES)
LONG = [Item.text("a long name " * 20), *[Item.image(Path("/a/long/path" * 20) / "red.png")] * 24]
EMBEDDED = [Embedded(item, np.full(256, -0.0625, np.float32)) for item in LONG]


@pytest.fixture(params=[60, 100])
def screen(request, monkeypatch) -> Console:
    console = Console(file=StringIO(), width=request.param, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "out", console)
    return console


def lines(screen: Console) -> list[str]:
    assert isinstance(screen.file, StringIO)
    shown = screen.file.getvalue().splitlines()
    assert max(map(len, shown)) <= screen.width
    return shown


def test_embedded(screen):
    terminal.show_embedded(EMBEDDED)  # its last sentence, on stderr, is left to the terminal to wrap
    shown = "\n".join(lines(screen))
    assert shown.count("-0.0625") == 20 * (4 if screen.width >= 80 else 2)
    assert shown.count("1.0000") == 20
    assert shown.count("…") == 20 + 20  # names and numbers go on
    assert shown.count("/red.png ") == 19


def test_validation(screen):
    terminal.show_validation(VALIDATION)
    shown = lines(screen)
    [grey] = [line for line in shown if line.startswith(" grey")]
    assert grey.split()[0] == "grey"
    assert "black" in grey
    assert any(line.split() == ["ok", "red", "it", "does"] for line in shown)
    assert any(line.split() == ["FAILED", "contract", "no", "such", "path"] for line in shown)
    assert "█" not in "".join(shown)


def test_colour_chips(monkeypatch):
    console = Console(file=StringIO(), width=100, force_terminal=True, color_system="truecolor")
    monkeypatch.setattr(terminal, "out", console)
    terminal.show_validation(VALIDATION)
    assert "\x1b[38;2;229;0;0m██" in console.file.getvalue()


def test_info(screen):
    terminal.show_info({"model": {"dimension": 2560, "revision": None, "recipe": {"normalize": True, "x": [1, "y"]}}})
    assert [line.split() for line in lines(screen)] == [
        ["model"],
        ["dimension", "2,560"],
        ["revision", "none"],
        ["recipe"],
        ["normalize", "yes"],
        ["x", "1,", "y"],
    ]


def test_sentences_are_not_taken_for_markup_and_go_to_stderr(capsys):
    terminal.complain("input[7] is [bold]wrong[/bold].")
    terminal.show_embedded(EMBEDDED)
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: input[7] is [bold]wrong[/bold].\n")
    assert "5 more are not shown. Dimension 256." in printed.err
    assert "Error" not in printed.out
