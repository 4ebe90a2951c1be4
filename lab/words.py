"""How the docs and docstrings read: sentences over 25 words, and private words for what has a name in the field.

    python -m lab.words            the count of each file
    python -m lab.words FILE …     and what is counted in these

In Markdown, tables, code blocks and headings are left out: a table may hold what a sentence may not. Code in backticks
and a link's address count as one word.
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
    r"taken in|turned away": "admitted, rejected",
    r"whoever": "caller, or who it is",
    r"back-pressure": "backpressure",
    r"beginnings?\b(?= (that|which|are) .*kept)": "prefix",
    r"recorded pass(es)?": "CUDA graph, trace",
    r"[Kk]nows (?:no|nothing|neither|only)\b|does not know|[Kk]nows [^.]*; not\b": "nothing: import-linter says it",
}
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/*.md", "checkpoints/*/README.md")
CODE = ("client", "qwen3_vl_embed", "model_repository", "lab")
HISTORY = {"docs/log.md"}
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def sentences(text: str) -> Iterator[str]:
    """Of running text: paragraphs and list items, joined over their lines."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    kept = "\n".join("" if re.match(r"\s*(\||#|    )", line) else line for line in text.splitlines())
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
    for text in texts:
        for sentence in sentences(text):
            if (count := words(sentence)) > LONGEST:
                yield f"{count} words: {sentence}"
            for word, better in PRIVATE.items():
                if found := re.search(word, sentence):
                    yield f'"{found[0]}" (better: {better}): {sentence}'


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
