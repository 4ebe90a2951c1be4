"""The simulation of a fleet agrees with what queueing theory knows, and `size` with a real server."""

import asyncio
import json
from itertools import islice

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lab.benchmarks import checkpoints, sizing
from qwen3_vl_embed.cli import size
from qwen3_vl_embed.cli.__main__ import app
from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.sizing import Times, arrivals, needed, rate, simulate

GPU = Times({1: 0.005, 64: 0.126}, 0.002)  # seconds, about those of an H100 with swatches


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_passes_of_one_wait_as_long_as_the_formula_says(load):
    """M/D/1: the mean wait is load × service / (2 (1 − load)) (Pollaczek and Khinchine)."""
    service = 0.01
    latencies = simulate(Times({1: service}), arrivals(load / service, 200_000)).latencies
    assert latencies.mean() == pytest.approx(service + load * service / (2 * (1 - load)), rel=0.05)


def test_alone_it_takes_a_pass_and_the_way():
    found = simulate(GPU, np.arange(10.0))
    assert found.latencies == pytest.approx(np.full(10, 0.007))
    assert found.passes == [1] * 10


def test_a_crowd_goes_in_full_passes():
    """The first at once and alone, then 64 at a time, first come, first served."""
    found = simulate(GPU, np.zeros(129))
    assert found.passes == [1, 64, 64]
    assert found.latencies[[0, 1, 64, 65, 128]] == pytest.approx([0.007, 0.133, 0.133, 0.259, 0.259])
    assert GPU.capacity == pytest.approx(64 / 0.126)


def test_the_throughput_is_that_of_full_passes_and_no_more():
    """Of twice the capacity half is done in the time that it came in."""
    came = arrivals(2 * GPU.capacity, 20_000)
    ended = came + simulate(GPU, came).latencies
    assert len(came) / ended.max() == pytest.approx(GPU.capacity, rel=0.01)


def test_nobody_waits_longer_where_there_are_more():
    came = arrivals(400, 20_000)
    p99 = [simulate(GPU, came, gpus).percentile(99) for gpus in (1, 2, 4, 8)]
    assert p99 == sorted(p99, reverse=True)
    assert p99[-1] >= 0.007


def test_a_fleet_is_as_small_as_may_be():
    tried = needed(GPU, 400, 0.015)
    assert [fleet.gpus for fleet in tried] == [1, 2, 3]
    assert [fleet.found.percentile(99) <= 0.015 for fleet in tried] == [False, False, True]
    assert needed(GPU, 1000, 1)[0].gpus == 3  # two are full with 1,000 a second, however long one waits
    assert needed(GPU, 1, 0.006) == []  # not even alone


def test_a_p99_of_what_one_item_takes_is_reached():
    assert needed(GPU, 100, GPU.delay + GPU.seconds(1))[-1].gpus > 1
    assert needed(Times({1: 0.1}, 0.2), 1, 0.3)  # 0.1 + 0.2 is more than 0.3


@pytest.mark.parametrize(("rate", "p99"), [(1e9, 1), (500, 86400), (1e9, 0.0071)])
def test_more_than_can_be_simulated_is_refused(rate, p99):
    with pytest.raises(ValueError, match="too many to simulate"):
        needed(GPU, rate, p99)


def test_the_same_seed_is_the_same_answer():
    first, again, other = (needed(GPU, 300, 0.1, seed)[-1].found.percentile(99) for seed in (1, 1, 2))
    assert first == again != other


def test_times_are_read_off_closed_loops():
    """Of 2n callers who come back at once, n are in a pass while n wait: what the simulation itself would show."""
    rates = {callers: callers / 2 / GPU.seconds(callers // 2) for callers in (2, 8, 32, 128)}
    found = Times.of(rates | {1: 1 / 0.007})
    assert found.delay == pytest.approx(0.002)
    assert [found.seconds(items) for items in (1, 2, 30, 64)] == pytest.approx(list(map(GPU.seconds, (1, 2, 30, 64))))


def run(*words: str):
    return CliRunner().invoke(app, ["size", *words])


def test_size_without_a_server():
    result = run("--rate", "1000", "--p99", "0.05", "--passes", "1:0.005,64:0.126", "--total", "1e9")
    assert result.exit_code == 0, result.stderr
    assert "GPUs for 1000 a second with a p99 of at most 0.05 s: 3." in result.stdout
    assert "547 GPU-hours; 182 h on 3" in result.stdout  # 10⁹ × 0.126 / 64 s


@pytest.mark.parametrize("option", ["--rate", "--p99", "--delay", "--total", "--seconds", "--seed", "--words"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_a_number_that_is_none_is_refused(option, value):
    result = run("--rate", "1", "--passes", "1:0.005", option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"'{option}'" in result.stderr


class Short:
    """A server for `measure`: one more caller than `room` is told to come again, or the model starts anew meanwhile."""

    def __init__(self, room: int = 1000, starts: int = 1):
        self.room, self.starts, self.inside, self.asked = room, starts, 0, 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/info":
            self.asked += 1
            warm_up = {"batch": 4, "text": min(self.asked, self.starts)}
            model = {"id": "m", "device": "cpu", "warm_up": warm_up, "limits": {"max_image_bytes": 1}}
            return httpx.Response(200, json={"adapter": {"limits": {"max_items": 4}}, "model": model})
        if self.inside == self.room:
            return httpx.Response(429, headers={"Retry-After": "1"}, json={"error": {"message": "Too many."}})
        self.inside += 1
        await asyncio.sleep(0.01)
        self.inside -= 1
        one = [1.0] if isinstance(json.loads(request.content)["input"], str) else [[1.0]]
        return httpx.Response(200, headers={"x-model": "m"}, json={"embedding": one})


@pytest.mark.parametrize(
    ("server", "said"),
    [(Short(room=4), "room for 8 items"), (Short(starts=1000), "started anew meanwhile: measure again")],
)
def test_what_was_not_passes_alone_is_no_measurement(server, said, monkeypatch):
    transport = httpx.MockTransport(server)
    monkeypatch.setattr(httpx.AsyncClient, "_init_transport", lambda *args, **kwargs: transport)
    with pytest.raises(AdapterError, match=said):
        asyncio.run(size.measure("http://gpu-box", size.items(32, 1), 0.1))


def test_size_says_when_no_number_is_enough():
    result = run("--rate", "1", "--p99", "0.004", "--passes", "1:0.005,64:0.126")
    assert result.exit_code == 1
    assert "one item alone takes 0.005 s, not 0.004 s" in result.stdout


@pytest.mark.parametrize(
    "passes", ["", "5", "64:0.1", "1:0.005,64:x", "1:-1", "1:nan", "0:1,1:1", "1:1,1:2", "1:1,1000000000:2"]
)
def test_passes_that_are_none_are_a_sentence(passes):
    result = run("--rate", "1", "--passes", passes)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not like 1:0.005,64:0.126" in result.stderr


def test_no_two_items_are_the_same():
    for words in (0, 3):
        some = [item.read() for item in islice(size.items(64, words), 100)]
        assert len(set(some)) == 100


@pytest.mark.stack
@pytest.mark.parametrize("first", [1, 6, 40, 62])
def test_the_rate_of_a_closed_loop_is_of_whole_passes(first):
    """Of 128 callers two are on their way when a pass begins: of 62 each, 2 or 3 end within as many answers."""
    sizes = [first] + [62] * 8
    ends = np.concatenate([4.0 * number + 0.001 * np.arange(size) for number, size in enumerate(sizes)])
    found = [rate(ends, 128, ends[answers - 1]) for answers in range(256, 400)]
    assert found == pytest.approx([62 / 4] * len(found), rel=0.01)


def test_where_passes_run_into_each_other_the_rate_is_of_all_answers():
    ends = np.arange(1000) / 500
    assert rate(ends, 32, 1.5) == pytest.approx(500, rel=0.01)


@pytest.mark.benchmarks
@pytest.mark.parametrize("kind", [["--words", "3"], ["--side", "64"]])
def test_size_measures_a_server(stack, kind):
    """And prints what another call can take in place of it."""
    result = run("--rate", "1", "--p99", "30", "--seconds", "0.1", "--url", stack.adapter_url, *kind)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    measured = result.stdout.split("at most: ")[1].splitlines()[0]
    again = run("--rate", "1", "--p99", "30", *measured.split())
    assert again.exit_code == 0, again.stderr
    assert (
        again.stdout.splitlines()[-1]
        == result.stdout.splitlines()[-1]
        == "GPUs for 1 a second with a p99 of at most 30 s: 1."
    )


@pytest.mark.benchmarks
@pytest.mark.stack
def test_the_benchmark_tells_prediction_and_measurement_at_each_load(tmp_path):
    """How near they are is the benchmark's to say, on a quiet machine: docs/performance.md."""
    shape = {**checkpoints.SMALL, "text_config": checkpoints.SMALL["text_config"] | {"num_hidden_layers": 4}}
    model = checkpoints.drawn(checkpoints.outline(shape, tmp_path / "30m"), torch.float32, "cpu")
    model.save_pretrained(tmp_path / "30m")
    words = ["--checkpoint", str(tmp_path / "30m"), "--rounds", "1", "--seconds", "4", "--results", str(tmp_path)]
    result = CliRunner().invoke(sizing.app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    figures = json.loads(result.stdout.splitlines()[-1])["figures"]
    ratios = [ratio for row in figures["rows"] for ratio in row["ratio"].values()]
    assert len(ratios) == 9
    assert min(ratios) > 0
