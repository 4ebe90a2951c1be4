"""How an answer is written: JSON with lists of numbers or base64, a NumPy file, or the bare numbers.

The form is no option of the model: no cache key holds it and Triton never hears of it.
"""

import binascii
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from client.errors import InvalidInput, NotAcceptable
from client.items import Embedding, EmbedInput

JSON, NPY, RAW = MEDIA_TYPES = ("application/json", "application/x-npy", "application/octet-stream")
MOST_RECIPES = 8  # that a header names: clients and gateways bound its length
MOST_TOLD = 256  # items of which a header tells each one's tokens: gateways take heads of 4 KB


@dataclass(frozen=True, slots=True)
class Form:
    """What one caller asked for."""

    is_list: bool
    media_type: str = JSON
    encoding_format: str = "float"
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Done:
    """A request's vectors, by which model, and what they cost."""

    embeddings: list[Embedding]
    model: str  # the name that it goes by
    request_id: str
    stages: dict[str, float]  # milliseconds, as `stages_ms`
    started: float  # by time.perf_counter

    @property
    def tokens(self) -> int:
        """Of all sequences, prompts included, whether they were computed for this request or before."""
        return sum(embedding.tokens for embedding in self.embeddings)


def accepted(accept: str, offered: Sequence[str] = MEDIA_TYPES) -> str:
    """The first of our media types that an Accept header names; JSON where it names none and takes any.

    Weights are not read: a caller who wants one form names that one. (RFC 9110, 12.5.1, leaves the choice to the
    server.)

    Raises:
        NotAcceptable: it wants none of ours. JSON all the same would only fail later, in the caller's parser.
    """
    if accept in ("", "*/*", JSON):
        return JSON
    ranges = [part.partition(";")[0].strip() for part in accept.lower().split(",")]
    if named := [media_type for media_type in ranges if media_type in offered]:
        return named[0]
    if "*/*" in ranges or "application/*" in ranges:
        return JSON
    raise NotAcceptable(f"No answer can be given as Accept asks: accept {', '.join(offered)} or */*.")


def stages_ms(embeddings: list[Embedding]) -> dict[str, float]:
    """How long the slowest of the items was in each stage; the model works on several at once, so this is no sum."""
    return {
        "queue": max(embedding.queue_ms for embedding in embeddings),
        "preprocess": max(embedding.preprocess_ms for embedding in embeddings),
        "forward": max(embedding.forward_ms for embedding in embeddings),
    }


def answer(items: list[EmbedInput], done: Done, form: Form) -> Response:
    """The vectors in the form that was asked for, and in the headers what they cost.

    Raises:
        InvalidInput: the form cannot hold a number of them; `param` names the item.
    """
    vectors = numbers(items, done, form.dtype)
    if form.media_type == JSON:
        values = in_json(vectors, form.encoding_format)
        return json_answer({"embedding": values if form.is_list else values[0]}, done)
    array = np.asarray(vectors if form.is_list else vectors[0])  # (N, D) | (D,)
    if form.media_type == RAW:
        about = {"x-shape": ",".join(map(str, array.shape)), "x-dtype": form.dtype}
        return Response(array.tobytes(), headers=_headers(done) | about, media_type=RAW)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return Response(file.getvalue(), headers=_headers(done), media_type=NPY)


def json_answer(body: dict[str, Any], done: Done) -> Response:
    """A body of one's own, whose vectors are `in_json`, with the headers of every answer."""
    return Response(orjson.dumps(body), headers=_headers(done), media_type=JSON)


def numbers(items: list[EmbedInput], done: Done, dtype: str | None = None) -> list[NDArray[np.floating[Any]]]:
    """The vectors, little-endian: as they came from Triton in float32, or in float16.

    Raises:
        InvalidInput: float16 cannot hold a number of one; `param` names the item.
    """
    if dtype != "float16":
        return [embedding.vector for embedding in done.embeddings]
    return [_halved(embedding.vector, item.param) for item, embedding in zip(items, done.embeddings, strict=True)]


def in_json(vectors: list[NDArray[np.floating[Any]]], encoding_format: str) -> list[Any]:
    """Each vector as orjson writes it: a list of numbers, or base64 of its bytes.

    Numbers are written one vector at a time, so that others get their turn between two.
    """
    if encoding_format == "base64":
        return [binascii.b2a_base64(vector.tobytes(), newline=False).decode() for vector in vectors]
    return [orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)) for vector in vectors]


def _halved(vector: NDArray[np.float32], param: str) -> NDArray[np.floating[Any]]:
    with np.errstate(over="ignore"):  # it is looked for, and would be a warning in the log
        halved = vector.astype("<f2")
    if not np.isfinite(halved).all():
        raise InvalidInput(
            'A number of this vector is too large for float16, which ends at 65504: leave "dtype" out for float32.',
            param,
        )
    return halved


def _headers(done: Done) -> dict[str, str]:
    embeddings, stages = done.embeddings, done.stages | {"total": (time.perf_counter() - done.started) * 1e3}
    headers = {f"x-{stage}-ms": f"{took:.3f}" for stage, took in stages.items()}
    headers["x-model"] = embeddings[0].model["id"]  # the dispatcher answers with those of one model
    recipes = list(dict.fromkeys(embedding.recipe for embedding in embeddings))  # several in `/v1` and `/v2` alone
    named = [recipe.id for recipe in recipes[:MOST_RECIPES]]
    headers["x-recipe"] = ", ".join(
        [*named, f"and {len(recipes) - len(named)} more"] if recipes[len(named) :] else named
    )
    if warnings := dict.fromkeys(warning for recipe in recipes for warning in recipe.warnings):
        headers["x-warning"] = "; ".join(warnings)
    headers["x-tokens"] = str(sum(embedding.tokens for embedding in embeddings if embedding.computed))
    if len(embeddings) <= MOST_TOLD:
        headers["x-item-tokens"] = ",".join(str(embedding.tokens) for embedding in embeddings)
    headers["x-cache-hits"] = str(sum(not embedding.computed for embedding in embeddings))
    headers["server-timing"] = ", ".join(f"{stage};dur={took:.3f}" for stage, took in stages.items())
    return headers
