"""GET /metrics: every request is counted once, whatever came of it, under few names; also by several workers."""

import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.errors import TOLD
from client.telemetry import metrics
from tests.in_process import adapter, line_to, refused
from tests.test_adapter_workers import COUNT, start  # noqa: F401 (a fixture)
from tests.waits import LIMIT_SECONDS, eventually, until


def figures(text: str) -> dict[str, float]:
    """`name{label="value",…}` -> its value, as Prometheus reads it."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }


async def read(http) -> dict[str, float]:
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return figures(response.text)


class Growth:
    """What the figures grew by inside: `async with Growth(http) as grown: …; grown["name label"]`."""

    def __init__(self, http) -> None:
        self._http = http

    async def __aenter__(self) -> "Growth":
        self._before = await read(self._http)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._after = await read(self._http)

    def __getitem__(self, name: str) -> float:
        return self._after.get(name, 0) - self._before.get(name, 0)


async def test_requests_are_counted_by_endpoint_status_and_reason(stack):
    async with adapter(stack.triton_grpc, max_items=4, max_pending_items=4) as http:
        async with Growth(http) as grown:
            await http.post("/txt/embed", json={"input": "red"})
            await http.post("/txt/embed", json={"input": []})
            await http.post("/img/embed", content=b"x")
            await http.post("/txt/embed", json={"input": "red"}, headers={"accept": "text/html"})
            await http.get("/txt/embed")
        assert grown["adapter_requests_total /txt/embed none 200"] == 1
        assert grown["adapter_requests_total /txt/embed invalid_input 400"] == 1
        assert grown["adapter_requests_total /txt/embed not_acceptable 406"] == 1
        assert grown["adapter_requests_total /txt/embed method_not_allowed 405"] == 1
        assert grown["adapter_requests_total /img/embed unsupported_media_type 415"] == 1
        assert grown["adapter_request_seconds_count /txt/embed"] == 4
        assert grown["adapter_request_items_count"] == 1


async def test_paths_that_callers_make_up_are_one_name():
    async with adapter() as http:
        before = len(await read(http))
        for index in range(50):
            await http.get(f"/made/up/{index}?key={index}")
        after = await read(http)
        assert after["adapter_requests_total other not_found 404"] >= 50
        assert len(after) - before < 40  # a counter and a histogram for "other", and for /metrics itself
        assert not any("made" in name for name in after)


async def test_items_stages_bytes_and_the_cache(stack):
    async with adapter(stack.triton_grpc, max_items=4, max_pending_items=4) as http:
        async with Growth(http) as grown:
            asked = (["counted", "twice"], ["counted", "thrice"], "counted")
            answers = [await http.post("/txt/embed", json={"input": given}) for given in asked]
        assert (grown["adapter_cache_hits_total"], grown["adapter_cache_misses_total"]) == (2, 3)
        assert (grown["adapter_request_items_count"], grown["adapter_request_items_sum"]) == (3, 5)
        assert grown["adapter_request_bytes_total"] == sum(len(each.request.content) for each in answers)
        for stage in ("queue", "preprocess", "forward"):
            assert grown[f"adapter_stage_seconds_count {stage}"] == 2  # the third was in the cache
        assert 0 < grown["adapter_stage_seconds_sum forward"] < grown["adapter_request_seconds_sum /txt/embed"]
        about = (await http.get("/info")).json()["cache"]
        assert (await read(http))["adapter_cache_bytes"] == about["bytes"]


async def test_what_is_in_flight_and_whether_the_model_is_up(stack):
    async with line_to(stack.triton_grpc) as line, adapter(line.url, max_items=4, max_pending_items=4) as http:
        assert (await read(http))["adapter_model_up"] == 1
        before = (await read(http))["adapter_items_in_flight"]
        line.hold()
        waiting = asyncio.create_task(http.post("/txt/embed", json={"input": ["a", "b", "c"]}))
        await eventually(lambda: http.app.state.admission.pending == 3)
        assert (await read(http))["adapter_items_in_flight"] - before == 3
        assert (await read(http))["adapter_held_bytes"] > 0
        refused(await http.post("/txt/embed", json={"input": ["d", "e"]}), 429)
        line.release()
        await waiting
        assert (await read(http))["adapter_items_in_flight"] == before
        await line.cut()
        await eventually(lambda: http.app.state.readiness.model is None)
        assert (await read(http))["adapter_model_up"] == 0


def test_every_error_has_a_reason_of_its_own():
    assert {told.status for told in TOLD.values()} <= metrics.REASONS.keys()
    assert len(set(metrics.REASONS.values())) == len(metrics.REASONS)


@pytest.mark.faults
def test_workers_are_added_up_and_the_dead_are_not_forgotten(start, stack):  # noqa: F811
    running = start(stack.triton_grpc)

    def now() -> dict[str, float]:
        return figures(running.get("/metrics").text)

    for index in range(20):
        answer = httpx.post(f"{running.url}/txt/embed", json={"input": [f"by any {index}", "worker"]}, timeout=60)
        assert answer.status_code == 200
    told = {"requests_total /txt/embed none 200": 20, "request_items_sum": 40, "items_in_flight": 0, "model_up": 1}

    def complete() -> bool:
        """By whoever answers; each worker tells its own once a second."""
        seen = [now() for _ in range(10)]
        return all({one[f"adapter_{name}"] for one in seen} == {value} for name, value in told.items())

    until(complete)
    assert 0 < now()["adapter_cache_bytes"] <= COUNT * 21 * 2000
    for worker in running.workers():  # which of them was asked, and holds vectors, was the kernel's choice
        worker.kill()
        until(lambda worker=worker: worker not in running.workers() and len(running.workers()) == COUNT)
        until(lambda: now()["adapter_model_up"] == 1)
        assert now()["adapter_requests_total /txt/embed none 200"] == 20
    until(lambda: now()["adapter_cache_bytes"] == 0)  # a successor takes the dead one's away


def test_the_workers_folder_is_gone_with_them(start, tmp_path):  # noqa: F811
    running = start(TMPDIR=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    running.popen.terminate()
    assert running.popen.wait(LIMIT_SECONDS) == 0
    assert not list(tmp_path.iterdir())


async def test_they_are_described_as_text():
    """schemathesis found them described as JSON."""
    async with adapter() as http:
        described = (await http.get("/openapi.json")).json()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
        assert (await http.get("/metrics")).headers["content-type"].partition(";")[0] in described
