"""The command compare, and how its findings are shown."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.app import app, from_checkout, installed, option
from qwen3_vl_embed.cli.recipe import chosen
from qwen3_vl_embed.files.errors import SourceError

if TYPE_CHECKING:
    from qwen3_vl_embed.compare.sides import Side
    from qwen3_vl_embed.compare.verdict import Comparison

CODES = {"agree": 0, "differ": 3, "unknown": 4}
SAID = {"agree": "A and B agree", "differ": "A and B differ", "unknown": "A and B differ, and I do not know why"}
IN_ORDER = "Of each --url, in their order"

Urls = Annotated[
    list[str], option("A and B: a URL, or embedder:, transformers: or sentence-transformers: before a folder.", "--url")
]
Schemas = Annotated[
    list[str] | None,
    option(
        "messages, objects, cohere, benchmark or openai; left out or auto, it is tried.", "--schema", panel=IN_ORDER
    ),
]
Keys = Annotated[
    list[str] | None, option("The environment variable with its key; - for none.", "--key", panel=IN_ORDER)
]
FieldsA = Annotated[list[str] | None, option("KEY=VALUE in every request to A.", "--a")]
FieldsB = Annotated[list[str] | None, option("KEY=VALUE in every request to B.", "--b")]
Checkpoint = Annotated[str | None, option("What both serve: to find the cause.", envvar="CHECKPOINT")]
Prompts = Annotated[list[str] | None, option("A template to try too, with {content}.", "--prompt")]
Texts = Annotated[Path | None, option("A file of texts, a line each, instead of the standard inputs.")]
Images = Annotated[Path | None, option("A folder of images, instead of the standard inputs.")]
Least = Annotated[float, option("The cosine that counts as agreement.", min=0.9, max=1)]
Json = Annotated[bool, option("Everything as JSON on stdout.", "--json")]


@app.command()
def compare(
    url: Urls,
    schema: Schemas = None,
    key: Keys = None,
    a: FieldsA = None,
    b: FieldsB = None,
    checkpoint: Checkpoint = None,
    prompt: Prompts = None,
    texts: Texts = None,
    images: Images = None,
    least: Least = 0.9999,
    json: Json = False,
) -> None:
    """Do two servers give the same vectors, and if not, why not?

    The same texts and images go to both, alone and in lists. With --checkpoint every vector that our code can make of
    them is computed here, to find which settings each side has. One --url is compared with our embedder over
    --checkpoint. Exit code 0: they agree; 3: they differ, and the cause is told; 4: it is not known.

    [bold]Examples[/bold]
      qwen3-vl-embed compare --url http://localhost:8001 --url http://gpu-box:8000 --checkpoint folder
      qwen3-vl-embed compare --checkpoint folder --url http://gpu-box:8000 --b add_generation_prompt=true
      qwen3-vl-embed compare --checkpoint folder --url transformers:folder
      qwen3-vl-embed compare --url http://localhost:8001 --url sentence-transformers:folder --json
    """
    from qwen3_vl_embed.compare.inputs import own, standard
    from qwen3_vl_embed.compare.verdict import compare as compared

    if len(url) > 2 or (len(url) == 1 and not checkpoint):
        raise SourceError("Give two of --url; or one, and the --checkpoint to compare it with.")
    inputs = own(texts, images) if texts or images else standard()
    with installed("compare", "local"):
        variants = None
        if checkpoint:
            with from_checkout("compare --checkpoint"):
                variants = _variants(checkpoint, prompt or [])
        ours = [None] * (2 - len(url))
        places = [*(f"embedder:{checkpoint}" for _ in ours), *url]
        schemas, keys = ([*ours, *(given or []), None, None][:2] for given in (schema, key))
        fields = (chosen({}, a), chosen({}, b))
        sides = [
            _side(place, schema, key, given, variants)
            for place, schema, key, given in zip(places, schemas, keys, fields, strict=True)
        ]
    found = compared((sides[0], sides[1]), inputs, least, variants, terminal.track)
    if json:
        import orjson

        typer.echo(orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2))
    else:
        _show(found, variants is not None)
    raise typer.Exit(CODES[found.verdict])


def _variants(checkpoint: str, prompts: list[str]) -> Any:
    from embedder import EmbedError
    from qwen3_vl_embed.cli.checkpoint import load
    from qwen3_vl_embed.compare.variants import Variants

    try:
        return Variants(load(checkpoint), prompts)
    except EmbedError as error:
        raise SourceError(str(error)) from None


def _side(place: str, schema: str | None, key: str | None, fields: Mapping[str, Any], variants: Any) -> "Side":
    from qwen3_vl_embed.compare.sides import Server

    kind, _, folder = place.partition(":")
    if kind not in ("embedder", "transformers", "sentence-transformers"):
        return Server(place, None if schema == "auto" else schema, None if key == "-" else key, fields)
    with from_checkout(f"compare --url {kind}:"):
        from embedder import EmbedError
        from qwen3_vl_embed.compare import local

    try:
        if kind == "embedder":
            same = variants and variants.embedder.checkpoint.name == folder
            return local.Ours(variants.embedder, fields) if same else local.Ours.load(folder, fields)
        if fields:
            raise SourceError(f"{place} takes no --a and no --b: it has no requests.")
        return local.Transformers(folder) if kind == "transformers" else local.SentenceTransformers(folder)
    except (EmbedError, OSError, ValueError) as error:
        raise SourceError(f"{place}: {error}") from None


def _show(found: "Comparison", searched: bool) -> None:
    for letter, name in zip("AB", found.names, strict=True):
        terminal.out.print(Text(f"{letter}  {name}"), soft_wrap=True)
    table = terminal.table()
    table.add_column("input", overflow="ellipsis", no_wrap=True, max_width=max(20, terminal.out.width - 32))
    for column in ("kind", "alone", "in a list"):
        table.add_column(column, no_wrap=True, justify="left" if column == "kind" else "right")
    for row in found.rows:
        cells = ("–" if value is None else f"{value:.5f}" for value in (row.alone, row.together))
        table.add_row(Text(row.name), row.kind, *cells, style="" if row.agrees else "bold red")
    terminal.out.print(table)
    limits = (f"{kind} ≥ {least:.6g}" if least < 1 else f"{kind} none" for kind, least in found.least.items())
    lines = [f"Agreement: {', '.join(limits)}."]
    lines += found.remarks
    for letter, kinds in found.known.items():
        for variant in {str(each): each for each in kinds.values()}.values():
            of = ", ".join(kind for kind, each in kinds.items() if each == variant)
            lines.append(
                f"{letter} is ours ({of}) with " + ", ".join(f"{name}: {value}" for name, value in variant.items())
            )
    for line in lines:
        terminal.out.print(Text(line), soft_wrap=True)
    told: dict[str, list[str]] = {}
    for kind, causes in found.causes.items():
        told.setdefault("\nor: ".join(_sentence(each.settings, each.options) for each in causes), []).append(kind)
    terminal.out.print(Text(f"{_said(found)}.", "bold"))
    for sentence, of_kinds in told.items():
        if sentence:
            terminal.out.print(Text(f"Cause ({', '.join(of_kinds)}): {sentence}", "bold"), soft_wrap=True)
    for letter, ways in found.padding.items():
        told_ways = " or ".join(ways) or "in no way that I know"
        sentence = f"Cause (in a list): {letter} is {told_ways}. It is to be mended there: ours pads nothing."
        terminal.out.print(
            Text(sentence if ways else f"{letter}, in a list: changed {told_ways}.", "bold"), soft_wrap=True
        )
    if found.verdict != "agree" and not searched:
        terminal.out.print("Give --checkpoint, the folder that both serve, to find the cause.", soft_wrap=True)


def _said(found: "Comparison") -> str:
    cosines = [(row, each) for row in found.rows for each in (row.alone, row.together) if each is not None]
    differ = any(each < found.least[row.kind] or not (row.agrees or row.errors) for row, each in cosines)
    if found.verdict == "agree" or differ:
        return SAID[found.verdict]
    agree = "; A and B agree wherever both gave a vector" if cosines else ""
    return f"{'Not every' if cosines else 'No'} input could be compared{agree}"


def _sentence(settings: Mapping[str, Any], options: tuple[Mapping[str, Any] | None, ...]) -> str:
    import orjson

    named = "; ".join(f"{name}: A {' or '.join(a)}, B {' or '.join(b)}" for name, (a, b) in settings.items())
    how = (
        f"{letter} by {orjson.dumps(each).decode()}" if each is not None else f"{letter} by no option: mend it there"
        for letter, each in zip("AB", options, strict=True)
    )
    return f"{named}. As options of ours: {', '.join(how)}."
