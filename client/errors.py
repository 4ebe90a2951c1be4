"""The closed set of what can go wrong, and what the caller is told.

    ApiError
    ├── InvalidInput          400  the caller can mend it: the message says how
    ├── Unauthorized          401  no key, or not one of ours
    ├── UnknownModel          404  another model is asked for than the one that is served
    ├── NotAcceptable         406  the Accept header wants none of our media types
    ├── TooSlow               408  the body did not arrive in time
    ├── TooLarge              413  the body is over the limit
    ├── UnsupportedMediaType  415  not JSON, or compressed
    ├── Overloaded            429  too much is waiting; come back
    ├── InferenceFailed       500  our fault; only an id is told, the log has the rest
    ├── Unavailable           503  the model is not there, and nothing says that it is coming back
    └── DeadlinePassed        504  it took too long, or the model did not come back in time

Overload is 429 and a restart is 504, never 503, on purpose. The benchmark's client gives up on a 503, and repeats a
request only when the text holds "429", "rate limit", "524" or "timeout". So the messages of these two hold such words.
`triton_client` translates Triton's statuses into this tree.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple, Self

import orjson
from starlette.responses import Response


class ApiError(Exception):
    """`message` is a sentence for the caller; `param` names the field or item, as `input[7]`."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def at(self, param: str) -> Self:
        """The same error, of another item: one computation can fail for several waiters."""
        error = copy(self)
        error.param = param
        return error


class InvalidInput(ApiError):
    """The caller can mend it."""


class Unauthorized(ApiError):
    """The key is missing or wrong."""


class UnknownModel(ApiError):
    """Another model is asked for, in the path or in `model`, than the one that is served."""


class NotAcceptable(ApiError):
    """The Accept header wants none of the media types that there are."""


class TooSlow(ApiError):
    """The body did not arrive in time."""


class TooLarge(ApiError):
    """The body is larger than the limit."""


class UnsupportedMediaType(ApiError):
    """The body is not plain JSON."""


TOO_MANY = "Too many {} are waiting (rate limit): Retry-After says when to send the request again."


class Overloaded(ApiError):
    """Too much is here already; `after`: the seconds of Retry-After."""

    def __init__(self, message: str, param: str | None = None, after: int = 1) -> None:
        super().__init__(message, param)
        self.after = after


class InferenceFailed(ApiError):
    """Our own fault. The message holds an opaque id and nothing of what happened."""


class Unavailable(ApiError):
    """The model cannot be reached, or refuses to work; `begun`: perhaps after it had begun with the item."""

    def __init__(self, message: str, param: str | None = None, begun: bool = True) -> None:
        super().__init__(message, param)
        self.begun = begun


class DeadlinePassed(ApiError):
    """The time for this request is over."""


class Told(NamedTuple):
    """How one class of errors is answered."""

    status: int
    type: str
    code: str
    headers: Mapping[str, str] | None = None


COHERE_PATH, WEAVIATE_PATH = "/v2/embed", "/vectorize"  # whose clients look for the sentence elsewhere

# The rest of such a request is not worth reading for the sake of keeping its connection.
_CLOSE = {"connection": "close"}

TOLD: dict[type[ApiError], Told] = {
    InvalidInput: Told(400, "invalid_request_error", "invalid_input"),
    Unauthorized: Told(401, "authentication_error", "unauthorized", {"www-authenticate": "Bearer", **_CLOSE}),
    UnknownModel: Told(404, "invalid_request_error", "model_not_found"),
    NotAcceptable: Told(406, "invalid_request_error", "not_acceptable", _CLOSE),
    TooSlow: Told(408, "timeout_error", "body_too_slow", _CLOSE),
    TooLarge: Told(413, "invalid_request_error", "too_large", _CLOSE),
    UnsupportedMediaType: Told(415, "invalid_request_error", "unsupported_media_type", _CLOSE),
    Overloaded: Told(429, "overloaded_error", "overloaded", {"retry-after": "1"}),
    InferenceFailed: Told(500, "server_error", "inference_failed"),
    Unavailable: Told(503, "server_error", "unavailable", {"retry-after": "5"}),
    DeadlinePassed: Told(504, "timeout_error", "deadline_passed"),
}


def error_response(error: ApiError, path: str = "") -> Response:
    """The HTTP answer to one of our own errors, in the form that callers of `path` read."""
    told = TOLD[type(error)]
    headers = {"retry-after": str(error.after)} if isinstance(error, Overloaded) else told.headers
    return shaped(told.status, error.message, told.type, told.code, error.param, headers, path)


def shaped(
    status: int,
    message: str,
    type: str,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    path: str = "",
) -> Response:
    """Every error has this body: `{"error": {"message", "type", "param", "code"}}`, OpenAI's; but for two schemas."""
    about = {"type": type, "param": param, "code": code}
    body: dict[str, Any] = {"error": {"message": message, **about}}
    if path == COHERE_PATH:
        body = {"message": message, **about}
    elif path == WEAVIATE_PATH:
        body = {"error": message, **about}
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
