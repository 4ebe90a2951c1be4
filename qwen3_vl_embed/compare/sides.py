"""Who is compared. Over HTTP: a server of any schema that our own understands, of which nothing but vectors is seen."""

import json
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any, Protocol, TypeAlias

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_vl_embed.compare.inputs import Input
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.protocol import TOO_BUSY, data_url, is_local, retry_after
from qwen3_vl_embed.settings import RETRY_FOR_S, TIMEOUT_S

Vector: TypeAlias = NDArray[np.float32]
Got: TypeAlias = Vector | str
"""An input's vector, float32 (D,), or the sentence that says why there is none."""


class NotAsked(str):
    """The sentence of an input that a side cannot be asked for: nothing is wrong with either."""

    __slots__ = ()


class Side(Protocol):
    """One of the two."""

    name: str

    def vectors(self, inputs: Sequence[Input], together: bool) -> list[Got]:
        """Of each input: all in one request or batch where `together`, else each in its own."""
        ...


def _pieces(item: Input) -> dict[str, str]:
    """The image as a `data:` URL, and the text, as far as there are any."""
    image = {"image": data_url(item.image)} if item.image is not None else {}
    return image | ({"text": item.text} if item.text is not None else {})


def _parts(item: Input) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": piece} if kind == "text" else {"type": "image_url", "image_url": {"url": piece}}
        for kind, piece in _pieces(item).items()
    ]


def _messages(items: Sequence[Input]) -> dict[str, Any]:
    """A conversation, or a list of them: older vLLM takes one alone."""
    conversations = [[{"role": "user", "content": _parts(item)}] for item in items]
    return {"messages": conversations if len(items) > 1 else conversations[0], "encoding_format": "float"}


def _data(answer: Mapping[str, Any]) -> list[Any]:
    return [each["embedding"] for each in sorted(answer["data"], key=lambda each: each.get("index", 0))]


@dataclass(frozen=True)
class Schema:
    """How a server of a kind is asked; `path` by what is embedded."""

    body: Callable[[Sequence[Input]], dict[str, Any]]  # of inputs of one kind
    path: Callable[[str], str] = lambda kind: "/v1/embeddings"
    read: Callable[[Mapping[str, Any]], list[Any]] = _data
    named: bool = True  # the body names a model


COHERE = {"input_type": "search_document", "embedding_types": ["float"]}
SCHEMAS = {  # in the order in which they are tried
    "messages": Schema(_messages),  # vLLM, mteb, AIPerf
    "objects": Schema(lambda items: {"input": list(map(_pieces, items))}),  # SGLang, Jina
    "cohere": Schema(
        lambda items: {"inputs": [{"content": _parts(item)} for item in items], **COHERE},
        lambda kind: "/v2/embed",
        lambda answer: answer["embeddings"]["float"],
    ),
    "benchmark": Schema(
        lambda items: {"input": [item.text if item.image is None else data_url(item.image) for item in items]},
        lambda kind: "/txt/embed" if kind == "text" else "/img/embed",
        lambda answer: answer["embedding"],
        named=False,
    ),
    "openai": Schema(  # a text, then its image
        lambda items: {
            "input": [" ".join(reversed(_pieces(item).values())) for item in items],
            "encoding_format": "float",
        }
    ),
}


class Server:
    """A server by its URL.

    Args:
        schema: one of SCHEMAS; None tries them with a text. `openai` that was found so gets texts alone: a server of
            texts would embed the letters of an image's `data:` URL.
        key: the environment variable that holds its key; no other is ever sent.
        fields: of every request, such as {"add_generation_prompt": True} or {"model": "…"}.

    Raises:
        SourceError: no URL, schema or variable.
        AdapterError: no schema gets a vector from it.
    """

    def __init__(self, url: str, schema: str | None, key: str | None, fields: Mapping[str, Any]) -> None:
        if key and not os.environ.get(key):
            raise SourceError(f"The environment variable {key} is not set: it should hold the key of {url}.")
        if schema and schema not in SCHEMAS:
            raise SourceError(f"There is no schema {schema}: the schemas are {', '.join(SCHEMAS)}.")
        headers = {"Authorization": f"Bearer {os.environ[key]}"} if key else {}
        try:
            base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
            self._http = httpx.Client(
                base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=not is_local(base.host)
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise SourceError(f"{url} cannot be asked ({error}).") from None
        weakref.finalize(self, self._http.close)
        self._patience_s = RETRY_FOR_S
        self._fields = {**self._model(), **fields}
        self.schema = schema or self._found(url)
        self._texts_alone = not schema and self.schema == "openai"
        self.name = f"{url} ({self.schema})"

    def vectors(self, inputs: Sequence[Input], together: bool) -> list[Got]:
        got: list[Got] = []
        for kind in dict.fromkeys(item.kind for item in inputs):
            same = [item for item in inputs if item.kind == kind]
            if self._texts_alone and kind != "text":
                got += [
                    NotAsked("It may take an image's data: URL for a text; where it does not, --schema openai.")
                ] * len(same)
            elif kind == "both" and self.schema == "benchmark":
                got += [NotAsked("This schema has no image with a text.")] * len(same)
            elif together:
                got += self._ask(self.schema, same)
            else:
                got += [each for item in same for each in self._ask(self.schema, [item])]
        return got

    def _ask(self, name: str, items: Sequence[Input]) -> list[Got]:
        schema = SCHEMAS[name]
        try:
            fields = {key: value for key, value in self._fields.items() if key != "model" or schema.named}
            body = orjson.dumps({**schema.body(items), **fields})
            path = schema.path(items[0].kind)
            answer = self._post(path, body)
            told = f"{answer.status_code}: {' '.join(answer.text.split())[:200]}"
            if answer.is_error:
                return [told] * len(items)
            rows = schema.read(json.loads(answer.content))  # which reads NaN too
            with np.errstate(over="ignore"):  # infinity is told later
                vectors = [np.asarray(row, dtype=np.float32) for row in rows]
        except json.JSONDecodeError:
            return [f"This is no JSON. {told}"] * len(items)
        except (httpx.HTTPError, ValueError, TypeError, KeyError, AttributeError) as error:
            return [f"{type(error).__name__}: {error}"] * len(items)
        if len(vectors) != len(items):
            return [f"The answer to {len(items)} inputs has {len(vectors)} vectors."] * len(items)
        if odd := [each.shape for each in vectors if each.ndim != 1]:
            return [f"A vector is a list of numbers, and in the answer stands one of the shape {odd[0]}."] * len(items)
        return list(vectors)

    def _post(self, path: str, body: bytes) -> httpx.Response:
        """Who is too busy is asked again when it says, or in a second, for `RETRY_FOR_S` seconds in all."""
        while True:
            answer = self._http.post(path, content=body, headers={"Content-Type": "application/json"})
            wait = max(1.0, retry_after(answer))
            if answer.status_code != TOO_BUSY or wait > self._patience_s:
                return answer
            self._patience_s -= wait
            sleep(wait)

    def _model(self) -> dict[str, str]:
        """Its first model's name, where it tells one."""
        try:
            return {"model": str(orjson.loads(self._http.get("/v1/models").content)["data"][0]["id"])}
        except (httpx.HTTPError, ValueError, TypeError, KeyError, IndexError):
            return {}

    def _found(self, url: str) -> str:
        told = {}
        for name in SCHEMAS:
            (got,) = self._ask(name, [Input("red", "red")])
            if not isinstance(got, str):
                return name
            told[name] = got
        sentences = "; ".join(f"{name}: {sentence}" for name, sentence in told.items())
        raise AdapterError(f"{url} gives no vector of a text, whatever it is asked in ({sentences}).")
