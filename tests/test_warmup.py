"""Before it is ready: what is captured, what is measured, and that the weights are there."""

import json
import re
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from embedder import Embedder, EmbedderConfig, EmbedInput, Options, UnsupportedCheckpoint
from embedder.warmup import LARGE, TOGETHER, fitting, of_every_bucket, picture
from tests.conftest import CHECKPOINT
from tests.reference import cosine, png


def load(folder=CHECKPOINT, **settings) -> Embedder:
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", **settings))


WORDS = 4  # instead of four times as many: each length takes as long to capture


@pytest.fixture(scope="module")
def warm():
    embedder = load()
    with pytest.MonkeyPatch.context() as patch:  # however slow the machine is
        patch.setattr("embedder.warmup.WORTH_SECONDS", 60)
        patch.setattr("embedder.warmup.CAPTURING_SECONDS", 600)
        patch.setattr("embedder.warmup.WORDS", WORDS)
        embedder.warm_up()
    return embedder


def test_names_and_swatches_are_captured_and_nothing_later(warm):
    captured = dict(warm.model.replay.captured)
    assert len(captured) == WORDS + 1
    for item in (EmbedInput(text="red"), EmbedInput(text="a word " * 60), EmbedInput(image=png((244, 244)))):
        for options in (Options(), Options(pooling="mean"), Options(layer=2)):
            for _ in range(4):
                warm.embed([EmbedInput(item.text, item.image, options)])
    assert warm.model.replay.captured == captured


def test_a_pass_that_is_slow_anyway_is_not_captured(monkeypatch):
    """A capture takes six passes and more, and saves tens of milliseconds."""
    monkeypatch.setattr("embedder.warmup.WORTH_SECONDS", 0.0)
    embedder = load()
    embedder.warm_up()
    assert not embedder.model.replay.captured


def test_it_says_what_inputs_take(warm):
    shown = warm.info["warm_up"]
    assert set(shown) == {"pass", "text", "image"}
    assert all(0 <= seconds < 100 for seconds in shown.values())
    assert shown["pass"] + TOGETHER * shown["text"] > 0


def test_a_checkpoint_that_fails_on_our_own_inputs_is_refused_with_the_reason(tmp_path):
    """transformers' configuration knows no such rule, and its model breaks it at the first image."""
    folder = copytree(CHECKPOINT, tmp_path / "served")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_heads"] = 3  # of a width of 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpoint, match=re.escape(f"{folder} was loaded, and fails") + ".*RuntimeError: "):
        load(folder).warm_up()


@pytest.mark.parametrize("most", [1, 20, 64])
def test_limits_below_our_own_inputs_stop_no_start(most, monkeypatch):
    monkeypatch.setattr("embedder.warmup.WORTH_SECONDS", 60)
    monkeypatch.setattr("embedder.warmup.CAPTURING_SECONDS", 0)
    embedder = load(max_text_tokens=most, max_image_pixels=most)
    embedder.warm_up()
    text, image = EmbedInput(text="red"), EmbedInput(image=picture(fitting(embedder, LARGE)))
    for batch in of_every_bucket(embedder, text, image):  # as on a GPU
        for item in batch[:1]:
            embedder.prepare(item)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompt": "EOL"}, "EMBED_PROMPT: name one of eol, "),
        ({"prompt": "{text}{content}"}, "EMBED_PROMPT: a template holds {content}"),
        ({"layer": 99}, "EMBED_LAYER: 0 (the input) … 4"),
        ({"dimensions": 129}, "EMBED_DIMENSIONS: at most 128"),
        ({"center": True}, "EMBED_CENTER: this server has no calibration; set EMBED_CALIBRATION"),
        ({"min_pixels": 10**6}, "EMBED_MIN_PIXELS 1000000 is above max_pixels 4096; set EMBED_MAX_PIXELS too"),
        ({"max_pixels": 4096 * 32 * 32 + 1}, "EMBED_MAX_PIXELS: at most 4194304; this checkpoint reads 4096 tokens"),
        ({"revision": "main"}, "EMBED_REVISION is of a hub id"),
        ({"max_image_bytes": 1}, "the settings' limits refuse our own first inputs: the image file has"),
    ],
)
def test_a_setting_that_cannot_be_is_told_by_its_name(settings, sentence):
    with pytest.raises(UnsupportedCheckpoint, match=re.escape(sentence)):
        load(**settings).warm_up()


def test_no_weight_stays_in_a_file_that_others_may_write(tmp_path):
    """Mapped, it would wait for the disk when memory was short, and change with the file: a plausible wrong vector."""
    folder = copytree(CHECKPOINT, tmp_path / "served")
    embedder = load(folder)
    (before,) = embedder.embed([EmbedInput(text="red")])
    assert str(folder) not in Path("/proc/self/maps").read_text()
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(weights.stat().st_size // 2))
    (after,) = embedder.embed([EmbedInput(text="red")])
    np.testing.assert_array_equal(after.vector, before.vector)


def test_who_asks_for_the_input_layer_goes_through_no_other(warm):
    """The probes do: beside a text that takes half a minute, theirs must not take another half."""
    ran = []
    handles = [layer.self_attn.register_forward_pre_hook(lambda *_: ran.append(1)) for layer in warm.model._decoder]
    probe, text = EmbedInput(text="ready", options=Options(layer=0)), EmbedInput(text="a word " * 40)
    with_company, alone = warm.embed([probe, text]), warm.embed([probe])
    for handle in handles:
        handle.remove()
    assert len(ran) == warm.model.layers  # of the text
    assert [answer.batch_items for answer in with_company] == [1, 1]
    assert cosine(with_company[0].vector, alone[0].vector) >= 0.99999


def test_a_short_pass_takes_one_core_and_a_long_one_all(warm, monkeypatch):
    given = []
    monkeypatch.setattr("embedder.embedder.torch.set_num_threads", given.append)
    warm._threads = 2
    warm.embed([EmbedInput(text="red")])
    warm.embed([EmbedInput(text="red " * 1000)])
    assert given == [1, 2]
