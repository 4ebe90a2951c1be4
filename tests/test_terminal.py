"""What a person sees on a terminal, narrow and wide: tables fit, and colours are chips only where there are colours."""

import subprocess
import sys
import unicodedata
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from qwen3_vl_embed.cli import tables, terminal
from qwen3_vl_embed.cli.validation import NAMES, Check, Validation
from qwen3_vl_embed.items import Embedded, Item
from qwen3_vl_embed.serving.__main__ import banner
from qwen3_vl_embed.serving.console import Console
from qwen3_vl_embed.serving.settings import ROOT

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
    tables.show_embedded(EMBEDDED)  # its last sentence, on stderr, is left to the terminal to wrap
    shown = "\n".join(lines(screen))
    assert shown.count("-0.0625") == 20 * (4 if screen.width >= 80 else 2)
    assert shown.count("1.0000") == 20
    assert shown.count("…") == 20 + 20  # names and numbers go on
    assert shown.count("/red.png ") == 19


def test_validation(screen):
    tables.show_validation(VALIDATION)
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
    tables.show_validation(VALIDATION)
    assert "\x1b[38;2;229;0;0m██" in console.file.getvalue()


def test_no_chips_without_colours(monkeypatch):
    """NO_COLOR: the columns had a block each, all of one colour, in place of their names."""
    console = Console(file=StringIO(), width=100, force_terminal=True, color_system="truecolor", no_color=True)
    monkeypatch.setattr(terminal, "out", console)
    tables.show_validation(VALIDATION)
    assert "█" not in console.file.getvalue()
    assert all(name[:4] in console.file.getvalue() for name in NAMES)


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
    tables.show_embedded(EMBEDDED)
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: input[7] is [bold]wrong[/bold].\n")
    assert "5 more are not shown. Dimension 256." in printed.err
    assert "Error" not in printed.out


EVIL = "[bold]x[/nope] no\x1b[31mimg\x1b]0;title\x07\x9b2J\u202e.png"


def steered(text: str) -> list[str]:
    return [letter for letter in text if letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf")]


@pytest.fixture
def both(monkeypatch) -> StringIO:
    """What stdout and stderr show, of consoles as the commands have them."""
    file = StringIO()
    for name in ("out", "err"):
        own = type(getattr(terminal, name))(file=file, width=120, force_terminal=True, color_system=None)
        monkeypatch.setattr(terminal, name, own)
    return file


@pytest.mark.parametrize(
    "show",
    [
        lambda: terminal.complain(EVIL),
        lambda: terminal.remark(EVIL),
        lambda: tables.show_embedded([Embedded(Item.text(EVIL), np.ones(8, np.float32))]),
        lambda: tables.show_embedded([Embedded(Item.image(Path(EVIL)), np.ones(8, np.float32))]),
        lambda: terminal.show_info({"model": {EVIL: EVIL}}),
        lambda: tables.show_validation(Validation([Check(EVIL, False, EVIL)], COSINES)),
        lambda: terminal.out.print(EVIL, style="bold"),
    ],
)
def test_nobodys_words_steer_the_terminal(both, show):
    """File names, texts and a server's answers are shown as they are, escapes written out, and never as markup."""
    show()
    assert steered(both.getvalue()) == []
    assert "[bold]x[/nope] no\\x1b[31mimg" in both.getvalue()


def test_a_line_break_in_a_name_makes_no_line_of_ours(both):
    terminal.complain("a\nError: all is well")
    assert both.getvalue() == "Error: a\n       Error: all is well\n"


@pytest.mark.parametrize("arguments", [["embed", EVIL], ["report", "--vectors", EVIL], ["info", "--url", EVIL], [EVIL]])
def test_what_was_typed_does_not_either(arguments):
    """A shell puts file names there: `embed *`."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen3_vl_embed.cli", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert steered(done.stderr + done.stdout) == []
    assert "no\\x1b[31mimg" in done.stderr


def test_nor_does_what_is_served(monkeypatch):
    evil = "/nowhere/" + EVIL
    shown = Console(file=StringIO(), width=300)
    shown.print(banner(evil, "http://localhost:1"))
    assert steered(shown.file.getvalue()) == []
    assert "Serving /nowhere/[bold]x[/nope] no\\x1b[31mimg" in shown.file.getvalue()
    monkeypatch.setenv("SERVE_PORT", "\x1b[31mx[/nope]")
    done = subprocess.run([sys.executable, "-m", "qwen3_vl_embed.serving"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
