"""The options that go with every request, from a command's own flags and from --option KEY=VALUE. Knows no server."""

from typing import Any

import orjson

from qwen3_vl_embed.cli.errors import SourceError


def chosen(flags: dict[str, Any], free: list[str] | None) -> dict[str, Any]:
    """What was given; a free option over the flag of the same name. Raises SourceError."""
    return {key: value for key, value in flags.items() if value is not None} | dict(map(option, free or []))


def option(text: str) -> tuple[str, Any]:
    """`dimensions=64` as ("dimensions", 64): a JSON value, else a string. What it means is the server's to say."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise SourceError(f"--option {text} must look like pooling=mean or dimensions=64.")
    try:
        return key, orjson.loads(value)
    except orjson.JSONDecodeError:
        return key, value
