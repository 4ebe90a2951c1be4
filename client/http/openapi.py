"""What /openapi.json says that the code cannot say by itself: request bodies, answers, headers, examples.

The bodies are written out in place, without references, and the largest list is declared for both endpoints: the
benchmark reads its batch size there.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, request_response

from client import __version__
from client.errors import TOLD, ApiError, NotAcceptable, Unauthorized
from client.http.answers import NPY, RAW
from client.http.api_key import OPEN
from client.http.cohere import CohereRequest, CohereResponse
from client.http.openai import OpenAIRequest, OpenAIResponse
from client.http.schemas import (
    EmbeddingResponse,
    ErrorDetail,
    ErrorResponse,
    ImageRequest,
    RenderRequest,
    RenderResponse,
    TextRequest,
)
from client.http.weaviate import WeaviateErrorResponse, WeaviateRequest, WeaviateResponse

TITLE = "qwen3-vl-embed"
DESCRIPTION = """
Text and image embeddings from one Qwen3-VL model. A string is answered with one vector, a list with a list of vectors
in its order; texts and images share one vector space. The paths that begin with the served model's name are there only
while that model is.

Without an Accept header the answer is JSON. `application/x-npy` is a NumPy file and `application/octet-stream` the bare
little-endian numbers, row by row: of shape (D,) for a string and (N, D) for a list.

Equal items are computed once and then answered from a cache. Each answer names what it cost in its headers. Every error
has the body `{"error": {"message", "type", "param", "code"}}`, and `param` names the item at fault (`input[7]`); at
`/v2/embed` and `/vectorize` it has the form that their clients read.
Of a JSON key that is sent twice, the last one counts.
"""

# A red square of 32x32 pixels.
_RED = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKUlEQVR42u3NQQ0AAAgEoNP+Ne1hCh9uUICa3OoIBAKBQCAQCASCJ8ECaI8"
    "BJVwfKxsAAAAASUVORK5CYII="
)
_EXAMPLES: dict[type, dict[str, dict[str, Any]]] = {
    TextRequest: {
        "one": {"input": "cloudy blue"},
        "list": {"input": ["cloudy blue", "dark pastel green"]},
        "options": {"input": "cloudy blue", "prompt": "colour", "pooling": "mean", "layer": -2},
        "base64 of float16": {"input": "cloudy blue", "encoding_format": "base64", "dtype": "float16"},
    },
    ImageRequest: {
        "one": {"input": _RED},
        "list of data URLs": {"input": [f"data:image/png;base64,{_RED}"]},
        "content": {"content": _RED},
        "image and text": {"input": _RED, "text": "the colour of a fire engine"},
    },
    OpenAIRequest: {
        "text": {"input": "cloudy blue"},
        "image, and one behind a text": {
            "input": [f"data:image/png;base64,{_RED}", f"red data:image/png;base64,{_RED}"]
        },
        "items": {"input": [{"text": "cloudy blue"}, {"image": _RED}, {"text": "red", "image": _RED}]},
        "conversation": {
            "messages": [
                {"role": "system", "content": "Name the colour."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_RED}"}},
                        {"type": "text", "text": "a fire engine"},
                    ],
                },
            ],
            "encoding_format": "base64",
        },
    },
    CohereRequest: {
        "texts": {"texts": ["cloudy blue"], "input_type": "search_query"},
        "images": {"images": [f"data:image/png;base64,{_RED}"], "input_type": "image", "embedding_types": ["float"]},
        "both": {
            "inputs": [
                {
                    "content": [
                        {"type": "text", "text": "a fire engine"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_RED}"}},
                    ]
                }
            ]
        },
    },
    WeaviateRequest: {"both": {"texts": ["cloudy blue"], "images": [_RED]}},
    RenderRequest: {"text": {"text": "cloudy blue"}, "image": {"image": _RED, "pooling": "mean"}},
}

_TIMEOUT = {
    "name": "x-timeout",
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds that the answer is worth waiting for; the server's own limit holds all the same.",
}
HEADERS = {
    "x-request-id": "The request's own `x-request-id`, or a new one; it is in the log and goes to Triton.",
    "x-queue-ms": "Time at Triton before and after the work; the largest of the items, as in the next two.",
    "x-preprocess-ms": "Time to decode, resize and tokenise.",
    "x-forward-ms": "Time of the model's forward pass.",
    "x-total-ms": "Time of the whole request here.",
    "x-model": "The id of the model that made the vectors, as in `/info`; those of two models are not comparable.",
    "x-recipe": "The recipe that made the vectors; vectors of different recipes are not comparable.",
    "x-warning": "What is doubtful about the recipe, such as `dimensions` where the model was not trained for it.",
    "x-tokens": "Tokens computed for this request, prompts included.",
    "x-item-tokens": "Of at most 256 items, the tokens of each, prompt included, in order: `12,9,13`.",
    "x-cache-hits": "Items that cost nothing, because they were computed before or for another item in flight.",
    "server-timing": "The same durations in the standard form.",
    "x-shape": f"Of {RAW} alone: `D`, or `N,D` for a list.",
    "x-dtype": f"Of {RAW} alone: `float32` or `float16`.",
}

# The models of what is answered: vectors, and an error.
_ANSWERS: dict[type, tuple[type, type]] = {
    TextRequest: (EmbeddingResponse, ErrorResponse),
    ImageRequest: (EmbeddingResponse, ErrorResponse),
    OpenAIRequest: (OpenAIResponse, ErrorResponse),
    CohereRequest: (CohereResponse, ErrorDetail),
    WeaviateRequest: (WeaviateResponse, WeaviateErrorResponse),
}

_REFUSED = {
    "description": Unauthorized.__doc__,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
}


class Endpoint(APIRoute):
    """A route that FastAPI documents and Starlette runs: the endpoint takes a request and gives a response."""

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **documented: Any) -> None:
        super().__init__(path, endpoint, **documented)
        self.app = request_response(endpoint)


def document(routes: Sequence[BaseRoute], keyed: bool) -> dict[str, Any]:
    """/openapi.json of those of the routes that are endpoints; `keyed`: a caller must know a key."""
    document = get_openapi(title=TITLE, version=__version__, description=DESCRIPTION, routes=routes)
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN else [{"key": []}]
                if path not in OPEN:
                    operation["responses"].setdefault("401", _REFUSED)
    return document


def request_body(model: type[BaseModel], max_items: int) -> dict[str, Any]:
    """The `openapi_extra` of an endpoint that parses its body itself."""
    schema = model.model_json_schema()
    for field in schema["properties"].values():
        for kind in field.get("anyOf", []):
            if "items" in kind:
                field.pop("default", None)  # null, which is only how "not sent" looks in Python
                kind["maxItems"] = max_items
    if "content" in schema["properties"]:
        schema["oneOf"] = [{"required": ["input"]}, {"required": ["content"]}]
    examples = {name: {"value": value} for name, value in _EXAMPLES[model].items()}
    return {
        "parameters": [_TIMEOUT],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}},
    }


def responses(*errors: type[ApiError], model: type = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """How these errors are answered, in the order of the table."""
    after = {"schema": {"type": "integer"}, "description": "Seconds to wait before the next try."}
    return {
        told.status: {"model": model, "description": error.__doc__}
        | ({"headers": {"retry-after": after}} if "retry-after" in (told.headers or {}) else {})
        for error, told in TOLD.items()
        if error in errors
    }


def render_responses() -> dict[int | str, dict[str, Any]]:
    """The sequence, or any error of the closed set."""
    errors = responses(*(TOLD.keys() - {NotAcceptable}))
    return {200: {"model": RenderResponse, "description": "What the model sees."}, **errors}


def embed_responses(request: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The vectors that such a request gets, or any error of the closed set."""
    answer, error = _ANSWERS[request]
    headers = {name: {"schema": {"type": "string"}, "description": text} for name, text in HEADERS.items()}
    binary = {"schema": {"type": "string", "format": "binary"}}
    vectors: dict[str, Any] = {"model": answer, "description": answer.__doc__, "headers": headers}
    if answer is EmbeddingResponse:
        vectors["content"] = {NPY: binary, RAW: binary}
    return {200: vectors, **responses(*TOLD, model=error)}
