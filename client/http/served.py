"""The name of what is served: which model a request may ask for, in its path or in its `model`.

A benchmark that publishes by name must not get another checkpoint's vectors under it. So `/{name}/txt/embed` is there
only while a checkpoint of that name answers, and what counts is the model that made the vectors.
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from client.errors import UnknownModel


class ByName:
    """ASGI middleware: where `/txt/embed` is among `paths`, `/{name}/txt/embed` is the same.

    The name is in `scope["served_name"]`.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, path = scope["path"].removeprefix("/").partition("/")
        if name and f"/{path}" in self._paths:
            scope = {**scope, "path": f"/{path}", "served_name": name}
        await self._app(scope, receive, send)


class Served:
    """What the model goes by: a name that was set, else the last part of its checkpoint's, in lower case.

    `aliases` are other names by which it may be asked for, `any_name` lets callers ask for whatever they like.
    `model` is how a model describes itself; None while it is not known which would answer.
    """

    def __init__(self, name: str | None, aliases: Collection[str] = (), any_name: bool = False) -> None:
        self._name = name
        self._any_name = any_name
        self.aliases = list(aliases)

    def name(self, model: dict[str, Any] | None) -> str | None:
        """Such as `qwen3-vl-4b-instruct` for `Qwen/Qwen3-VL-4B-Instruct`; None where there is no name."""
        if model is None or self._name:
            return self._name if model else None
        return re.sub(r"[^a-z0-9._-]+", "-", _last_part(model)).strip("-.") or None

    def check(self, model: dict[str, Any] | None, path: str | None, field: str | None) -> None:
        """Of a request that asks for a model, in its path or its field `model` (None: in neither), is it this one?

        The field may also be the checkpoint's name or the last part of it, in capitals or not, as clients have it.

        Raises:
            UnknownModel: it is another one.
        """
        if model is None or (path is None and field is None):
            return
        name = self.name(model)
        if path is not None and path != name:
            this = name or model["checkpoint"]
            raise UnknownModel(f'The path begins with "{path[:64]}", which is not served here: this is "{this}".')
        known = {name, model["checkpoint"].lower(), _last_part(model), *map(str.lower, self.aliases)}
        if field is not None and not self._any_name and field.lower() not in known:
            raise UnknownModel(f'"{field[:64]}" is not served here: this is "{name}", which "model" may name.', "model")


def _last_part(model: dict[str, Any]) -> str:
    return PurePosixPath(model["checkpoint"]).name.lower()
