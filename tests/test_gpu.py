"""What only a GPU runs: the varlen kernel, CUDA graphs, bfloat16 on the device. Skipped where there is none."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.forward import buckets, fastest
from embedder.forward.attention import Bounds, PassContext, packed_attention
from embedder.forward.float8 import Float8Linear
from embedder.forward.operations import to_float8
from lab.benchmarks import inputs
from lab.benchmarks.gpu_checks.timing import replayed_seconds
from tests.conftest import CHECKPOINT
from tests.reference import TEXTS, cosine, png, random_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
INPUTS = [EmbedInput(text=text) for text in TEXTS] + [EmbedInput(image=png((244, 244), seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def embedder(folder):
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cuda"))


@pytest.mark.parametrize("causal", [True, False])
def test_the_varlen_kernel_is_softmax_attention_within_each_sequence(causal):
    bounds = Bounds.of([5, 64, 64, 300], "cuda")
    shapes = ((16, 433, 64), (4 if causal else 16, 433, 64), (4 if causal else 16, 433, 64))
    q, k, v = (torch.randn(1, *shape, device="cuda") for shape in shapes)
    module = torch.nn.Module()
    module.is_causal = causal
    expected, _ = packed_attention(module, q, k, v, None, 0.125, PassContext(bounds))  # float32: grouped
    ours, _ = packed_attention(module, *(tensor.bfloat16() for tensor in (q, k, v)), None, 0.125, PassContext(bounds))
    torch.testing.assert_close(ours.float(), expected, atol=0.03, rtol=0.03)


def test_the_gpu_gives_the_cpus_vectors(folder, embedder):
    reference = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    for ours, theirs in zip(embedder.embed(INPUTS), reference.embed(INPUTS), strict=True):
        assert cosine(ours.vector, theirs.vector) >= 0.999


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"layer": "attn"}, {"layer": 2}])
def test_a_replayed_pass_is_an_ordinary_one(embedder, options):
    inputs = [EmbedInput(item.text, item.image, Options(**options)) for item in INPUTS]
    batched = embedder.embed(inputs)
    with embedder.model.capturing():
        captured = [embedder.embed([item])[0] for item in inputs]
    replayed = [embedder.embed([item])[0] for item in inputs]  # with other shapes in between
    for alone in (captured, replayed):
        for one, together in zip(alone, batched, strict=True):
            assert cosine(one.vector, together.vector) >= 0.999
    assert embedder.model.replay.works
    assert embedder.model.replay.captured
    assert embedder.model.replay.replayed >= len(inputs)


def test_the_fused_operations_are_those_that_are_served(embedder):
    """They compile here and agree with torch's own. Of images' attention only what was measured is served."""
    model = embedder.model.model
    served = fastest.suited(model, fastest.fused_operations())
    assert embedder.model.operations == served
    assert embedder.info["fused"] == served.fused
    assert all(fastest.agrees(name, served, model) for name in served.fused)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_batches_of_any_lengths_are_replayed(embedder, count):
    batch = [EmbedInput(text=text) for text in TEXTS[:count]]
    with embedder.model.capturing():
        first = embedder.embed(batch)
    replayed = embedder.model.replay.replayed
    for again, before in zip(embedder.embed(batch[::-1]), first[::-1], strict=True):
        assert cosine(again.vector, before.vector) >= 0.999
    tokens = sum(len(embedder.prepare(item).sequence) for item in batch)
    assert embedder.model.replay.replayed == replayed + (tokens < max(buckets.TEXTS))


def test_prefixes_are_those_of_whole_sequences(embedder, monkeypatch):
    """By the varlen kernel, with more keys than queries."""
    batch = [EmbedInput(item.text, item.image, Options(prompt="embedding")) for item in INPUTS]
    kept = embedder.embed(batch)
    monkeypatch.setattr("embedder.prepare.sequence.REUSED_FROM", 10**9)
    for ours, whole in zip(kept, embedder.embed(batch), strict=True):
        assert cosine(ours.vector, whole.vector) >= 0.999


def test_prefixes_in_float32(folder):
    """Without the varlen kernel: heads of keys are repeated for those of queries, the prefix's too."""
    batch = [EmbedInput(item.text, item.image, Options(prompt="embedding")) for item in INPUTS]
    reference, ours = (
        Embedder.load(EmbedderConfig(checkpoint=str(folder), device=device, dtype="float32"))
        for device in ("cpu", "cuda")
    )
    for one, other in zip(ours.embed(batch), reference.embed(batch), strict=True):
        assert cosine(one.vector, other.vector) >= 0.99999


def test_a_model_after_another_one_is_captured_too(folder, embedder):
    """Graphs share a pool of memory, which is gone with the last of them."""
    expected = embedder.embed(INPUTS[:1])[0].vector
    for _ in range(2):
        model = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cuda"))
        model.warm_up()
        assert len(model.model.replay.captured) > 20
        assert cosine(model.embed(INPUTS[:1])[0].vector, expected) >= 0.999
        del model
        gc.collect()


def test_a_replay_reads_its_own_input(embedder):
    swatches = [EmbedInput(image=png((244, 244), seed)) for seed in range(8)]
    batched = np.stack([answer.vector for answer in embedder.embed(swatches)])
    with embedder.model.capturing():
        embedder.embed(swatches[:1])
    alone = np.stack([embedder.embed([swatch])[0].vector for swatch in swatches])
    assert (np.argmax(alone @ batched.T, axis=1) == np.arange(8)).all()


def test_what_is_timed_in_a_graph_is_run():
    """Once by itself, then by replays of a graph that holds the call five times."""
    runs = torch.zeros((), device="cuda")
    assert replayed_seconds(lambda: runs.add_(1), "cuda", calls=5) > 0
    replays = (int(runs) - 1) / 5
    assert replays == int(replays) >= 3


since_ada = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="8-bit floats are since sm_89"
)


@since_ada
def test_8_bit_weights_give_nearly_the_same_vectors():
    """The shipped checkpoint's, batched and replayed. On a CPU the least of the first is 0.9987."""
    exact, rounded = (
        Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cuda", weights=weights))
        for weights in ("auto", "float8")
    )
    assert rounded.info["weights"] == "float8_e4m3fn"
    assert 0.99 <= rounded.info["weights_cosine"] < 0.99999
    items = [*inputs.batch("name", 24), *inputs.batch("swatch", 24)]
    batched = rounded.embed(items)
    for ours, theirs in zip(batched, exact.embed(items), strict=True):
        assert cosine(ours.vector, theirs.vector) >= 0.99
    with rounded.model.capturing():
        rounded.embed(items[:1])
    replayed = rounded.embed(items[:1])[0]
    assert rounded.model.replay.replayed
    assert cosine(replayed.vector, batched[0].vector) >= 0.995


@since_ada
@pytest.mark.parametrize("activation", ["", "gelu", "silu_mul"])
def test_the_kernel_of_8_bit_floats_is_torchs_form(activation):
    """At the 4B's widths, all but numbers in the middle between two. A product with a bias is that of these numbers."""
    from embedder.forward import kernels

    width = {"": 2560, "gelu": 4096, "silu_mul": 9728}[activation]
    given = torch.randn(33, width * (2 if activation == "silu_mul" else 1), device="cuda", dtype=torch.bfloat16) * 3
    given[0], given[1, 5] = 0, torch.nan
    (ours, scale), (exact, exact_scale) = (form(given, activation) for form in (kernels.to_float8, to_float8))
    torch.testing.assert_close(scale[2:], exact_scale[2:], atol=0, rtol=1e-5)
    assert (ours[2:].float() != exact[2:].float()).float().mean() <= 1e-2
    torch.testing.assert_close(ours[2:].float(), exact[2:].float(), atol=2**-9, rtol=0.13)  # a step at most
    assert (ours[0].float() == 0).all()
    assert ours[1, 5].float().isnan()
    linear = Float8Linear(torch.nn.Linear(width, 1024, device="cuda", dtype=torch.bfloat16)).requires_grad_(False)
    product = linear(given, activation)
    wanted = (ours.double() * scale) @ (linear.weight.double() * linear.scale.t()).t() + linear.bias
    assert (product[2:] - wanted[2:]).norm() / wanted[2:].norm() <= 1e-2
    assert product[1].isnan().all()
    for count in (1, 2, 15, 127, 256, 257, 600):  # few rows of many numbers are what cuBLAS may not have
        some = linear(given[2:].repeat(20, 1)[:count], activation).double()
        assert (some - wanted[2:].repeat(20, 1)[:count]).norm() / some.norm() <= 1e-2


SECOND = """
import sys, torch
from embedder import Embedder, EmbedderConfig, EmbedInput
from embedder.pipeline import Pipeline, Request
from threading import Event
embedder, answered = Embedder.load(EmbedderConfig(checkpoint=sys.argv[1], device="cuda:1")), Event()
embedder.warm_up()
pipeline = Pipeline(embedder, 4)
pipeline.submit(Request([EmbedInput(text="red")], lambda answers: answered.set(), lambda: False))
answered.wait()
pipeline.close()
sys.exit(torch._C._cuda_hasPrimaryContext(0))
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_an_instance_on_the_second_gpu_takes_nothing_of_the_first(folder):
    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", SECOND, folder], env=found, check=False).returncode == 0
