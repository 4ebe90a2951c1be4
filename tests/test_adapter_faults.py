"""The adapter when something breaks: Triton goes away, hangs, comes back another one; callers leave or are too many."""

import asyncio
import time

import numpy as np
import pytest
from grpc import StatusCode
from tritonclient.grpc.service_pb2 import ModelInferResponse

from client import errors
from client.triton.triton_client import read_answer, translated
from tests.in_process import DEAD, adapter, line_to, proxied, refused
from tests.waits import LIMIT_SECONDS, SLACK_SECONDS, eventually

RED = {"input": "red"}


@pytest.fixture
async def line(stack):
    async with line_to(stack.triton_grpc) as line:
        yield line


async def health_becomes(http, status):
    async def it_is():
        return (await http.get("/health")).status_code == status

    await eventually(it_is)


async def test_it_starts_without_triton_and_finds_it_by_itself(line):
    await line.cut()
    async with adapter(line.url) as http:
        error = refused(await http.post("/txt/embed", json=RED), 503)
        assert "timeout" not in error["message"]
        await line.connect()
        await health_becomes(http, 200)
        assert (await http.post("/txt/embed", json=RED)).status_code == 200


async def test_a_request_waits_for_a_model_that_restarts(line):
    async with adapter(line.url) as http:
        await http.post("/txt/embed", json=RED)
        await line.cut()
        request = asyncio.create_task(http.post("/txt/embed", json={"input": ["red", "blue"]}))
        await health_becomes(http, 503)
        assert not request.done()
        await line.connect()
        assert (await request).status_code == 200
        await health_becomes(http, 200)


async def test_a_request_in_flight_survives_a_restart(line):
    async with adapter(line.url) as http:
        line.hold()
        request = asyncio.create_task(http.post("/txt/embed", json={"input": "in flight"}))
        await eventually(lambda: http.app.state.admission.pending == 1)
        await line.cut()
        line.release()
        await line.connect()
        assert (await request).status_code == 200


async def test_a_model_that_stays_away_is_waited_for_until_the_deadline(line):
    """However long it takes to start; and what passed says why."""
    async with adapter(line.url) as http:
        await line.cut()
        await health_becomes(http, 503)
        started = time.monotonic()
        error = refused(await http.post("/txt/embed", json=RED, headers={"x-timeout": "0.4"}), 504)
        assert 0.3 < time.monotonic() - started < 0.4 + SLACK_SECONDS
        assert "timeout" in error["message"]  # what the benchmark's client retries on
        assert "went away" in error["message"]
        assert http.app.state.dispatcher._flights._flights == {}


async def test_no_cached_vector_is_served_while_nobody_knows_which_model_is_there(line):
    async with adapter(line.url) as http:
        assert (await http.post("/txt/embed", json=RED)).status_code == 200
        assert (await http.post("/txt/embed", json=RED)).headers["x-cache-hits"] == "1"
        await line.cut()
        await health_becomes(http, 503)
        assert (await http.get("/info")).json()["model"] is None
        refused(await http.post("/txt/embed", json=RED, headers={"x-timeout": "0.2"}), 504)
        await line.connect()
        await health_becomes(http, 200)
        assert (await http.post("/txt/embed", json=RED)).headers["x-cache-hits"] == "1"  # the same model came back


async def test_vectors_of_another_model_are_not_served(line):
    async with adapter(line.url) as http:
        await http.post("/txt/embed", json=RED)
        readiness = http.app.state.readiness
        readiness.model = readiness.model | {"id": "another"}
        assert (await http.post("/txt/embed", json=RED)).headers["x-cache-hits"] == "0"


async def test_a_request_whose_items_come_from_two_models_is_embedded_again(line):
    async with adapter(line.url) as http:
        right = (await http.post("/txt/embed", json=RED)).json()["embedding"]
        readiness, cache = http.app.state.readiness, http.app.state.cache
        key, embedding = next(iter(cache._entries.items()))
        cache._entries["another", *key[1:]] = embedding._replace(vector=np.zeros_like(embedding.vector))
        readiness.model = readiness.model | {"id": "another"}
        assert (await http.post("/txt/embed", json=RED)).json()["embedding"] == [0.0] * len(right)
        answer = await http.post("/txt/embed", json={"input": ["red", "never seen"]})
        assert answer.json()["embedding"][0] == right


async def test_a_model_replaced_behind_the_adapter_is_noticed_with_its_first_answer(stack, other_stack):
    """Behind a proxy no connection breaks. One request more asks what came; nothing cached before is served."""
    async with proxied(stack.triton_grpc) as (proxy, address), adapter(address, probe_seconds=3600) as http:
        old = (await http.get("/info")).json()["model"]
        first = await http.post("/txt/embed", json=RED)
        assert (await http.post("/txt/embed", json=RED)).headers["x-cache-hits"] == "1"
        proxy.target = other_stack.triton_grpc
        assert (await http.post("/txt/embed", json={"input": ["x", "y", "z"]})).status_code == 200
        new = (await http.get("/info")).json()["model"]
        assert (old["recipe"]["pooling"], new["recipe"]["pooling"]) == ("last", "mean")
        assert proxy.calls[other_stack.triton_grpc] == 3 + 1
        again = await http.post("/txt/embed", json=RED)
        assert again.headers["x-cache-hits"] == "0"
        assert again.headers["x-recipe"] == new["recipe"]["id"] != first.headers["x-recipe"]
        assert again.headers["x-model"] == new["id"] != first.headers["x-model"] == old["id"]
        assert again.json() != first.json()


async def test_a_model_that_came_back_describes_itself_anew(line):
    """The same vectors do not mean the same description: a warning or a budget may have changed."""
    async with adapter(line.url) as http:
        http.app.state.readiness.model["batch_tokens"] = -1  # what it would have said before
        assert (await http.get("/info")).json()["model"]["batch_tokens"] == -1
        await line.cut()
        await line.connect()
        await eventually(lambda: (http.app.state.readiness.model or {}).get("batch_tokens", 0) > 0)


async def test_a_model_of_the_same_id_that_came_unseen_describes_itself_anew(line):
    """Behind a proxy, or as one of several, no connection breaks; and limits are in no id."""
    async with adapter(line.url, probe_seconds=0.1) as http:
        readiness = http.app.state.readiness
        readiness.model["batch_tokens"] = -1  # what it would have said before
        await eventually(lambda: readiness.model["batch_tokens"] > 0)
        assert readiness.generation == 0


async def test_a_hanging_model_is_504_at_the_deadline_and_not_ready(line):
    async with adapter(line.url, deadline_seconds=0.5, probe_seconds=0.1) as http:
        line.hold()
        started = time.monotonic()
        error = refused(await http.post("/txt/embed", json={"input": ["red", "blue"]}), 504)
        assert 0.4 < time.monotonic() - started < 0.5 + SLACK_SECONDS
        assert "timeout" in error["message"]
        readiness = http.app.state.readiness
        await eventually(lambda: readiness._silent_seconds() > 3.3)
        refused(await http.get("/health"), 503)
        line.release()
        await health_becomes(http, 200)


async def test_too_many_items_are_429_at_once_and_hits_are_served_all_the_same(line):
    async with adapter(line.url, max_items=4, max_pending_items=4) as http:
        await http.post("/txt/embed", json=RED)
        line.hold()
        waiting = asyncio.create_task(http.post("/txt/embed", json={"input": ["a", "b", "c"]}))
        await eventually(lambda: http.app.state.admission.pending == 3)
        response = await http.post("/txt/embed", json={"input": ["d", "e"]})
        assert not waiting.done()
        assert "rate limit" in refused(response, 429)["message"]
        assert int(response.headers["retry-after"]) > 0
        assert (await http.post("/txt/embed", json=RED)).headers["x-cache-hits"] == "1"
        line.release()
        assert (await waiting).status_code == 200
        assert (await http.post("/txt/embed", json={"input": ["d", "e"]})).status_code == 200


async def test_more_items_than_slots_are_all_answered_in_order(line):
    names = [f"slot {index}" for index in range(24)]
    async with adapter(line.url, max_concurrency=2) as http:
        together = await http.post("/txt/embed", json={"input": names})
        for name, vector in zip(names, together.json()["embedding"], strict=True):
            alone = await http.post("/txt/embed", json={"input": name})
            assert alone.headers["x-cache-hits"] == "1"
            assert alone.json()["embedding"] == vector


async def test_when_one_item_fails_the_others_are_not_waited_for(line):
    async with adapter(line.url, max_concurrency=1) as http:
        bad = {"input": [f"text {index}" for index in range(40)], "dimensions": 10**6}
        error = refused(await http.post("/txt/embed", json=bad), 400)
        assert error["param"] == "input[0]"
        assert http.app.state.admission.pending == 0
        assert http.app.state.dispatcher._flights._flights == {}


async def test_what_triton_is_about_to_answer_is_not_cancelled(stack):
    """Where a cancellation meets the answer, Triton 2.51 ends: a caller of wrong lists ended it twice a minute."""
    async with proxied(stack.triton_grpc) as (triton, url), adapter(url) as http:
        for number in range(20):
            texts = [f"{number} {item}" for item in range(8)]
            refused(await http.post("/txt/embed", json={"input": texts, "prompt": "nonsense"}), 400)
            await eventually(lambda: triton.under_way == 0)
        assert triton.cancelled == 0 < triton.calls.total()


async def call(app, body: bytes, disconnected: asyncio.Event) -> int:
    """One ASGI request whose client leaves when `disconnected` is set; its status."""
    messages = [{"type": "http.request", "body": body}]
    status = []

    async def receive():
        if messages:
            return messages.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        status.append(message.get("status"))

    headers = [(b"host", b"adapter"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/txt/embed",
        "raw_path": b"/txt/embed",
        "query_string": b"",
    }
    await app({**scope, "headers": headers}, receive, send)
    return status[0]


async def test_a_client_that_leaves_cancels_its_items_and_nobody_elses(line):
    async with adapter(line.url) as http:
        admission, flights = http.app.state.admission, http.app.state.dispatcher._flights._flights
        line.hold()
        gone = asyncio.Event()
        leaving = asyncio.create_task(call(http.app, b'{"input": ["mine", "shared"]}', gone))
        await eventually(lambda: admission.pending == 2)
        staying = asyncio.create_task(http.post("/txt/embed", json={"input": "shared"}))
        await eventually(lambda: admission.pending == 3)
        assert len(flights) == 2
        gone.set()
        assert await asyncio.wait_for(leaving, LIMIT_SECONDS) == 499
        assert (admission.pending, len(flights)) == (1, 1)
        line.release()
        assert (await staying).status_code == 200
        assert admission.pending == 0


async def test_an_item_outlives_the_caller_who_started_it(line):
    async with adapter(line.url) as http:
        line.hold()
        impatient = asyncio.create_task(http.post("/txt/embed", json={"input": "shared"}, headers={"x-timeout": "1"}))
        await eventually(lambda: http.app.state.admission.pending == 1)
        patient = asyncio.create_task(http.post("/txt/embed", json={"input": "shared"}))
        refused(await impatient, 504)
        line.release()
        assert (await patient).headers["x-cache-hits"] == "1"


async def test_a_slow_body_is_a_timeout():
    async def chunks():
        yield b"{"
        await asyncio.sleep(2 * SLACK_SECONDS)
        yield b"}"

    async with adapter(deadline_seconds=0.2) as http:
        started = time.monotonic()
        response = await http.post("/txt/embed", content=chunks(), headers={"content-type": "application/json"})
        assert "timeout" in refused(response, 408)["message"]
        assert time.monotonic() - started < SLACK_SECONDS  # before the rest of it came


async def test_why_no_embedding_comes_is_logged_once_with_the_place(line, caplog):
    caplog.set_level("INFO")
    for settings in ({"triton_url": DEAD}, {"triton_url": line.url, "model_name": "m"}):
        caplog.clear()
        async with adapter(**settings) as http:
            for _ in range(2):
                await http.app.state.readiness.probe()
        (told,) = (each for each in caplog.messages if "no embedding" in each)
        assert settings["triton_url"] in told
        assert ("ADAPTER_MODEL_NAME" in told) == ("model_name" in settings)


async def test_our_own_bug_is_500_with_an_id_only(line, caplog):
    async with adapter(line.url) as http:
        http.app.state.dispatcher = None
        response = await http.post("/txt/embed", json={"input": "a secret"})
        error = refused(response, 500)
        assert response.headers["x-request-id"] in error["message"]
        assert "NoneType" not in error["message"]
        assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (StatusCode.INVALID_ARGUMENT, "The image is truncated.", errors.InvalidInput),
        (StatusCode.UNAVAILABLE, "Exceeds maximum queue size", errors.Overloaded),
        (StatusCode.UNAVAILABLE, "Request timeout expired", errors.DeadlinePassed),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlinePassed),
        (StatusCode.UNAVAILABLE, "Socket closed", errors.Unavailable),
        (StatusCode.UNAVAILABLE, "Server exiting", errors.Unavailable),
        (StatusCode.NOT_FOUND, "Request for unknown model: 'm' has no available versions", errors.Unavailable),
        (StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found", errors.Unavailable),
        (StatusCode.CANCELLED, "", errors.Unavailable),
        (StatusCode.INTERNAL, "Stub process 'm_0_0' is not healthy.", errors.Unavailable),
        (StatusCode.INTERNAL, "ZeroDivisionError at model.py(12)", errors.InferenceFailed),
        (StatusCode.UNKNOWN, "secret", errors.InferenceFailed),
    ],
)
def test_each_status_of_triton_has_its_error_and_only_the_models_sentence_is_told(status, text, kind):
    error = translated(status, text)
    assert type(error) is kind
    assert (text in error.message) == (kind is errors.InvalidInput or not text)


def answer(**changed: bytes | None) -> ModelInferResponse:
    vector, timings = np.ones(4, "<f4").tobytes(), np.array([1, 2], "<f4").tobytes()
    outputs: dict[str, bytes | None] = {
        "batch_items": b"\1\0\0\0",
        "warnings": b"\1\0\0\1",
        "timings": timings,
        "recipe": b"recipe",
        "model": b"model_id",
    }
    outputs |= {"tokens": b"\3\0\0\0", "embedding": vector} | changed
    sent = {name: content for name, content in outputs.items() if content is not None}
    response = ModelInferResponse(raw_output_contents=sent.values())
    for name in sent:
        response.outputs.add(name=name)
    return response


def test_an_answer_is_read_whole_or_refused():
    read = read_answer(answer())
    assert (read.tokens, read.preprocess_ms, read.forward_ms) == (3, 1, 2)
    assert (read.model, read.recipe.id) == ({"id": b"model_id".hex()}, b"recipe".hex())
    assert not read.vector.flags.writeable  # callers and the cache share it
    known, unknown = read.recipe.warnings  # of a model newer than the adapter
    assert "not trained" in known
    assert "warning 16777216" in unknown
    assert read_answer(answer(embedding=None, json=b'{"a": 1}  ')).json == {"a": 1}
    for changed in (
        {"embedding": np.array([1, np.nan], dtype=np.float32).tobytes()},
        {"embedding": np.array([1, np.inf], dtype=np.float32).tobytes()},
        {"embedding": b"123"},
        {"embedding": b""},
        {"json": b"{}"},
        {"embedding": None},
        {"embedding": None, "json": b"{"},
        {"embedding": None, "json": b"1"},
        {"model": b"model"},
        {"tokens": b""},
    ):
        with pytest.raises(errors.InferenceFailed, match="incident"):
            read_answer(answer(**changed))
    with pytest.raises(errors.InferenceFailed):
        read_answer(ModelInferResponse())
