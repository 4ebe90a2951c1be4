"""The benchmarks' programs count right, compare what is comparable, run to their last line, and agree with the docs."""

import asyncio
import json
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
    soak,
    table,
    targets,
)
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
            body = {"input": text or serve.traffic.data_url(item.image)}
            vector = np.array(client.post(path, json=body).raise_for_status().json()["embedding"])
            assert reference.cosine(vector, answer.vector) > 0.9999


def test_everyone_gives_the_same_vectors(wide):
    """Of texts and of images that nobody has to resize."""
    batch = [EmbedInput(text="red"), EmbedInput(image=reference.png((64, 96))), EmbedInput(text="a longer sentence")]
    installed = contenders.present()
    ours, *theirs = (each(str(wide), "cpu").embed(batch) for each in installed)
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


