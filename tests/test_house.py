"""The program that tells how the code is built counts what it says."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab import house

INSIDE = '''"""A module
of two lines."""

import os
from room import other  # a trailing comment is no comment's line


# a comment
def _once(value: str = """not
a docstring""") -> int:
    """Told."""
    from room import hidden
    return 1


def _twice() -> int:

    return _once() + os.EX_OK


def public() -> int:
    return _twice() + _twice() + other.number
'''


@pytest.fixture
def checkout(tmp_path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[tool.ruff]\nsrc = [".", "deep"]\n')
    files = {"deep/room/__init__.py": "", "deep/room/inside.py": INSIDE, "deep/room/other.py": "number = 1\n"}
    files |= {"deep/room/hidden.py": "from room import inside\n", "deep/tests/test_room.py": "broken(", ".x/y.py": "("}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_file_is_counted_by_hand(checkout):
    inside = house.Module("room.inside", checkout / "deep/room/inside.py")
    assert (inside.lines, inside.code, len(inside.told)) == (22, 10, 4)
    assert [function.name for function in inside.functions] == ["_once", "_twice", "public"]
    assert inside.helpers() == {"_once": 1, "_twice": 2}


def test_the_longest_chain_follows_what_is_imported_at_once(checkout):
    (rooms,) = house.modules(checkout).values()
    assert {module.name for module in rooms} == {"room", "room.inside", "room.other", "room.hidden"}
    assert house.chain(rooms) == 3  # hidden, inside, other; what a function imports comes later


def test_it_prints_a_table_for_each_checkout(checkout):
    printed = CliRunner().invoke(house.app, [str(checkout), str(checkout)]).stdout
    assert printed.count("one caller") == 2
    assert "Example: python -m lab.house" in CliRunner().invoke(house.app, ["--help"]).stdout
