"""How the code is built, by `ast` alone: sizes, helpers, the longest chain of imports. Tests are left out.

    python -m lab.house
    python -m lab.house . ../before

Several checkouts give a table each, in one run. Callers of a private helper are the places in its own file that name
it. A chain of imports follows those that run when a module is imported. Sizes are in lines; `code` is without blank
lines, comments and docstrings, whose lines are told as a share of it.
"""

import ast
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

LEFT_OUT = {"tests", "build"}
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
COLUMNS = (
    *("files", "lines", "code", "docs+comments", "functions", "p50/p90/p99/max", "private helpers", "one caller"),
    *("helpers per 1,000 lines", "longest import chain"),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Module:
    """One file, `name` as it is imported."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_bytes())

    @cached_property
    def lines(self) -> int:
        return len(self.path.read_bytes().splitlines())

    @cached_property
    def told(self) -> set[int]:
        """The lines that hold a docstring, or nothing but a comment."""
        kinds = ast.Module, ast.ClassDef, *Function.__args__
        owners = [node for node in ast.walk(self.tree) if isinstance(node, kinds) and ast.get_docstring(node)]
        strings = [node.body[0] for node in owners]
        docs = {line for each in strings for line in range(each.lineno, (each.end_lineno or each.lineno) + 1)}
        return docs | {line for line, kind in self._tokens() if kind == tokenize.COMMENT} - self._coded(docs)

    @cached_property
    def code(self) -> int:
        """Lines that are neither blank nor told."""
        return len(self._coded(set()) - self.told)

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def helpers(self) -> dict[str, int]:
        """Private functions, and how often each is named in this file: `_helper` as much as `self._helper`."""
        nodes = ast.walk(self.tree)
        used = Counter(getattr(node, "attr", getattr(node, "id", "")) for node in nodes)
        names = (each.name for each in self.functions)
        return {name: used[name] for name in names if name.startswith("_") and not name.startswith("__")}

    def imports(self) -> Iterator[str]:
        """What is imported with it: whole modules, and what may be one; nothing inside functions."""
        todo: list[ast.AST] = [self.tree]
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                base = ".".join([*parents, *filter(None, [node.module])])
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
            elif not isinstance(node, Function):
                todo += ast.iter_child_nodes(node)

    def _tokens(self) -> Iterator[tuple[int, int]]:
        with self.path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                for line in range(token.start[0], token.end[0] + 1):
                    yield line, token.type

    def _coded(self, docs: set[int]) -> set[int]:
        return {line for line, kind in self._tokens() if line and kind not in NO_CODE} - docs


def modules(checkout: Path) -> dict[str, list[Module]]:
    """All but the tests, by top-level folder; names are those below the source folders that ruff is told."""
    settings = tomllib.loads((checkout / "pyproject.toml").read_text())
    sources = sorted(settings["tool"]["ruff"].get("src", ["."]), key=len, reverse=True)
    rooms: dict[str, list[Module]] = {}
    for path in sorted(checkout.glob("*/**/*.py")):
        inside = path.relative_to(checkout)
        if not any(part in LEFT_OUT or part.startswith(".") for part in inside.parts):
            source = next((source for source in sources if inside.is_relative_to(source)), ".")
            words = inside.relative_to(source).with_suffix("").parts
            name = ".".join(words[:-1] if words[-1] == "__init__" else words)
            rooms.setdefault(inside.parts[0], []).append(Module(name, path))
    return rooms


def chain(files: list[Module]) -> int:
    """How many modules the longest way along imports visits; a circle is walked once."""
    known = {module.name: list(module.imports()) for module in files}
    longest: dict[str, int] = {}

    def depth(name: str, above: frozenset[str]) -> int:
        if name not in longest:
            inside = [each for each in known[name] if each in known and each not in above | {name}]
            longest[name] = 1 + max((depth(each, above | {name}) for each in inside), default=0)
        return longest[name]

    return max((depth(name, frozenset()) for name in known), default=0)


def figures(files: list[Module]) -> list[str]:
    """The cells of one row."""
    lines, code, told = (sum(each) for each in zip(*((m.lines, m.code, len(m.told)) for m in files), strict=True))
    functions = [function for module in files for function in module.functions]
    lengths = [(each.end_lineno or each.lineno) - each.lineno + 1 for each in functions] or [0]
    callers = [count for module in files for count in module.helpers().values()]
    spread = "/".join(f"{value:.0f}" for value in np.percentile(lengths, (50, 90, 99, 100)))
    return [
        *(f"{value:,}" for value in (len(files), lines, code)),
        f"{told / max(code, 1):.0%}",
        f"{len(functions)}",
        spread,
        f"{len(callers)}",
        f"{callers.count(1) / max(len(callers), 1):.0%}",
        f"{1000 * len(callers) / max(lines, 1):.0f}",
        f"{chain(files)}",
    ]


@app.command(epilog="Example: python -m lab.house . ../before")
def main(
    checkouts: Annotated[list[Path] | None, typer.Argument(help="Folders of checkouts [default: this one].")] = None,
) -> None:
    """Print how the code of each checkout is built, folder by folder."""
    for checkout in checkouts or [Path(__file__).parents[1]]:
        rooms = modules(checkout)
        table = Table("folder", *COLUMNS, title=str(checkout))
        for name, files in rooms.items():
            table.add_row(name, *figures(files))
        table.add_row("all", *figures([module for files in rooms.values() for module in files]))
        Console(width=None if Console().is_terminal else 200).print(table)


if __name__ == "__main__":
    app()
