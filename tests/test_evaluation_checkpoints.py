"""The benchmark's metric can be had for nothing: the trained checkpoint against its own architecture, untrained."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, Qwen3VLForConditionalGeneration

from embedder import Embedder, EmbedderConfig
from lab.training import architecture
from lab.training.measure import FOLDER, swatches, texts
from qwen3_vl_embed.evaluation.colours import xkcd
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import Report, report

PALETTE = xkcd()
SUBSET = slice(None, None, 5)  # 190 colours say the same, in a fifth of the time


def measured(folder: Path) -> Report:
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    names, rgb = PALETTE.names[SUBSET], PALETTE.rgb[SUBSET]
    return report(Pairs(names, texts(embedder, names), swatches(embedder, rgb), rgb), folder.name)


@pytest.fixture(scope="module")
def trained() -> Report:
    return measured(FOLDER)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Callable[[float], Report]:
    """What is measured with random weights of this standard deviation."""

    @cache
    def measure(deviation: float) -> Report:
        folder = tmp_path_factory.mktemp("untrained")
        configuration = AutoConfig.from_pretrained(FOLDER)
        for part in (configuration.text_config, configuration.vision_config):
            part.initializer_range = deviation
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(configuration).float()
        architecture.save(model, AutoTokenizer.from_pretrained(FOLDER), folder)
        return measured(folder)

    return measure


@pytest.mark.parametrize("deviation", [0.002, 0.02])
def test_the_untrained_one_is_called_collapsed(untrained, deviation):
    found = untrained(deviation)
    assert found.verdict.kind == "collapsed"
    assert "has collapsed" in found.verdict.words
    assert found.figures["raw"]["text_to_image_recall_10"].value < 0.15  # chance is 0.05


def test_the_untrained_one_wins_the_mean_distance(trained, untrained):
    """With small weights. (At transformers' own 0.02 a network this narrow is not yet a point, and does not win.)"""
    ours, theirs = (each.figures["raw"]["matched_mean"].value for each in (trained, untrained(0.002)))
    assert theirs < ours / 2


def test_the_trained_one_is_sound(trained):
    assert trained.verdict.kind == "sound"
    assert trained.figures["raw"]["text_to_image_recall_10"].value > 0.9
    assert np.isfinite(trained.figures["centred"]["ratio"].value)
