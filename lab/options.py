"""Write what is made from the embedder's tables (`embedder/options.py`, `poolings.py`, `config.py`).

    make options

The adapter's and the wheel's modules of that name are written whole, the tables of docs/ between marker comments:
`<!-- options: NAME -->` and `<!-- /options -->`. The last line of stdout is a JSON list of the files that changed.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import typer
from pydantic.fields import FieldInfo

from embedder import EmbedderConfig
from embedder.config import PREFIX
from embedder.options import Default, ImageOptions, TextOptions, default
from lab.benchmarks.blocks import markdown
from lab.benchmarks.checkpoints import ROOT

MARKED = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- /options -->)", re.DOTALL)
PAGES = (ROOT / "docs" / "api.md", ROOT / "docs" / "settings.md")
ADAPTER, WHEEL = ROOT / "client" / "http" / "options.py", ROOT / "qwen3_vl_embed" / "options.py"
NEW = "\n"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def adapter() -> str:
    """What the adapter validates and publishes: pydantic models."""

    def field(name: str, info: FieldInfo) -> str:
        rules = "".join(f"{rule}={value}, " for rule, value in limits(info).items())
        return f"{name}: {kinds_of(info)} | None = Field(None, {rules}description={quoted(info)})"

    imports = "from typing import Literal\n\nfrom pydantic import BaseModel, Field"
    return module(imports, "TextOptions(BaseModel)", "ImageOptions(TextOptions)", field)


def wheel() -> str:
    """What the client's methods and the command line take: typed keywords."""

    def field(name: str, info: FieldInfo) -> str:
        return f"{name}: Annotated[{kinds_of(info)}, {quoted(info)}]"

    imports = "from typing import Annotated, Literal, TypedDict"
    return module(imports, "TextOptions(TypedDict, total=False)", "ImageOptions(TextOptions, total=False)", field)


def module(imports: str, texts: str, images: str, field: Callable[[str, FieldInfo], str]) -> str:
    """Two classes, as ruff would have them."""
    shared = TextOptions.model_fields
    own = {name: info for name, info in ImageOptions.model_fields.items() if name not in shared}
    source = f'''"""The options of a request. `make options` writes this file, from the embedder's `options.py`."""

{imports}


class {texts}:
    """What texts and images may ask for; what is left out stays as the server is set."""

    {f"{NEW}    ".join(field(*each) for each in shared.items())}


class {images}:
    """What images may ask for."""

    {f"{NEW}    ".join(field(*each) for each in own.items())}
'''
    formatter = [sys.executable, "-m", "ruff", "format", "--config", str(ROOT / "pyproject.toml"), "-"]
    return subprocess.run(formatter, input=source, capture_output=True, text=True, check=True).stdout


def quoted(info: FieldInfo) -> str:
    return json.dumps(info.description, ensure_ascii=False)


def kinds_of(info: FieldInfo) -> str:
    """Its type as source, without None: `int | Literal["attn"]`."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    sources = (f"Literal{list(get_args(kind))}" if get_args(kind) else kind.__name__ for kind in kinds)
    return " | ".join(sources)


def limits(info: FieldInfo) -> dict[str, Any]:
    """Its rules beside the type, as pydantic calls them: {"ge": 8}."""
    rules = [asdict(each) for each in info.metadata if not isinstance(each, Default)]
    return {name: value for rule in rules for name, value in rule.items()}


def options_table() -> str:
    def cells(name: str, info: FieldInfo) -> tuple[str, ...]:
        return f"`{name}`", values(info), default(name).told, bars(info)

    return markdown("option|values|default|", (cells(*each) for each in ImageOptions.model_fields.items()))


def settings_table() -> str:
    def cells(name: str, info: FieldInfo) -> tuple[str, ...]:
        if name in ImageOptions.model_fields:
            held = default(name).told
        else:
            value = info.get_default()
            shown = json.dumps(value) if isinstance(value, bool) else value
            held = "required" if info.is_required() else "unset" if value is None else f"`{shown}`"
        return f"`{PREFIX}{name.upper()}`", held, bars(info)

    fields = sorted(EmbedderConfig.model_fields.items(), key=lambda each: each[0] in ImageOptions.model_fields)
    return markdown("variable|default|what it is", (cells(*each) for each in fields))


def bars(info: FieldInfo) -> str:
    """Its description in a cell of a table."""
    return str(info.description).replace("|", r"\|")


def values(info: FieldInfo) -> str:
    """What an option may be, for people."""
    least = limits(info).get("ge")
    number = f"a whole number, {least} or more" if least else "a whole number"
    names = {"str": "a string", "bool": "`true`, `false`", "int": number}
    kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    return ", or ".join(", ".join(f"`{value}`" for value in get_args(kind)) or names[kind.__name__] for kind in kinds)


TABLES = {"options": options_table, "settings": settings_table}


def made() -> dict[Path, str]:
    """Each file, as it should be."""
    filled = {page: MARKED.sub(lambda each: each[1] + TABLES[each[2]]() + each[3], page.read_text()) for page in PAGES}
    return {ADAPTER: adapter(), WHEEL: wheel(), **filled}


@app.command()
def main() -> None:
    """Write the options of the adapter, the client, the command line and docs/ from the embedder's own."""
    changed = [path for path, content in made().items() if not path.exists() or path.read_text() != content]
    for path in changed:
        path.write_text(made()[path])
    print(json.dumps([str(path.relative_to(ROOT)) for path in changed]))


if __name__ == "__main__":
    app()
