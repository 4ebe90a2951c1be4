"""The embedder's promises: one bad input fails alone, options do what they say, no vector that is none."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from threading import Event

import numpy as np
import pytest
import torch

from embedder import Embedder, EmbedderConfig, EmbedInput, InferenceFailed, InvalidInput, Options
from embedder.forward.operations import TORCH
from embedder.prepare.calibration import fit, save
from embedder.prepare.prompts import PROMPTS
from tests.reference import cosine, png, random_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture
def embedder(folder):
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))


def one(embedder, item):
    (answer,) = embedder.embed_each([item])
    return answer


RED, PICTURE = EmbedInput(text="red"), EmbedInput(image=png())


def with_options(item, **options):
    return EmbedInput(item.text, item.image, Options(**options))


def test_bad_inputs_fail_alone(embedder):
    bad = [
        EmbedInput(text=""),
        EmbedInput(image=b"no image"),
        EmbedInput(),
        EmbedInput(text="x " * 10**5),
        with_options(RED, dimensions=129),
        with_options(PICTURE, min_pixels=2**16 + 1),
        with_options(PICTURE, max_pixels=2**20),
    ]
    answers = embedder.embed_each([RED, *bad, PICTURE])
    assert all(isinstance(answer, InvalidInput) and len(str(answer)) < 200 for answer in answers[1:-1])
    assert cosine(answers[0].vector, one(embedder, RED).vector) > 0.99999
    assert cosine(answers[-1].vector, one(embedder, PICTURE).vector) > 0.99999
    with pytest.raises(InvalidInput, match=str(answers[1])):  # the first one's
        embedder.embed([RED, *bad, PICTURE])


def test_what_is_prepared_or_refused_already_goes_on_so(embedder):
    prepared, refused = embedder.prepare(RED), InvalidInput("not this one")
    answers = embedder.embed_each([PICTURE, refused, prepared])
    assert answers[1] is refused
    assert answers[2].preprocess_ms == prepared.preprocess_ms
    for answer, item in ((answers[0], PICTURE), (answers[2], RED)):
        assert cosine(answer.vector, one(embedder, item).vector) > 0.99999


def test_a_failing_forward_pass_takes_only_its_own_item(embedder, monkeypatch):
    hidden = embedder.model.hidden

    def fails_on_images(packed, *arguments):
        if packed.images is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(packed, *arguments)

    monkeypatch.setattr(embedder.model, "hidden", fails_on_images)
    answers = embedder.embed_each([RED, PICTURE, EmbedInput(text="blue")])
    assert isinstance(answers[1], InferenceFailed)
    assert "out of memory" not in str(answers[1])  # for the log, not for the caller
    assert cosine(answers[0].vector, one(embedder, RED).vector) > 0.99999


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_what_is_no_vector_is_never_served(embedder, monkeypatch, value):
    monkeypatch.setattr(embedder.model, "final_norm", lambda rows: torch.full_like(rows, value))
    for options in ({}, {"normalize": False}, {"pooling": "mean"}, {"dimensions": 8}):
        answer = one(embedder, with_options(RED, **options))
        assert isinstance(answer, InferenceFailed)
        assert "is not served" in str(answer)


def test_options(embedder):
    full = one(embedder, RED).vector
    assert full.dtype == np.float32
    assert full.shape == (embedder.model.dimension,)
    raw = one(embedder, with_options(RED, normalize=False)).vector
    assert abs(np.linalg.norm(raw) - 1) > 0.1  # as it was pooled
    assert cosine(raw, full) > 0.999999
    short = one(embedder, with_options(RED, dimensions=16)).vector
    np.testing.assert_allclose(short, full[:16] / np.linalg.norm(full[:16]), atol=1e-5)  # truncated, then normalised
    for item in (RED, PICTURE):
        plain = one(embedder, item).vector
        for changed in ({"pooling": "mean"}, {"instruction": "Name the colour."}):
            assert cosine(plain, one(embedder, with_options(item, **changed)).vector) < 0.999
    assert one(embedder, PICTURE).tokens > one(embedder, with_options(PICTURE, max_pixels=4096)).tokens


def test_server_defaults_are_the_options_defaults(folder, embedder):
    settings = {"pooling": "mean", "normalize": False, "dimensions": 16, "max_pixels": 4096}
    settings["instruction"] = "Name the colour."
    changed = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", **settings))
    for item in (RED, PICTURE):
        expected = one(embedder, with_options(item, **settings)).vector
        np.testing.assert_allclose(one(changed, item).vector, expected, atol=1e-4)
    assert changed.info["id"] != embedder.info["id"]
    assert changed.info["recipe"]["pooling"] == "mean"


def test_the_id_says_what_the_vectors_are_not_where_they_are_made(folder, embedder, tmp_path):
    """The instances of two GPUs in one Triton are one model, and so is the same checkpoint in another folder."""
    second = copy(embedder.model)
    second.token_seconds = embedder.model.token_seconds  # which would ask the GPU
    second.device, second.attention, second.operations = torch.device("cuda", 1), "flash_attention_2", TORCH
    other = Embedder(embedder.checkpoint, second, embedder.preparer)
    assert (other.info["device"], other.info["fused"]) == ("cuda:1", [])
    moved = EmbedderConfig(checkpoint=str(shutil.copytree(folder, tmp_path / "moved")), device="cpu")
    assert embedder.info["id"] == other.info["id"] == Embedder.load(moved).info["id"]


def test_no_limit_and_no_version_is_in_the_id(folder, embedder, monkeypatch):
    """An index made yesterday is searched today, though texts may be longer and torch came with security fixes."""
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    limits = {"max_text_tokens": 100, "max_image_bytes": 10**6, "max_image_pixels": 2**21, "max_batch_tokens": 64}
    other = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", prompt="eol", **limits))
    assert other.info["versions"] != embedder.info["versions"]
    assert other.info["id"] == embedder.info["id"]


def test_a_calibration_and_a_dtype_are_in_the_id(folder, embedder, tmp_path):
    rows = {"text": np.random.default_rng(0).normal(1, 1, (9, 128)), "image": np.eye(9, 128)}
    about = {"forward": embedder.prepare(RED).recipe.forward, "weights": embedder.checkpoint.fingerprint}
    ids = {embedder.info["id"]}
    for number, settings in enumerate(({"dtype": "bfloat16"}, {"calibration": str(tmp_path / "c.npz")}) * 2):
        save(tmp_path / "c.npz", about, fit({kind: each + number for kind, each in rows.items()}, "mean"))
        ids.add(Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", **settings)).info["id"])
    assert len(ids) == 4  # its own, in bfloat16, and of two calibrations


# By the shipped checkpoint, the first two numbers of a text's vector, of an image's, and of both together.
NUMBERS = {
    "eol": (0.1789, -0.0308, -0.0380, -0.0550, -0.0398, 0.0565),
    "colour": (0.0526, 0.0599, -0.0190, 0.0220, -0.0294, 0.0038),
    "freeret": (0.0947, 0.0636, -0.0215, -0.0212, 0.1019, 0.0349),
    "hierarchical": (-0.0384, 0.1611, -0.0653, 0.0521, -0.0018, 0.0813),
    "echo": (0.0512, 0.0098),
    "chat": (0.1437, -0.0168, -0.0345, -0.0458, -0.0067, 0.0648),
    "embedding": (0.0321, -0.1242, -0.0497, -0.0924, -0.0280, -0.0761),
    "none": (0.1091, -0.0469, -0.0390, -0.0217, -0.0254, -0.0086),
}


def test_other_vectors_have_another_release():
    """Indexes outlive releases: where this fails, raise `RELEASE`, unless it is the checkpoint that is another."""
    config = EmbedderConfig(checkpoint="checkpoints/qwen3-vl-color-tiny", device="cpu", dtype="float32")
    shipped = Embedder.load(config)
    assert list(NUMBERS) == list(PROMPTS)
    for prompt, numbers in NUMBERS.items():
        items = [EmbedInput(text="dark teal"), EmbedInput(image=png()), EmbedInput(text="left", image=png((640, 300)))]
        asked = [with_options(item, prompt=prompt) for item in items[: len(numbers) // 2]]
        found = [each for answer in shipped.embed(asked) for each in answer.vector[:2]]
        np.testing.assert_allclose(found, numbers, atol=1e-3, err_msg=prompt)


def test_a_pass_that_does_not_end_shows(embedder, monkeypatch):
    """To who watches this process: of several instances the others go on to answer."""
    begun, may_end, hidden = Event(), Event(), embedder.model.hidden

    def held(*given):
        begun.set()
        may_end.wait()
        return hidden(*given)

    monkeypatch.setattr(embedder.model, "hidden", held)
    assert embedder.stuck_seconds == 0
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(embedder.embed, [EmbedInput(text="red")])
        begun.wait()
        first, later = embedder.stuck_seconds, embedder.stuck_seconds
        may_end.set()
        answer.result()
    assert 0 < first < later
    assert embedder.stuck_seconds == 0
    monkeypatch.setattr(embedder.model, "hidden", None)  # one that fails has ended too
    assert isinstance(embedder.embed_each([EmbedInput(text="red")])[0], InferenceFailed)
    assert embedder.stuck_seconds == 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"foo": 1}', "'foo' is not an option; the options are prompt, pooling"),
        (b'{"pooling": "max"}', "options.pooling"),
        (b'{"dimensions": 7}', "options.dimensions"),
        (b'{"dimensions": 64.0}', "options.dimensions"),
        (b'{"dimensions": true}', "options.dimensions"),
        (b'{"dimensions": "64"}', "options.dimensions"),
        (b'{"normalize": 1}', "options.normalize"),
        (b'{"max_pixels": 10}', "options.max_pixels"),
        (b"[]", "options"),
        (b"{", "options: Invalid JSON"),
        (b"\xff", "options: Invalid JSON"),
    ],
)
def test_options_are_strict(data, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        Options.parse(data)


def test_no_options_are_no_options():
    assert Options.parse(b"") == Options.parse(b"{}") == Options()


def test_info_says_what_makes_the_vectors(folder, embedder):
    info = embedder.info
    assert info["dimension"] == 128
    assert (info["dtype"], info["device"], info["model_type"]) == ("float32", "cpu", "qwen3_vl")
    assert info["prompt"] == "eol"
    again = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    assert again.info == info


def test_each_of_several_passes_says_how_long_it_took_itself(embedder):
    """The adapter learns from it what the model can do (`client/triton/pace.py`): a probe was taken for a long text."""
    probe, text = EmbedInput(text="ready", options=Options(layer=0)), EmbedInput(text="a word " * 400)
    embedder.embed([probe, text])
    for items in ([probe, text], [text, probe]):
        rounds = [sorted(embedder.embed(items), key=lambda answer: answer.tokens) for _ in range(5)]
        quick, slow = (min(answer.forward_ms for answer in each) for each in zip(*rounds, strict=True))
        assert 0 < 2 * quick < slow  # the least of five: a neighbour may hold up any one of them
