"""The one seam to Triton: an item becomes one gRPC request of the model's wire contract, and its answer an embedding.

Asking again is the dispatcher's affair. Cancelling a call cancels it at Triton too, queued or running; that is why this
is gRPC (Triton does not see an HTTP client leave). It is given a second to end by itself: a cancellation that meets its
answer ends a Triton before 25.04 (its issue 8034). What Triton says is never forwarded, except the model's own sentence
about a bad input.
"""

import asyncio
import logging
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client.errors import ApiError, DeadlinePassed, InferenceFailed, InvalidInput, Overloaded, Unavailable
from client.items import WARNINGS, Embedding, EmbedInput, Recipe

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
_ENDING_SECONDS = 1.0  # for which a call goes on that nobody waits for
_TURNS = 16  # of as many Tritons each is asked once; the more callers, the less in order
_IN_TURN = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')

# Every request carries the same three inputs, or Triton would not batch texts and images together.
_INPUTS = [
    service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1, 1])
    for name in ("text", "image", "options")
]
# What there is one of for each item, in this order, little-endian: id as bytes, milliseconds, bits.
_FIXED = ("tokens", "model", "recipe", "timings", "batch_items", "warnings")
_LAYOUT = struct.Struct("<i8s6s2fiI")
_OUTPUTS = [
    service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("embedding", *_FIXED, "json")
]
_DESCRIBE = EmbedInput(options=b'{"describe": true}')
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED}
# What is said before anything was begun: by a Triton that ends, and by gRPC, which reaches none.
_NOT_BEGUN = ("has no available versions", "Server exiting", "ailed to connect", "all backends failing")


class TritonClient:
    """One gRPC channel to one model. Create it inside the event loop that uses it.

    `url` may name `several` Tritons (commas, or `dns:`): then gRPC sends each item to the next that is connected.
    `metadata` says what goes along with an item: the trace that it belongs to.
    """

    def __init__(self, url: str, model_name: str, metadata: Callable[[], Sequence[tuple[str, str]]] = tuple) -> None:
        self.url, self._model_name = url, model_name
        self._metadata = metadata
        self.several = "," in url or url.startswith("dns:")
        self._channel = grpc.aio.insecure_channel(url, options=[*_CHANNEL, *([_IN_TURN] if self.several else [])])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._models: dict[str, dict[str, Any]] = {}  # by their ids
        self._asking = asyncio.Lock()

    async def embed(self, item: EmbedInput, timeout: float, request_id: str) -> Embedding:
        """Have one item embedded, within `timeout` seconds. A model that is not known is asked what it is, once.

        Raises:
            InvalidInput, Overloaded, InferenceFailed, Unavailable, DeadlinePassed: what Triton answered, translated.
        """
        sent = time.perf_counter()
        answer = await self._infer(item, timeout, request_id)
        took = time.perf_counter() - sent
        identifier = answer.model["id"]
        model = self._models.get(identifier) or await self._described(identifier, timeout - took)
        return answer._replace(model=model, queue_ms=max(0.0, took * 1e3 - answer.preprocess_ms - answer.forward_ms))

    @property
    def connected(self) -> bool:
        """Whether there is a Triton that an item can be sent to, of several at least one."""
        return bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)

    def forget(self) -> None:
        """The model is gone; what comes back may be the same and describe itself otherwise."""
        self._models = {}

    async def describe(self, timeout: float) -> None:
        """Ask what the model is, known or not: limits, a device and a warm-up's figures change no id.

        Raises ApiError.
        """
        models = self._models  # when they are forgotten meanwhile, so is the answer
        answer = await self._infer(_DESCRIBE, timeout, "describe")
        models[answer.model["id"]] = answer.model | (answer.json or {})

    async def _described(self, model: str, timeout: float) -> dict[str, Any]:
        models = self._models
        async with self._asking:
            for _ in range(_TURNS if self.several else 1):  # of several it may be another's turn to answer
                if model in models:
                    break
                await self.describe(timeout)
        if model not in models:
            raise Unavailable("The model was replaced while it answered: send the request again.", begun=False)
        return models[model]

    async def _infer(self, item: EmbedInput, timeout: float, request_id: str) -> Embedding:
        request = service_pb2.ModelInferRequest(
            model_name=self._model_name,
            id=request_id,
            inputs=_INPUTS,
            outputs=_OUTPUTS,
            raw_input_contents=[_element(item.text), _element(item.image), _element(item.options)],
        )
        call = self._stub.ModelInfer(request, timeout=timeout, metadata=self._metadata())
        try:
            await call.code()  # who is cancelled here has not cancelled the call
            response = await call
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                await asyncio.wait_for(call.code(), _ENDING_SECONDS)
            call.cancel()
            raise
        except grpc.aio.AioRpcError as error:
            raise translated(error.code(), error.details() or "") from None
        return read_answer(response)

    async def model_ready(self, timeout: float) -> bool:
        """Whether Triton says that the model is ready. A Triton before 26.01 says so of a dead one too."""
        try:
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=self._model_name), timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def disconnected(self) -> None:
        """Return when a connection that stood is gone, and of several the last one."""
        while (state := self._channel.get_state()) != grpc.ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)
        await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


def _element(content: bytes) -> bytes:
    """One element of a BYTES tensor: its length, then its content."""
    return struct.pack("<I", len(content)) + content


def read_answer(response: service_pb2.ModelInferResponse) -> Embedding:
    """The outputs of one item; of its model they hold the id alone.

    Raises:
        InferenceFailed: one is missing or malformed, or the vector holds NaN or infinity.
    """
    names = (output.name for output in response.outputs)
    outputs = dict(zip(names, response.raw_output_contents, strict=False))
    try:
        vector = np.frombuffer(outputs.get("embedding", b""), dtype="<f4")
        fixed = _LAYOUT.unpack(b"".join([outputs[name] for name in _FIXED]))
        json = dict(orjson.loads(outputs["json"])) if "json" in outputs else None
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise _our_fault(f"the answer does not follow the wire contract: {error!r}") from error
    if (vector.size == 0) != (json is not None):
        raise _our_fault("neither a vector nor JSON, or both")
    if not np.isfinite(vector).all():  # JSON has no NaN: it would arrive as null
        raise _our_fault("the vector is not finite")
    tokens, model, recipe, preprocess_ms, forward_ms, batch_items, bits = fixed
    made, took = Recipe(recipe.hex(), warnings(bits)), (0.0, preprocess_ms, forward_ms)
    return Embedding(vector, {"id": model.hex()}, made, True, tokens, *took, batch_items, json)


def warnings(bits: int) -> tuple[str, ...]:
    """Their sentences."""
    set_bits = (1 << place for place in range(bits.bit_length()) if bits >> place & 1)
    return tuple(WARNINGS.get(bit, f"warning {bit}, which this adapter does not know: upgrade it") for bit in set_bits)


def translated(status: grpc.StatusCode, text: str) -> ApiError:
    """Triton's status and text -> our own error; only the model's sentence about a bad input is passed on."""
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidInput(text)
    if "Exceeds maximum queue size" in text:
        return Overloaded("The model's queue is full (rate limit): send the request again in a second.")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED or "timeout expired" in text:
        return DeadlinePassed("timeout: the model did not answer in time. Send the request again, or fewer items.")
    if status is grpc.StatusCode.NOT_FOUND and "is not found" in text:
        return Unavailable("Triton has no model of that name: ADAPTER_MODEL_NAME says which one is asked.", begun=False)
    if status in _GONE or "is not healthy" in text:
        logger.debug("unavailable: %s %.300s", status.name, text)
        begun = not any(words in text for words in _NOT_BEGUN)
        return Unavailable("The model is not available: send the request again later.", begun=begun)
    return _our_fault(f"{status.name} {text}")


def _our_fault(cause: str) -> InferenceFailed:
    incident = secrets.token_hex(8)
    logger.error("incident %s: %.2000s", incident, cause)
    return InferenceFailed(f"The model failed on this input. Report incident {incident} to those who run this server.")
