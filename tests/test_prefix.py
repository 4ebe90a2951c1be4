"""The prefix cache: the same vectors as without, for every prompt, recipe and company."""

import numpy as np
import pytest

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.forward import packing
from embedder.prepare import sequence
from tests.reference import cosine, png, random_checkpoint

TEXTS = ["red", "dark teal", "a longer sentence, with punctuation!"]
RECIPES = [
    {"prompt": "embedding"},
    {"prompt": "embedding", "pooling": "mean"},
    {"prompt": "eol", "instruction": "Name the colour of what you are given, as exactly as you can."},
    {"prompt": "embedding", "layer": "attn"},
    {"prompt": "embedding", "layer": 2, "final_norm": False},
    {"prompt": "eol"},
    {"prompt": "none"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


def load(folder) -> Embedder:
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))


def inputs(options: dict) -> list[EmbedInput]:
    parsed = Options(**options)
    texts = [EmbedInput(text=text, options=parsed) for text in TEXTS]
    return [*texts, *(EmbedInput(image=png((120, 90 + 30 * i), i), options=parsed) for i in range(2))]


@pytest.fixture(scope="module")
def whole(folder):
    """Every recipe's vectors, nothing reused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "REUSED_FROM", 10**9)
        embedder = load(folder)
        return [[answer.vector for answer in embedder.embed(inputs(recipe))] for recipe in RECIPES]


def test_alone_and_in_mixed_company(folder, whole):
    embedder = load(folder)
    everything = [item for recipe in RECIPES for item in inputs(recipe)]
    expected = [vector for vectors in whole for vector in vectors]
    order = np.random.default_rng(0).permutation(len(everything))
    for index, answer in zip(order, embedder.embed([everything[i] for i in order]), strict=True):
        assert cosine(answer.vector, expected[index]) >= 0.99999
    one_of_each_kind = [
        pair for r, v in zip(RECIPES, whole, strict=True) for pair in [*zip(inputs(r), v, strict=True)][::3]
    ]
    for item, vector in one_of_each_kind:
        with embedder.model.capturing():
            assert cosine(embedder.embed([item])[0].vector, vector) >= 0.99999
        assert cosine(embedder.embed([item])[0].vector, vector) >= 0.99999  # replayed
    assert embedder.model.replay.works


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_computed(folder, recipe):
    """All but the prefix, and the tokens that are told are those of the whole sequence."""
    embedder = load(folder)
    prepared = [embedder.prepare(item) for item in inputs(recipe)]
    packed = packing.pack([item.sequence for item in prepared])
    total, skipped = sum(len(item.sequence) for item in prepared), sum(map(len, packed.prefixes))
    assert packed.input_ids.shape[1] == total - skipped
    assert (skipped > 0) == ("instruction" in recipe or recipe["prompt"] == "embedding")
    assert [answer.tokens for answer in embedder.embed(inputs(recipe))] == [len(item.sequence) for item in prepared]
    for item, ids in zip(prepared, packed.prefixes, strict=True):
        assert item.sequence.tokens.ids[: len(ids)].tolist() == list(ids)
        assert all(start >= len(ids) for start, _ in item.sequence.tokens.content)


def test_nothing_is_reused_while_weights_may_change(folder):
    embedder = load(folder)
    item = embedder.prepare(inputs(RECIPES[0])[0]).sequence
    whole = packing.pack([item], reuse=False)
    assert whole.prefixes == ((),)
    assert whole.input_ids.shape[1] == len(item)
    with pytest.raises(ValueError, match="reuse=False"):
        embedder.model.hidden(packing.pack([item]), [1], gradients=True)


def test_more_instructions_than_are_kept(folder):
    embedder = load(folder)
    asked = [Options(instruction=f"Describe thing number {n} in a word or two.") for n in range(70)]
    first = [embedder.embed([EmbedInput(text="red", options=options)])[0].vector for options in asked]
    again = [embedder.embed([EmbedInput(text="red", options=options)])[0].vector for options in reversed(asked)]
    for one, other in zip(first, reversed(again), strict=True):
        assert cosine(one, other) >= 0.99999


def test_a_long_instruction_is_computed_each_time(folder):
    """Its keys and values would fill the memory."""
    embedder = load(folder)
    for words, reused in ((20, True), (sequence.REUSED_TO, False)):
        options = Options(instruction="one " * words)
        assert bool(embedder.prepare(EmbedInput(text="red", options=options)).sequence.prefix) is reused
