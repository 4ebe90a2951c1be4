"""Several Tritons behind one adapter: each item goes to one that is there, and vectors are of one recipe."""

import asyncio
import os
import signal
import socket
import struct
import threading
from contextlib import ExitStack, asynccontextmanager
from itertools import count

import httpx
import numpy as np
import psutil
import pytest

from client.settings import Settings
from qwen3_vl_embed.serving import stack as serving_stack
from tests.conftest import running
from tests.in_process import adapter, line_to, png64, refused
from tests.reference import cosine
from tests.waits import LIMIT_SECONDS, eventually, until

RED = {"input": "red"}
SAME = 0.99999  # README: float32, in batches of any company
CALLERS, AFTER = 16, 150  # requests at once, and how many are answered after a fault


def url_of(*addresses: str) -> str:
    return ",".join(address.replace("localhost", "127.0.0.1") for address in addresses)


async def ready(http) -> dict:
    answer = await http.get("/health")
    return answer.json() if answer.status_code == 200 else {}


async def noticed(http) -> None:
    """Items are sent until it was the turn of the Triton that serves another recipe."""
    numbers = count()

    async def its_turn() -> bool:
        assert (await http.post("/txt/embed", json={"input": f"turn {next(numbers)}"})).status_code == 200
        return "refused" in await ready(http)

    await eventually(its_turn)


@asynccontextmanager
async def both_of(triton: str):
    """Two lines to it, in place of two Tritons, and an adapter that is connected to both."""
    async with line_to(triton) as first, line_to(triton) as second, adapter(url_of(first.url, second.url)) as http:
        await eventually(lambda: first._writers and second._writers)
        yield first, second, http


async def test_one_that_goes_is_no_loss_while_another_is_there(stack):
    """What was under way there is sent to the other one; what was cached stays."""
    async with both_of(stack.triton_grpc) as (first, _, http):
        await http.post("/txt/embed", json=RED)
        first.hold()
        requests = [asyncio.create_task(http.post("/txt/embed", json={"input": f"text {n}"})) for n in range(32)]
        await eventually(lambda: sum(request.done() for request in requests) >= 12)  # in turn, but for probes
        assert not all(request.done() for request in requests)
        await first.cut()
        assert {(await request).status_code for request in requests} == {200}
        assert (await http.post("/txt/embed", json=RED)).headers["x-cache-hits"] == "1"
        assert await ready(http) == {"status": "ready"}
        assert http.app.state.readiness.generation == 0
        first.release()
        await first.connect()
        await eventually(lambda: first._writers)


class Names(asyncio.DatagramProtocol):
    """A DNS server for whom every name has these addresses: RFC 1035, section 4."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, caller) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        found = self._addresses if question[-4:-2] == b"\0\1" else ()  # A, and not AAAA
        head = data[:2] + struct.pack(">5H", 0x8180, 1, len(found), 0, 0)
        answers = [struct.pack(">3HIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address) for address in found]
        self._transport.sendto(head + question + b"".join(answers), caller)


async def test_all_addresses_of_a_name_are_asked(stack):
    """As a headless Service has them: one port, several addresses."""
    loop = asyncio.get_running_loop()
    async with line_to(stack.triton_grpc) as first:
        port = int(first.url.rpartition(":")[2])
        names, _ = await loop.create_datagram_endpoint(lambda: Names("127.0.0.1", "127.0.0.2"), ("127.0.0.1", 0))
        url = f"dns://127.0.0.1:{names.get_extra_info('sockname')[1]}/triton.test:{port}"
        async with line_to(stack.triton_grpc, "127.0.0.2", port) as second, adapter(url) as http:
            await eventually(lambda: first._writers and second._writers)
            await first.cut()
            answers = [await http.post("/txt/embed", json={"input": f"by name {n}"}) for n in range(8)]
            assert {answer.status_code for answer in answers} == {200}
        names.close()


async def test_all_that_go_are_a_loss_and_the_first_that_comes_back_is_enough(stack):
    async with both_of(stack.triton_grpc) as (first, second, http):
        await first.cut()
        await second.cut()
        request = asyncio.create_task(http.post("/txt/embed", json=RED))
        await eventually(lambda: http.app.state.readiness.model is None)
        refused(await http.get("/health"), 503)
        await second.connect()
        assert (await request).status_code == 200


async def test_vectors_of_a_triton_with_another_recipe_are_refused_until_it_is_the_only_one(stack, other_stack):
    """Of every answer while both are there: one recipe, that of the first. It says so; nobody gets an error."""
    async with line_to(stack.triton_grpc) as first, line_to(other_stack.triton_grpc) as second:
        await second.cut()
        async with adapter(url_of(first.url, second.url), probe_seconds=0.3) as http:
            ours = (await http.get("/info")).json()["model"]
            assert await ready(http) == {"status": "ready"}
            await second.connect()
            await noticed(http)
            asked = [http.post("/txt/embed", json={"input": [f"a{n}", f"b{n}", f"c{n}"]}) for n in range(20)]
            answers = await asyncio.gather(*asked)
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.headers["x-recipe"] for answer in answers} == {ours["recipe"]["id"]}
            assert {key[0] for key in http.app.state.cache._entries} == {ours["id"]}
            said = (await ready(http))["refused"]
            assert f"(model {ours['id']})" in said
            assert "give all of them the same checkpoint" in said
            assert "adapter_recipes_differ 1.0" in (await http.get("/metrics")).text
            assert (await http.get("/info")).json()["model"]["id"] == ours["id"]

            await first.cut()  # the last one of that recipe: the upgrade is through
            later = await http.post("/txt/embed", json={"input": ["a0", "new"]})
            assert later.status_code == 200
            new = (await http.get("/info")).json()["model"]
            assert later.headers["x-recipe"] == new["recipe"]["id"] != ours["recipe"]["id"]
            async with httpx.AsyncClient(base_url=other_stack.adapter_url, timeout=60) as undisturbed:
                alone = (await undisturbed.post("/txt/embed", json={"input": ["a0", "new"]})).json()["embedding"]
            assert min(map(cosine, np.array(later.json()["embedding"]), np.array(alone))) >= SAME
            await eventually(lambda: http.app.state.readiness.refusal is None)
            assert await ready(http) == {"status": "ready"}


async def test_who_only_reaches_the_wrong_one_in_his_time_is_told_why(stack, other_stack):
    async with line_to(stack.triton_grpc) as first, line_to(other_stack.triton_grpc) as second:
        await second.cut()
        async with adapter(url_of(first.url, second.url), probe_seconds=3600) as http:
            await second.connect()
            await noticed(http)
            first.hold()
            asked = [http.post("/txt/embed", json={"input": f"{n}"}, headers={"x-timeout": "2"}) for n in range(8)]
            told = [refused(answer, 504)["message"] for answer in await asyncio.gather(*asked)]
            assert any("serves another checkpoint or recipe" in message for message in told)
            first.release()


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ("[fd00::1]:8001,[fd00::2]:8001", "ipv6:[fd00::1]:8001,[fd00::2]:8001"),
        ("ipv4:10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ("dns:///triton:8001", "dns:///triton:8001"),
    ],
)
def test_several_are_named_as_grpc_takes_them(url, target):
    assert Settings(triton_url=url).triton_url == target


@pytest.mark.parametrize(
    "url", ["a:8001,b:8001", "10.0.0.1:8001,[fd00::2]:8001", "10.0.0.1:8001,", "10.0.0.1,10.0.0.2", "ipv4:triton:8001"]
)
def test_several_that_it_would_not_take_are_refused_with_both_ways(url):
    with pytest.raises(ValueError, match=r"10\.0\.0\.1:8001,10\.0\.0\.2:8001; .* dns:///triton:8001"):
        Settings(triton_url=url)


@pytest.fixture(scope="module")
def pair():
    """Two real Tritons, each watched as `make serve` watches it."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as opened:
        patch.setattr(serving_stack, "STEADY_SECONDS", 0)
        both = [opened.enter_context(running(ADAPTER_LOG_LEVEL="error")) for _ in range(2)]
        watchers = [threading.Thread(target=each.stack.watch, args=(0.2,), daemon=True) for each in both]
        for watcher in watchers:
            watcher.start()
        yield both
        for each, watcher in zip(both, watchers, strict=True):
            each.stack.stopping = True
            watcher.join(60)


def below(running_stack, name: str) -> psutil.Process:
    children = psutil.Process(running_stack.stack.triton.popen.pid).children(recursive=True)
    return next(each for each in children if each.name().startswith(name))


def answered(running_stack) -> float:
    """Requests that this Triton has answered."""
    lines = httpx.get(f"http://{running_stack.triton_metrics}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nv_inference_request_success"))


FAULTS = {
    "tritonserver is killed": lambda one: below(one, "tritonserver").kill(),
    "its model process is killed": lambda one: below(one, "triton_python").kill(),
    "its model process hangs": lambda one: below(one, "triton_python").suspend(),
    "it is told to stop": lambda one: os.kill(one.stack.triton.popen.pid, signal.SIGTERM),
}


@pytest.mark.stack
@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
async def test_one_of_two_that_ends_under_load_costs_nobody_an_answer(pair, fault):
    """Every request is a 200 with the vectors that an undisturbed Triton gives, and the restarted one works again."""
    first, second = pair
    for each in pair:  # the test before may have ended one
        until(lambda url=f"{each.adapter_url}/health": httpx.get(url, timeout=LIMIT_SECONDS).status_code == 200)
    before = [answered(each) for each in pair]
    done: list[tuple[str, dict, httpx.Response]] = []
    over = asyncio.Event()
    async with adapter(url_of(first.triton_grpc, second.triton_grpc), cache_bytes=0) as http:

        async def caller(number: int) -> None:
            for turn in count():
                if over.is_set():
                    return
                mark = f"{fault} {number} {turn}"
                images = [png64(number, turn % 256, item, 200) for item in range(4)]
                texts = [f"{mark} {item}" for item in range(4)]
                path, body = ("/img/embed", {"input": images}) if turn % 2 else ("/txt/embed", {"input": texts})
                done.append((path, body, await http.post(path, json=body)))

        callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
        await eventually(lambda: all(now > was for now, was in zip(map(answered, pair), before, strict=True)))
        old = first.stack.triton
        FAULTS[fault](first)
        at = len(done)
        await eventually(lambda: len(done) > at + AFTER)
        await eventually(lambda: first.stack.triton is not old and first.stack.triton.alive)
        over.set()
        await asyncio.gather(*callers)
        assert {answer.status_code for _, _, answer in done} == {200}, [
            a.text for *_, a in done if a.status_code != 200
        ]
        assert http.app.state.readiness.generation == 0
    async with httpx.AsyncClient(base_url=second.adapter_url, timeout=60) as undisturbed:
        for path, body, answer in done[:: max(1, len(done) // 100)]:
            alone = np.array((await undisturbed.post(path, json=body)).json()["embedding"])
            assert min(map(cosine, np.array(answer.json()["embedding"]), alone)) >= SAME
