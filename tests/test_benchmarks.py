"""The benchmarks' programs count right, compare what is comparable, run to their last line, and agree with the docs."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoProcessor, Qwen3VLModel
from typer.testing import CliRunner

from embedder import Embedder, EmbedderConfig, EmbedInput
from lab.benchmarks import (
    blocks,
    checkpoints,
    contenders,
    fleets,
    flops,
    forward,
    growth,
    inputs,
    load,
    overload,
    peers,
    plan_service,
    results,
    serve,
    sizing,
    soak,
    table,
    targets,
)
from qwen3_vl_embed.protocol import data_url
from tests import reference

TINY = str(checkpoints.TINY)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Random weights, and images of up to 256×256 pixels, so that attention over patches counts."""
    return reference.random_checkpoint(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize("item", [EmbedInput(text="very dark teal"), EmbedInput(image=reference.png((256, 192)))])
def test_flops_are_those_that_torch_counts(wide, item):
    """torch counts attention's whole square (and none of the CPU's fused kernel), and a still image has two frames."""
    config = json.loads((wide / "config.json").read_text())
    model = Qwen3VLModel.from_pretrained(wide, attn_implementation="sdpa").eval()
    inputs_ = contenders.rendered(AutoProcessor.from_pretrained(wide), contenders.conversations([item]), "cpu")
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs_, use_cache=False)
    tokens = inputs_["input_ids"].shape[1]
    patches = len(inputs_["pixel_values"]) if item.image else 0
    ours = flops.count(config, tokens, patches)
    second_frame = 2 * patches * 3 * 16 * 16 * config["vision_config"]["hidden_size"]
    square = ours.total - ours.language_attention + ours.language_attention * 2 * tokens / (tokens + 1) + second_frame
    assert counter.get_total_flops() == pytest.approx(square, rel=0.02)


def test_the_4b_has_the_published_number_of_weights():
    """3.63 thousand million in the language model but its embedding table; 4.44 with table and vision."""
    config = json.loads(checkpoints.PUBLISHED.read_text())
    assert flops.language_weights(config) == pytest.approx(3.63e9, rel=0.01)
    swatch = flops.count(config, 84, 256)
    assert swatch.language == pytest.approx(0.61e12, rel=0.02)
    assert swatch.vision + swatch.vision_attention + swatch.mergers == pytest.approx(0.17e12, rel=0.15)


def test_the_plan_service_answers_with_our_vectors(wide):
    items = [("/txt/embed", "rust", EmbedInput(text="rust")), ("/img/embed", None, EmbedInput(image=reference.png()))]
    ours = Embedder.load(EmbedderConfig(checkpoint=str(wide), device="cpu")).embed([item for *_, item in items])
    with TestClient(plan_service.create_app(str(wide), "cpu")) as client:
        for (path, text, item), answer in zip(items, ours, strict=True):
            body = {"input": text or data_url(item.image)}
            vector = np.array(client.post(path, json=body).raise_for_status().json()["embedding"])
            assert reference.cosine(vector, answer.vector) > 0.9999


def test_everyone_gives_the_same_vectors(wide):
    """Of texts and of images that nobody has to resize."""
    batch = [EmbedInput(text="red"), EmbedInput(image=reference.png((64, 96))), EmbedInput(text="a longer sentence")]
    installed = contenders.present()
    ours, *theirs = (each(str(wide), "cpu", "float32").embed(batch) for each in installed)
    for contender, vectors in zip(installed[1:], theirs, strict=True):
        assert (vectors * ours).sum(axis=1).min() > 0.9999, contender.name
    if contenders.SentenceTransformers not in installed:
        pytest.skip("sentence-transformers is not installed (make bench-setup); the others agree")


@contextmanager
def always(answer: bytes) -> Iterator[str]:
    """The address of a server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_load_client_tells_what_it_saw():
    requests = [load.request("/txt/embed", {"input": "red"})]
    with always(b'{"embedding":[1]}') as url:
        assert load.replay(url, requests * 3) == [b'{"embedding":[1]}'] * 3
        closed = load.closed(url, requests, 4, 0.1)
        opened = load.open_loop(url, requests, rate=200, seconds=0.2)
    assert len(opened.latencies) == 40
    assert closed.figures()["requests_per_s"] == pytest.approx(len(closed.latencies) / closed.seconds)


@asynccontextmanager
async def answering(*answers: bytes):
    """The address of a server that answers each connection with the next of these, once; the last says no more."""
    turns = iter(answers)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(turns))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


BUSY = b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy"


async def test_the_load_client_refuses_what_is_not_200():
    async with answering(BUSY) as url:
        connection = await load.Connection.open(url)
        with pytest.raises(load.LoadError, match=r"429 Too Many.*busy"):
            await connection.send(load.request("/", {}))
        connection.close()


async def test_an_open_loop_tells_what_became_of_each_request():
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", BUSY, b"HTTP/1.1 2"]
    async with answering(*answers) as url:
        outcomes = await load.arrive(url, repeat(load.request("/", {})), rate=100, seconds=0.03, connections=1)
    assert [(outcome.status, outcome.says_when) for outcome in outcomes] == [(200, False), (429, True), (0, False)]
    assert [bool(outcome.failure) for outcome in outcomes] == [False, True, True]
    assert all(outcome.latency > 0 for outcome in outcomes)


@pytest.mark.benchmarks
@pytest.mark.parametrize("program", [forward, peers, growth])
def test_a_program_ends_in_its_result(program, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "points", lambda quick: [growth.Point("batch", 2, 2, inputs.SWATCH)])
    check_run(program, tmp_path, ["--quick"])


@pytest.mark.benchmarks
@pytest.mark.stack
def test_serve_ends_in_its_result(tmp_path):
    document = check_run(serve, tmp_path, ["--quick", "--part", "replay", "--part", "share"])
    assert document["figures"]["least_cosine"] > 0.9999
    assert document["figures"]["replay"]["requests"] == 32


@pytest.mark.benchmarks
@pytest.mark.stack
@pytest.mark.parametrize("program", [overload, soak])
def test_what_loads_the_stack_ends_in_its_result(program, tmp_path):
    before = os.sched_getaffinity(0), os.environ.copy()
    check_run(program, tmp_path, ["--quick"])
    assert (os.sched_getaffinity(0), os.environ.copy()) == before


def check_run(program, folder: Path, options: list[str]) -> dict:
    """It succeeds, says its ceiling first, and its last line is the JSON that it left as a file."""
    result = CliRunner().invoke(program.app, [*options, "--results", str(folder)])
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads(result.stdout.splitlines()[-1])
    assert [json.loads(path.read_text()) for path in folder.glob("*.json")] == [document]
    assert_is_result(document)
    return document


def assert_is_result(document: dict):
    assert {"program", "checkpoint", "command", "date", "commit", "hardware", "versions", "ceiling", "workload",
            "figures"} == set(document)  # fmt: skip
    assert document["ceiling"]["matmul_flops"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", document["date"])
    assert {"device", "processor", "cores", "memory_gib"} == set(document["hardware"])


@pytest.mark.parametrize("program", [forward, peers, growth, serve, overload, sizing, soak, table])
def test_help_has_an_example(program):
    assert (
        "Example: python -m lab.benchmarks."
        in CliRunner().invoke(program.app, ["--help"], env={"COLUMNS": "200"}).stdout
    )


def test_committed_results_are_whole_and_not_quick():
    for (program, checkpoint, _), document in results.read().items():
        assert_is_result(document)
        assert (document["program"], document["checkpoint"]) == (program, checkpoint)
        assert "--quick" not in document["command"]


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.name)
def test_pages_hold_what_the_results_say(page):
    assert page.read_text() == table.filled(page.read_text(), results.read()), "run: python -m lab.benchmarks.table"


def test_a_missed_target_stays_with_what_stands_in_its_way():
    key = ("peers", "tiny", "cpu")
    target = targets.Target("CPU", "speed", key, 2, lambda figures: figures["x"])
    assert target.cells({key: {"figures": {"x": 3.0}}})[3:] == ["**3.00×**", "reached"]
    assert target.cells({key: {"figures": {"x": 1.5}}})[3:] == ["**1.50×**", "missed: see the log"]
    gpu = [each for each in targets.TARGETS if each.key[2] == "cuda"]
    assert gpu
    assert all("needs a GPU: `make bench-gpu`" in each.cells({})[4] for each in gpu)


def test_a_gpu_check_that_was_cut_off_still_fills_the_pages(monkeypatch):
    """Its document is written after each check: what the later ones would have found is missing, and said to be."""
    monkeypatch.setattr(fleets.Case, "gpus", lambda case, rate: "some")  # their simulation takes seconds
    busy = "a pass is on the device, of the time: swatches through the pipeline"
    whole = results.read()[targets.GPU]
    begun = whole | {"figures": {"counts": whole["figures"]["counts"], "busy": 0.9, "checks": []}}
    performance, *others = (table.filled(page.read_text(), {targets.GPU: begun}) for page in table.PAGES)
    assert "Not measured yet." in performance
    assert all(others)
    asked = [each for each in targets.TARGETS if each.key == targets.GPU]
    measured = [each.what for each in asked if each.value({targets.GPU: begun}) is not None]
    assert {each.what for each in asked if each.value({targets.GPU: whole}) is None} <= {busy}
    assert [what for what in measured if "`gpu_check`" not in what and "the same: lines" not in what] == [busy]


def test_shares_of_a_pass_are_of_its_whole_time(tmp_path):
    """The profiler may make a pass longer than it is: then nothing is left for no kernel."""
    parts = {"attention": 0.02, "products": 0.05, "copies": 0.0, "elementwise": 0.01}
    rows = [{"what": "a pass", "items": 64, "seconds": seconds, "parts": parts} for seconds in (0.1, 0.079)]
    for row, idle in zip(rows, (0.2, 0.0), strict=True):
        found = dict(blocks.shares(row))
        assert sum(found.values()) == pytest.approx(1)
        assert found["no kernel"] == pytest.approx(idle)
        assert found["products"] / found["attention"] == pytest.approx(2.5)
    result = {"checkpoint": "4b", "hardware": {"device": "a GPU"}, "figures": {"split": rows}}
    assert "| a pass | 64 | 100 | 20% | 50% | 0% | 10% | 20% |" in blocks.split({targets.GPU: result})
    table.bars(result, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5_000


def test_every_block_has_its_place():
    names = [name for page in table.PAGES for _, name, _ in table.MARKED.findall(page.read_text())]
    assert sorted(names) == sorted(blocks.BLOCKS)
