"""POST /v2/embed: Cohere's schema."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.responses import Response

from client.errors import InvalidInput
from client.http.answers import Done, in_json, json_answer, numbers
from client.http.contents import Content, listed, of_image, of_item, of_text
from client.http.purposes import Purpose
from client.http.schemas import Asked, Context, ListOf, OptionsRequest

EmbeddingType = Literal["float", "base64", "binary", "ubinary", "int8", "uint8"]


class CohereRequest(OptionsRequest):
    """The body of POST /v2/embed: one of `texts`, `images` and `inputs`."""

    model: str | None = Field(None, description="The model that must answer; another one is refused.")
    texts: ListOf[str] | None = Field(None, json_schema_extra={"minItems": 1}, description="Texts, as they are.")
    images: ListOf[str] | None = Field(
        None, json_schema_extra={"minItems": 1}, description="Images as data: URLs or bare base64."
    )
    inputs: ListOf[dict[str, Any]] | None = Field(
        None,
        json_schema_extra={"minItems": 1},
        description="{content: [parts]} each: a text, an image, or both for one vector.",
    )
    input_type: str | None = Field(
        None, description="What for: the checkpoint's own prompt, where it has one for that."
    )
    embedding_types: ListOf[EmbeddingType] | None = Field(
        None, min_length=1, description="float (default) and base64; binary and ubinary of centred vectors alone."
    )
    output_dimension: int | None = Field(None, ge=8, description="Another name for `dimensions`.")
    truncate: Literal["NONE", "START", "END"] | None = Field(None, description="A text too long is refused, never cut.")
    priority: int | None = Field(None, description="Not read.")

    def asked(self, context: Context) -> Asked:
        """What to embed, and how the answer is written.

        Raises:
            InvalidInput, TooLarge: an item or a field, by its name.
        """
        purpose = Purpose(self.input_type, context.model)
        options = purpose.over(self.chosen(dimensions="output_dimension"))
        items = [content.item(options) for content in self._contents(context.max_items)]
        types = list(dict.fromkeys(self.embedding_types or ["float"]))
        for kind in types:
            _check_type(kind, options, context.model)

        def answer(done: Done) -> Response:
            purpose.check(done.embeddings[0].model)
            vectors = numbers(items, done)
            images = sum(bool(item.image) for item in items)
            body = {
                "id": done.request_id,
                "embeddings": {
                    kind: in_json(vectors, kind) if kind in ("float", "base64") else bits(vectors, kind)
                    for kind in types
                },
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"input_tokens": done.tokens, "images": images},
                },
                "response_type": "embeddings_by_type",
            }
            return json_answer(body, done)

        return Asked(items, self.model, answer)

    def _contents(self, max_items: int) -> list[Content]:
        readers = {"texts": of_text, "images": of_image, "inputs": of_item}
        sent = [name for name in readers if getattr(self, name) is not None]
        if len(sent) != 1:
            raise InvalidInput('Send exactly one of "texts", "images" and "inputs".', "texts")
        return listed(getattr(self, sent[0]), sent[0], max_items, readers[sent[0]])


def _check_type(kind: str, options: dict[str, Any], model: dict[str, Any] | None) -> None:
    if kind in ("int8", "uint8"):
        raise InvalidInput(f'"{kind}" is not served: ask for "float" or "base64".', "embedding_types")
    if kind in ("binary", "ubinary"):
        if not options.get("center", bool(model and model["recipe"]["center"])):
            raise InvalidInput(
                f'"{kind}" is the sign of each number, and tells little before centring: ask for "center": true on a '
                'server with a calibration (EMBED_CALIBRATION), or for "float".',
                "embedding_types",
            )
        if ((model or {}).get("calibration") or {}).get("method") == "align":
            raise InvalidInput(
                f'"{kind}" is the sign of each number, and the calibration of this server, align, centres nothing: '
                'ask for "float".',
                "embedding_types",
            )
        if options.get("dimensions", 8) % 8:
            raise InvalidInput(
                f'"{kind}" is of whole bytes: "output_dimension" must be a multiple of 8.', "output_dimension"
            )


def bits(vectors: list[NDArray[np.floating[Any]]], kind: str) -> list[list[int]]:
    """Eight dimensions a byte, the first one in its highest bit, 1 for above 0.

    `ubinary`: 0…255; `binary`: the same less 128, as Cohere and sentence-transformers have it.
    """
    return [(np.packbits(vector > 0).astype(int) - (128 if kind == "binary" else 0)).tolist() for vector in vectors]


class CohereResponse(BaseModel):
    """Each type's vectors, in order. Documentation only: orjson writes the answers."""

    id: str
    embeddings: dict[EmbeddingType, list[Any]]
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"]
