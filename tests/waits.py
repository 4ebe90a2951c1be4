"""Waiting in tests: for what must come true, never for a time to pass; one limit, which a slow machine keeps too."""

import asyncio
import contextlib
import inspect
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil

from tests.conftest import RunningStack

LIMIT_SECONDS = 120  # whatever is waited for: a machine four times slower keeps it by far, and only a failure takes it
SLOWER = 4  # times slower may this machine be than the one on which a bound of seconds was set
SLACK_SECONDS = 15  # how late an answer may be that is due at a time; without a deadline it would take over 30 s
# Who is asked, or looked at, is not there, or not any more.
NOT_YET = (httpx.TransportError, psutil.NoSuchProcess, FileNotFoundError, StopIteration)


def until(condition: Callable[[], Any]) -> None:
    """Wait for `condition`.

    Raises:
        AssertionError: it did not come true within `LIMIT_SECONDS`.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        with contextlib.suppress(*NOT_YET):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def counts(served: RunningStack) -> dict[str, float]:
    """The model's own counts among Triton's metrics; told once a second."""
    text = httpx.get(f"http://{served.triton_metrics}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^qwen3_vl_embed_(\w+)_total(?:{.*})? (\S+)", text, re.M)}


def settled(served: RunningStack, name: str) -> float:
    """One of them, when all is told and nothing but the adapter's probes adds to it."""
    seen = [counts(served)[name]]

    def still() -> bool:
        time.sleep(2)
        seen.append(counts(served)[name])
        return seen[-1] - seen[-2] < 10

    until(still)
    return seen[-1]


async def eventually(condition: Callable[[], Any]) -> None:
    """The same in an event loop, which goes on meanwhile; `condition` may be awaitable."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


def items_in_flight(adapter_url: str) -> float:
    """How many items it has taken in and not answered yet; of an adapter with one worker."""
    figures = httpx.get(f"{adapter_url}/metrics", timeout=LIMIT_SECONDS).text
    return float(re.findall(r"^adapter_items_in_flight (\S+)", figures, re.MULTILINE)[0])
