"""The one seam to Triton: an item becomes one gRPC request of the model's wire contract, and its answer an embedding.

Knows tensors, statuses and channels. Does not know HTTP, and decides nothing: asking again is the dispatcher's affair.
Cancelling a call cancels it at Triton too, queued or running; that is why this is gRPC (Triton does not see an HTTP
client leave). What Triton says is never forwarded, except the model's own sentence about a bad input.

tritonclient's generated stubs are used directly: its `InferenceServerClient` hides the channel, whose state tells at
once that Triton is gone, and takes 70 µs longer for a request.
"""

import logging
import secrets
import struct
import time
from collections.abc import Callable, Sequence

import grpc
import numpy as np
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client.errors import (
    ApiError,
    DeadlinePassed,
    InferenceFailed,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from client.items import Embedding, EmbedInput, Recipe

logger = logging.getLogger(__name__)

_CHANNEL = [
    ("grpc.enable_http_proxy", 0),  # or `http_proxy` would hold for localhost too
    ("grpc.max_send_message_length", -1),  # the body limit is the adapter's
    ("grpc.max_receive_message_length", -1),
    # A Triton that came back is found within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

# Every request carries the same three inputs, or Triton would not batch texts and images together.
_INPUTS = [
    service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1, 1])
    for name in ("text", "image", "options")
]
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED}


class TritonClient:
    """One gRPC channel to one model. Create it inside the event loop that uses it.

    `metadata` says what goes along with an item: the trace that it belongs to.
    """

    def __init__(self, url: str, model_name: str, metadata: Callable[[], Sequence[tuple[str, str]]] = tuple) -> None:
        self._model_name = model_name
        self._metadata = metadata
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def embed(self, item: EmbedInput, timeout: float, request_id: str) -> Embedding:
        """Have one item embedded, within `timeout` seconds.

        Raises:
            InvalidInput, Overloaded, InferenceFailed, Unavailable, DeadlinePassed: what Triton answered, translated.
        """
        request = service_pb2.ModelInferRequest(
            model_name=self._model_name,
            id=request_id,
            inputs=_INPUTS,
            raw_input_contents=[_element(item.text), _element(item.image), _element(item.options)],
        )
        sent = time.perf_counter()
        try:
            response = await self._stub.ModelInfer(request, timeout=timeout, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise translated(error.code(), error.details() or "") from None
        return read_embedding(response, (time.perf_counter() - sent) * 1e3)

    async def model_ready(self, timeout: float) -> bool:
        """Whether Triton says that the model is ready. A Triton before 26.01 says so of a dead one too."""
        try:
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=self._model_name), timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def disconnected(self) -> None:
        """Return when a connection that stood is gone."""
        while (state := self._channel.get_state()) != grpc.ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)
        await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


def _element(content: bytes) -> bytes:
    """One element of a BYTES tensor: its length, then its content."""
    return struct.pack("<I", len(content)) + content


def read_embedding(response: service_pb2.ModelInferResponse, round_trip_ms: float) -> Embedding:
    """The three outputs of one item.

    Raises:
        InferenceFailed: one is missing or malformed, or the vector holds NaN or infinity.
    """
    names = (output.name for output in response.outputs)
    outputs = dict(zip(names, response.raw_output_contents, strict=False))
    try:
        vector = np.frombuffer(outputs["embedding"], dtype="<f4")  # (D,)
        tokens = int.from_bytes(outputs["tokens"], "little")
        info = orjson.loads(outputs["info"][4:])  # one BYTES element
        preprocess_ms, forward_ms = info["preprocess_ms"], info["forward_ms"]
        queue_ms = max(0.0, round_trip_ms - preprocess_ms - forward_ms)
        recipe = Recipe(info["recipe"], tuple(info["warnings"]))
        stages = (queue_ms, preprocess_ms, forward_ms, info["batch_items"])
        embedding = Embedding(vector, info["model"], recipe, True, tokens, *stages, info.get("render"))
    except (KeyError, TypeError, ValueError) as error:
        raise _our_fault(f"the answer does not follow the wire contract: {error!r}") from error
    if (vector.size == 0) != (embedding.render is not None):  # a rendering has no vector, all else has one
        raise _our_fault("a vector without numbers, or a rendering with a vector")
    if not np.isfinite(vector).all():  # JSON has no NaN: it would arrive as null
        raise _our_fault("the vector is not finite")
    return embedding


def translated(status: grpc.StatusCode, text: str) -> ApiError:
    """Triton's status and text -> our own error; only the model's sentence about a bad input is passed on."""
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidInput(text)
    if "Exceeds maximum queue size" in text:
        return Overloaded("The model's queue is full (rate limit): send the request again in a second.")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED or "timeout expired" in text:
        return DeadlinePassed("timeout: the model did not answer in time. Send the request again, or fewer items.")
    if status in _GONE or "is not healthy" in text:
        logger.debug("unavailable: %s %.300s", status.name, text)
        return Unavailable("The model is not available: send the request again later.")
    return _our_fault(f"{status.name} {text}")


def _our_fault(cause: str) -> InferenceFailed:
    incident = secrets.token_hex(8)
    logger.error("incident %s: %.2000s", incident, cause)
    return InferenceFailed(f"The model failed on this input. Report incident {incident} to whoever runs this server.")
