"""How the docs and docstrings read: sentences over 25 words, and private words for what has a name in the field.

    python -m lab.words            the count of each file
    python -m lab.words FILE …     and what is counted in these

Tables, trees, code and headings are left out: a table may hold what a sentence may not. Code in backticks counts as
one word, a link's address as none.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
LONGEST = 25  # words
PRIVATE = {  # with the field's own
    r"\btaken in\b(?! the)|turned away": "admitted, rejected",
    r"\bwhoever\b": "caller, or who it is",
    r"back-pressure": "backpressure",
    r"\bbeginnings\b": "prefixes",
    r"recorded pass(es)?": "CUDA graph, trace",
}
MOTTO = re.compile(r"^(It k|K)nows |[Kk]nows (nothing|neither)|[Kk]nows [^.]*; (not|no)\b")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/*.md", "checkpoints/*/README.md")
CODE = ("client", "qwen3_vl_embed", "model_repository", "lab")
HISTORY = {"docs/log.md"}
TABLE = re.compile(r"\s*(\||#|    |\[bold\]|.*\S   +\S|.*[├└])|  qwen3-vl-embed ")  # a row, a heading, code, a tree
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def sentences(text: str) -> Iterator[str]:
    """Of running text: paragraphs and list items, joined over their lines."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    kept = "\n".join("" if TABLE.match(line) else line for line in text.splitlines())
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", kept):
        joined = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", " ".join(paragraph.split())))
        yield from filter(None, re.split(r"(?<=[.!?])[*_)\"]*\s+", joined))


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'’.,/%×°≥≤²…+-]*\w[\w'’.,/%×°≥≤²…+-]*", sentence))


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from filter(None, [ast.get_docstring(node)])


def files() -> list[Path]:
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    code = [path for room in CODE for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in pages + code if str(path.relative_to(ROOT)) not in HISTORY]


def faults(path: Path) -> Iterator[str]:
    """Each long sentence and each private word of a file."""
    texts = docstrings(path) if path.suffix == ".py" else [path.read_text()]
    for sentence in (each for text in texts for each in sentences(text)):
        if (count := words(sentence)) > LONGEST:
            yield f"{count} words: {sentence}"
        if found := MOTTO.search(sentence):
            yield f'"{found[0]}", which import-linter says: {sentence}'
    for number, line in enumerate(path.read_text().splitlines(), start=1):  # comments and tables too
        for word, better in PRIVATE.items():
            if path != Path(__file__) and (found := re.search(word, line, re.IGNORECASE)):
                yield f'line {number}: "{found[0]}" (better: {better})'


@app.command()
def main(shown: Annotated[list[Path] | None, typer.Argument(help="Files whose faults are printed.")] = None) -> None:
    """Count the long sentences and the private words of the docs and docstrings."""
    for path in [each.resolve() for each in shown] if shown else files():
        found = list(faults(path))
        if found:
            print(f"{len(found):4} {path.relative_to(ROOT)}")
        if shown:
            print("\n".join(f"     {each}" for each in found))


if __name__ == "__main__":
    app()
