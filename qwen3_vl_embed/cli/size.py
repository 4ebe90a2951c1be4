"""`qwen3-vl-embed size`: what passes take on a running server, measured; and how many such GPUs a load needs."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from io import BytesIO
from itertools import count
from time import perf_counter, process_time

import numpy as np
from PIL import Image

from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.client import AsyncClient
from qwen3_vl_embed.errors import AdapterError, ItemError, NotNow
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.items import Item
from qwen3_vl_embed.sizing import Fleet, Times, rate, sizes

SHOWN = 6  # fleets
KEPT = 16  # callers of one client: httpx keeps 20 connections
MOST_ITEMS = 10_000  # in a pass that is simulated
BUSY_CLIENT = 0.8  # of a core, beyond which it is this program that is slow


def items(side: int, words: int) -> Iterator[Item]:
    """Without end, no two the same, or a cache would answer: texts of so many words; pictures where that is 0.

    A picture is a JPEG of smooth random colours. Its number stands behind its end, where no decoder looks.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    for number in count():
        if words:
            yield Item.text(" ".join(["word"] * (words - 1) + [str(number)]))
        else:
            yield Item("image", str(number), str(number), content=file.getvalue() + b"%012d" % number)


def read(passes: str, delay: float) -> Times:
    """The times in `1:0.005,64:0.126`. Raises SourceError."""
    try:
        pairs = [each.split(":") for each in passes.split(",")]
        found = {int(items): float(seconds) for items, seconds in pairs}
    except ValueError:
        pairs, found = [], {}
    good = all(1 <= items <= MOST_ITEMS and 1e-9 <= seconds < np.inf for items, seconds in found.items())
    if 1 not in found or len(found) < len(pairs) or not good:
        raise SourceError(
            f"--passes {passes} is not like 1:0.005,64:0.126: items, each number once, and seconds; 1 among them."
        )
    return Times(dict(sorted(found.items())), delay)


async def measure(url: str, given: Iterator[Item], seconds: float) -> Times:
    """Closed loops of so many seconds each, from 1 caller up to two full passes.

    Raises:
        AdapterError: there is no server, it does not embed these, or what it took is not what its passes take.
    """
    async with AsyncClient(url, notify=terminal.remark) as client:
        model = await client.model()
        most = int(model["warm_up"]["batch"])
        async for [first] in client.embed_each([next(given)]):
            if isinstance(first, ItemError):
                raise first
            if model["device"] != "cpu" and first.tokens:  # a CPU answers together what it took in together
                most = max(1, min(most, model["batch_tokens"] // first.tokens))
        callers = [1, *(2 * size for size in sizes(most))]
        try:
            rates = {each: await closed(url, given, each, seconds) for each in terminal.track(callers, "Measuring")}
        except NotNow as error:
            raise AdapterError(
                f"{error} What was measured is not what passes take: measure a server that has nothing else to do and "
                f"room for {callers[-1]} items (ADAPTER_MAX_PENDING_ITEMS)."
            ) from None
        if (await client.model())["warm_up"] != model["warm_up"]:
            raise AdapterError(f"The model of {client.url} started anew meanwhile: measure again.")
    return Times.of(rates, most)


async def closed(url: str, given: Iterator[Item], callers: int, seconds: float) -> float:
    """Items a second that so many callers get, each with one request at a time; from when each has had an answer.

    Raises NotNow from a server that is busy or away: to ask again would be part of what is measured.
    """
    ends: list[float] = []
    started, cpu = perf_counter(), process_time()

    async def caller(client: AsyncClient) -> None:
        while len(ends) < 2 * callers or perf_counter() - started < seconds:
            item = next(given)
            await (client.embed_text(item.name) if item.content is None else client.embed_image(item.content))
            ends.append(perf_counter())

    async with AsyncExitStack() as stack:
        clients = (AsyncClient(url, retry_for_s=0) for _ in range(0, callers, KEPT))
        opened = [await stack.enter_async_context(each) for each in clients]
        await asyncio.gather(*(caller(opened[number // KEPT]) for number in range(callers)))
    until = max(started + seconds, ends[2 * callers - 1])  # later ones are of passes that grow smaller
    if process_time() - cpu > BUSY_CLIENT * (ends[-1] - started):
        terminal.remark(f"{callers} callers kept this program's core busy: the server may do more than was measured.")
    return rate(np.array(ends), callers, until)


def show(times: Times, fleets: list[Fleet], rate: float, p99: float) -> None:
    """The fleets that were tried, the sufficient one last."""
    table = terminal.table()
    for name in ("GPUs", "of their best", "items a pass", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for gpus, found in fleets[-SHOWN:]:
        p50, last = (_written(1e3 * found.percentile(share)) for share in (50, 99))
        share = f"{rate / gpus / times.capacity:.0%}"
        table.add_row(str(gpus), share, f"{np.mean(found.passes):.3g}", p50, last)
    if fleets:
        terminal.out.print(table)
        terminal.out.print(f"GPUs for {rate:g} a second with a p99 of at most {p99:g} s: {fleets[-1].gpus}.")
    else:
        alone = times.delay + times.seconds(1)
        terminal.out.print(f"No number of these GPUs is enough: one item alone takes {alone:.3g} s, not {p99:g} s.")


def show_times(times: Times) -> None:
    """What was measured, as `--passes` and `--delay` take it."""
    passes = ",".join(f"{items}:{seconds:.4g}" for items, seconds in times.passes.items())
    told = f"A GPU embeds {times.capacity:,.4g} a second at most: --passes {passes} --delay {times.delay:.3g}"
    terminal.out.print(told, soft_wrap=True)


def show_total(times: Times, total: float, gpus: int) -> None:
    """How long so many items take that need not be answered soon."""
    hours = total / times.capacity / 3600
    told = f"{_written(hours)} GPU-hours; {_written(hours / gpus)} h on {gpus}"
    terminal.out.print(f"{total:,.0f} in all, in full passes: {told}.")


def _written(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
