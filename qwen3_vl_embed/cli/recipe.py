"""The options that go with every request: flags, made from `qwen3_vl_embed/options.py`, and --option KEY=VALUE."""

from collections.abc import Callable
from inspect import Parameter, signature
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from qwen3_vl_embed.cli import app
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.options import ImageOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def with_flags(panel: str) -> Callable[[Command], Command]:
    """A command's `**flags` become a flag for each option; what is given is for the server to judge."""

    def flag(name: str, hint: Any) -> Parameter:
        kind, help = get_args(hint)
        parse = {"parser": value, "metavar": "VALUE"} if get_origin(kind) in (Union, UnionType) else {}
        shown = app.option(help.replace("`", ""), panel=panel, **parse)
        taken = kind if kind in (bool, int) else str
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[taken | None, shown])

    def taught(command: Command) -> Command:
        own = signature(command)
        fixed = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        flags = [flag(*each) for each in get_type_hints(ImageOptions, include_extras=True).items()]
        command.__signature__ = own.replace(parameters=[*fixed, *flags])  # type: ignore[attr-defined]
        return command

    return taught


def chosen(flags: dict[str, Any], free: list[str] | None) -> dict[str, Any]:
    """What was given; a free option over the flag of the same name. Raises SourceError."""
    return {key: value for key, value in flags.items() if value is not None} | dict(map(option, free or []))


def option(text: str) -> tuple[str, Any]:
    """`dimensions=64` as ("dimensions", 64). What it means is the server's to say. Raises SourceError."""
    key, equals, said = text.partition("=")
    if not (key and equals):
        raise SourceError(f"--option {text} must look like pooling=mean or dimensions=64.")
    return key, value(said)


def value(text: str) -> Any:
    """JSON, or else the string itself."""
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
