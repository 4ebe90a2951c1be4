"""The token budget: what one forward pass may hold, from the memory that is free."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from embedder import Embedder, EmbedderConfig, EmbedInput
from embedder.forward.budget import FEWEST, MOST, free_bytes, product_rate, text_bytes, token_budget, vision_bytes
from tests.reference import png, random_checkpoint

GIB = 2**30
CONFIGS = Path(__file__).parent / "data" / "configs"


def config(size: str):
    return AutoConfig.from_pretrained(CONFIGS / f"Qwen3-VL-{size}-Instruct")


@pytest.mark.parametrize("size", ["2B", "4B", "8B", "32B"])
def test_a_pass_fits_and_no_more_than_pays(size):
    per_token = text_bytes(config(size).text_config, 2) + 4 * vision_bytes(config(size).vision_config, 2)
    budgets = [token_budget(config(size), 2, free * GIB, 1e-9) for free in (1, 4, 16, 64)]
    assert budgets == sorted(budgets)
    assert all(budget * per_token <= free * GIB / 2 for budget, free in zip(budgets, (1, 4, 16, 64), strict=True))
    assert budgets[1] >= 1024  # one image of the default bound fits into four gigabytes
    assert budgets[-1] == MOST
    assert token_budget(config(size), 2, 0, 1e-9) == 1
    assert token_budget(config(size), 4, 64 * GIB) == FEWEST  # on a CPU


def test_a_pass_is_no_longer_than_a_caller_wants_to_wait():
    """On a GPU that was asked how quick it is: an H100 takes all that fits, an L4 less, nothing the fewest at least."""
    flop = 9.7e9  # of an image's token through the 4B and its vision tower
    for rate, tokens in ((650e12, MOST), (100e12, 2577), (10e12, FEWEST)):
        assert token_budget(config("4B"), 2, 64 * GIB, flop / rate) == pytest.approx(tokens, rel=1e-3)
    assert token_budget(config("4B"), 2, 1 * GIB, 1e-9) < FEWEST  # memory has the last word
    assert product_rate(torch.device("cpu"), torch.float32, 64) > 0


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("kind", ["photos", "texts"])
def test_a_pass_takes_no_more_than_is_counted(tmp_path, kind):
    """The peak of the process's memory over one pass, against the count for its tokens."""
    folder = random_checkpoint(tmp_path, max_pixels=512 * 512)
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", max_batch_tokens=10**6))
    inputs = [
        EmbedInput(image=png((512, 512), i)) if kind == "photos" else EmbedInput(text="red " * 900) for i in range(12)
    ]
    prepared = [embedder.prepare(item) for item in inputs]
    embedder.embed_each(prepared[:1])  # what is allocated once
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = peak_bytes()
    embedder.embed_each(prepared)
    shape = embedder.model.model.config
    tokens = sum(len(item.sequence) for item in prepared)
    counted = tokens * (text_bytes(shape.text_config, 4) + 4 * vision_bytes(shape.vision_config, 4))
    assert peak_bytes() - before <= counted


def test_a_batch_is_cut_by_the_budget(tmp_path, monkeypatch):
    folder = random_checkpoint(tmp_path)
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", max_batch_tokens=100))
    passes = []
    hidden = embedder.model.hidden
    monkeypatch.setattr(
        embedder.model, "hidden", lambda packed, *rest: passes.append(packed.bounds.lengths) or hidden(packed, *rest)
    )
    answers = embedder.embed([EmbedInput(text="red")] * 9 + [EmbedInput(image=png())])
    assert all(isinstance(answer.vector, np.ndarray) for answer in answers)
    assert all(sum(lengths) <= 100 or len(lengths) == 1 for lengths in passes)
    assert sum(map(len, passes)) == 10
    together = [len(lengths) for lengths in passes for _ in lengths]
    assert sorted(answer.batch_items for answer in answers) == sorted(together)


def test_free_memory_is_known_here():
    assert 0 < free_bytes(torch.device("cpu")) < 2**50


def test_a_pile_of_photos(tmp_path):
    """Decoded a few at a time and computed within the budget: far below what they take decoded (36 MB each)."""
    folder = random_checkpoint(tmp_path)
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(path, quality=80)
    photos = [EmbedInput(image=path.read_bytes())] * 20
    embedder.embed(photos[:2])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    answers = embedder.embed(photos)
    assert all(np.isfinite(answer.vector).all() for answer in answers)
    assert peak_bytes() - before < 20 * 36e6 / 2
