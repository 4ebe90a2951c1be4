"""The second task: pictures show what their phrases say."""

import csv

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import label

from embedder import Embedder, EmbedderConfig, EmbedInput
from embedder.forward.parts import StillPatchEmbed
from lab.benchmarks.subject import vectors
from lab.training.shapes import COLOURS, PHRASES, SHADE, SHAPES, draw, write
from lab.training.train import restore_convolution
from qwen3_vl_embed.evaluation.colours import png
from qwen3_vl_embed.serving.settings import ROOT


def test_a_picture_shows_as_many_shapes_of_that_colour():
    rng = np.random.default_rng(0)
    for phrase in PHRASES:
        picture = draw(phrase, rng).astype(int)
        colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        shown = np.abs(picture - colours[counts.argmax()]).max(axis=2) > 40  # not the ground
        assert label(shown, np.ones((3, 3)))[1] == phrase.number + 1, str(phrase)
        inside = np.abs(np.median(picture[shown], axis=0) - list(COLOURS.values())[phrase.colour])
        assert inside.max() <= SHADE + 2, str(phrase)


def test_what_is_held_out_is_told_by_no_word():
    """Each word, and each two of them, is trained; the phrase is not."""
    held_out = [phrase for phrase in PHRASES if phrase.held_out]
    trained = [phrase for phrase in PHRASES if not phrase.held_out]
    assert len(held_out) == len(PHRASES) // len(SHAPES) == 30
    for parts in (("number", "colour"), ("colour", "shape"), ("number", "shape")):
        seen = {tuple(getattr(phrase, part) for part in parts) for phrase in trained}
        assert {tuple(getattr(phrase, part) for part in parts) for phrase in held_out} <= seen


def test_the_folder_is_what_report_and_sweep_read(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, seed=1)
    rows = list(csv.DictReader((tmp_path / "a" / "captions.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["caption"] for row in rows] == list(map(str, PHRASES))
    assert {"one red circle", "two red circles", "five black crosses"} <= {row["caption"] for row in rows}
    for row in rows[::20]:
        pictures = [np.asarray(Image.open(tmp_path / folder / row["file"])) for folder in ("a", "b")]
        np.testing.assert_array_equal(*pictures)


def test_what_was_trained_is_what_is_written():
    """The patch embedding's columns stand as pixels lie in an image; a checkpoint's convolution has channels first."""
    torch.manual_seed(0)
    conv, again = (torch.nn.Conv3d(3, 4, (2, 16, 16), (2, 16, 16)) for _ in range(2))
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.visual = torch.nn.Module()
    model.model.visual.patch_embed = StillPatchEmbed(conv)
    restore_convolution(model, again)
    patch = torch.rand(5, 3, 16, 16)
    frames = patch[:, :, None].repeat(1, 1, 2, 1, 1)
    torch.testing.assert_close(again(frames), conv(frames))
    torch.testing.assert_close(again(frames).flatten(1), StillPatchEmbed(again)(patch.permute(0, 2, 3, 1).flatten(1)))


def test_the_shipped_checkpoint_finds_phrases_by_new_pictures():
    """Pictures that training never saw, of which 30 are of phrases that it never saw either."""
    embedder = Embedder.load(
        EmbedderConfig(checkpoint=str(ROOT / "checkpoints" / "qwen3-vl-shapes-tiny"), device="cpu")
    )
    rng = np.random.default_rng(7)
    texts = vectors(embedder, [EmbedInput(text=str(phrase)) for phrase in PHRASES])
    pictures = vectors(embedder, [EmbedInput(image=png(Image.fromarray(draw(phrase, rng)))) for phrase in PHRASES])
    cosines = texts @ pictures.T
    right, held_out = np.arange(len(PHRASES)), np.array([phrase.held_out for phrase in PHRASES])
    for found in (cosines.argmax(axis=1) == right, cosines.argmax(axis=0) == right):
        assert found.mean() >= 0.85
        assert found[held_out].mean() >= 0.7
