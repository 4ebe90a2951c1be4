"""Captured forward passes: the same numbers as ordinary ones, for every input of the shape; nothing else replayed."""

from dataclasses import fields, is_dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.forward.packing import pack
from embedder.forward.recordings import Trace, tensors
from embedder.forward.replay import CAPACITY, agree, single
from tests.reference import png, random_checkpoint

TEXTS = [EmbedInput(text=text) for text in ("red", "tan", "blue", "sky")]  # two of one length
SWATCHES = [EmbedInput(image=png((244, 244), seed)) for seed in range(3)]
ALL = frozenset([4])  # the layers of the tiny checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture
def embedder(folder):
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))


def replay(embedder):
    return embedder.model.replay


def record(embedder, inputs):
    with embedder.model.capturing():
        for item in inputs:
            embedder.embed([item])


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"layer": "attn"}, {"layer": 2, "final_norm": False}])
@pytest.mark.parametrize("inputs", [TEXTS, SWATCHES], ids=["texts", "swatches"])
def test_a_replayed_pass_is_an_ordinary_one(embedder, inputs, options):
    inputs = [EmbedInput(item.text, item.image, Options(**options)) for item in inputs]
    sequences = {len(embedder.prepare(item).sequence): item for item in inputs}
    ordinary = [embedder.embed([item])[0].vector for item in inputs]
    record(embedder, inputs)
    again = [embedder.embed([item])[0].vector for item in inputs]
    assert replay(embedder).works
    assert len(replay(embedder).captured) == len(sequences)
    for first, last in zip(ordinary, again, strict=True):
        np.testing.assert_allclose(last, first, atol=1e-6)
    assert len({vector.tobytes() for vector in again}) == len(inputs)  # each read its own input


def test_no_callers_pass_is_captured(embedder):
    for _ in range(5):
        embedder.embed(TEXTS[:1])
    assert not replay(embedder).captured


def test_captured_passes_are_bounded(embedder, monkeypatch):
    monkeypatch.setattr("embedder.forward.replay.CAPACITY", 2)
    assert CAPACITY > 2
    for length in range(1, 5):
        record(embedder, [EmbedInput(text="red " * 3 * length)])
    assert len(replay(embedder).captured) == 2


def test_a_capture_that_gives_something_else_is_not_trusted(embedder, caplog):
    class Wrong:
        def __init__(self, run, *given):
            self.states = run(*given)

        def replay(self, packed, rows):
            return {layer: state + 1 for layer, state in self.states.items()}

    replay(embedder).capture = Wrong
    expected = embedder.embed([TEXTS[0]])[0].vector
    record(embedder, TEXTS[:1])
    np.testing.assert_array_equal(embedder.embed([TEXTS[0]])[0].vector, expected)
    assert not replay(embedder).captured
    assert "gave other vectors and is not used" in caplog.text
    replay(embedder).capture = Trace
    record(embedder, SWATCHES[:1])
    assert len(replay(embedder).captured) == 1  # another shape is


def test_a_pass_that_cannot_be_captured_runs_as_it_is(embedder, caplog):
    def refuses(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    replay(embedder).capture = refuses
    expected = embedder.embed([TEXTS[0]])[0].vector
    record(embedder, TEXTS[:1])
    np.testing.assert_array_equal(embedder.embed([TEXTS[0]])[0].vector, expected)
    assert "forward passes are not captured" in caplog.text


def test_a_wrong_channel_is_seen_beside_a_huge_one():
    """Before the norm, a thousandth of the states' length may be all that tells two inputs apart."""
    states = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    states[:, 0] = 1000
    wrong = states.clone()
    wrong[1, 1:] = -wrong[1, 1:]

    def norm(rows):
        return rms_norm(rows, (64,), torch.cat([torch.tensor([0.01]), torch.ones(63)]))  # as real models weigh it

    assert (wrong - states).norm() <= 0.01 * states.norm()
    assert agree(norm(states), norm(states + 1e-3))
    assert not agree(norm(wrong), norm(states))


def test_a_shape_is_all_that_a_capture_does_not_read_anew(embedder):
    """Of two passes of one shape every tensor is either handed to the capture, or equal."""
    rows = torch.tensor([3])
    for items in (TEXTS, SWATCHES):
        packed = [pack([embedder.prepare(item).sequence]) for item in items]
        first, second = next(
            pair for pair in combinations(packed, 2) if single(pair[0], ALL, rows) == single(pair[1], ALL, rows)
        )
        given = {id(tensor) for packed in (first, second) for tensor in tensors(packed, rows)}
        for ours, theirs in zip(held(first), held(second), strict=True):
            assert id(ours) in given or torch.equal(ours, theirs)


def held(value):
    """Every tensor in a dataclass, however deep."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from held(getattr(value, field.name))


def test_batches_and_long_inputs_have_no_shape(embedder):
    sequence = embedder.prepare(TEXTS[0]).sequence
    long = embedder.prepare(EmbedInput(text="red " * 600)).sequence
    assert single(pack([sequence, sequence]), ALL, None) is None
    assert single(pack([long]), ALL, None) is None
