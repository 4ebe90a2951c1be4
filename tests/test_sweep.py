"""The sweep and the calibration on a small random checkpoint: every recipe is the one that is served."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.poolings import POOLINGS
from qwen3_vl_embed.cli import calibrate as calibrating
from qwen3_vl_embed.cli import sweep as sweeping
from qwen3_vl_embed.evaluation.calibrate import default_images, default_texts
from qwen3_vl_embed.evaluation.colours import Palette, png, swatch, xkcd
from qwen3_vl_embed.evaluation.sweep import Block, Row, figures, load, ranking, readable, recommended, vectors
from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.serving.settings import ROOT
from tests.reference import cosine, random_checkpoint

COLOURS = 24
# Layers 0 … 4 and attn; poolings; norms; raw and centred.
RECIPES = 6 * sum(not each.append for each in POOLINGS.values()) * 2 * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its images become four tokens each: hundreds of them are embedded here, and none has to show anything."""
    return random_checkpoint(tmp_path_factory.mktemp("random"), max_pixels=64 * 64)


@pytest.fixture(scope="module")
def embedder(folder):
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def palette():
    whole = xkcd()
    return Palette(whole.names[:COLOURS], whole.rgb[:COLOURS])


def run(folder, output, prompts):
    sweeping.run(str(folder), prompts, [], COLOURS, output, Console(file=io.StringIO(), width=200))
    (file,) = output.glob("*.jsonl")
    return file, load(file)


def test_every_way_is_what_the_options_give(embedder, palette):
    options = Block("colour", 4096).options()
    inputs = [EmbedInput(text=name, options=options) for name in palette.names[:3]]
    inputs += [EmbedInput(image=png(swatch(rgb)), options=options) for rgb in palette.rgb[:3]]
    for (layer, pooling, final_norm), rows in vectors(embedder, inputs, lambda count: None).items():
        served = options.model_copy(update={"layer": layer, "pooling": pooling, "final_norm": final_norm})
        answers = embedder.embed([EmbedInput(item.text, item.image, served) for item in inputs])
        assert all(cosine(row, answer.vector) >= 0.99999 for row, answer in zip(rows, answers, strict=True))


def test_it_is_resumed_where_it_stopped(folder, tmp_path):
    file, first = run(folder, tmp_path, ["eol"])
    assert len(first) == RECIPES
    before = file.read_text()
    _, both = run(folder, tmp_path, ["eol", "chat"])
    assert len(both) == 2 * len(first)
    assert file.read_text().startswith(before)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_recommendations_are_options_of_a_request(folder, tmp_path, embedder):
    _, rows = run(folder, tmp_path, ["eol"])
    assert ranking(rows)[0].choose_mrr >= max(row.choose_mrr for row in rows) - 1e-3
    for _, row in recommended(rows):
        Options.parse(json.dumps(row.options()).encode())


def test_figures_cannot_be_had_for_nothing(palette):
    rng = np.random.default_rng(0)
    lab = xkcd().lab[:200]
    known = rng.normal(size=(3, 64))
    text, image = (lab @ known + rng.normal(size=(200, 64)) for _ in range(2))
    constant = np.ones((200, 64)) + rng.normal(scale=1e-3, size=(200, 64))
    good, nothing = figures(text, image, lab, center=False), figures(constant, constant[::-1], lab, center=False)
    assert nothing["test_matched"] < 1e-4 < good["test_matched"]  # the benchmark's metric prefers the constant
    assert good["test_mrr"] > 5 * nothing["test_mrr"]
    assert readable(text, lab) > 0.9
    assert readable(constant, lab) < 0.1


def test_calibration_data_is_disjoint_from_the_survey():
    names = {name.replace(" ", "") for name in xkcd().names}
    assert len(default_texts()) > 50
    assert not names & set(default_texts())
    assert not {png(swatch(rgb)) for rgb in xkcd().rgb} & set(default_images())


def test_a_fitted_calibration_serves(folder, embedder, tmp_path):
    output, console = tmp_path / "calibration.npz", Console(file=io.StringIO())
    calibrating.run(str(folder), "mean", b'{"layer": -2}', output, console)
    served = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", calibration=str(output)))
    item = EmbedInput(text="red", options=Options(layer=-2, center=True))
    plain = EmbedInput(text="red", options=Options(layer=-2))
    centred, raw = served.embed([item, plain])
    assert cosine(centred.vector, raw.vector - served.preparer.calibration.mean["text"]) >= 0.99999
    with pytest.raises(SourceError, match="the methods are"):
        calibrating.run(str(folder), "median", b"", output, console)
    with pytest.raises(SourceError, match="not an option"):
        calibrating.run(str(folder), "mean", b'{"x": 1}', output, console)


@pytest.mark.parametrize(("width", "figures"), [(80, 6), (60, 3)])
def test_no_number_is_cut(width, figures):
    """In 80 columns, which every pipe has, with the longest names."""
    row = Row("{content}\nColour name:", 65536, "attn", "last", final_norm=True, center=True, probe=-10.125,
        choose_mrr=0.5, test_mrr=0.25, test_recall_1=1.0, test_matched=0.125, test_unmatched=1.125)  # fmt: skip
    shown = io.StringIO()
    Console(file=shown, width=width).print(sweeping._table([row], width))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    [line] = [line for line in lines if "0.500" in line]
    assert line.split()[-figures:] == ["0.500", "0.250", "1.000", "0.125", "1.125", "-10.125"][:figures]
    assert "…" not in shown.getvalue()


def test_a_pipe_gets_the_table_alone(folder, tmp_path):
    """No bar, no escapes, no other program's progress; and the same words on a path that looks like markup."""
    output = tmp_path / "[bold]"
    arguments = [
        "-m",
        "qwen3_vl_embed.cli",
        "sweep",
        "--checkpoint",
        folder,
        "--prompt",
        "eol",
        "--colours",
        COLOURS,
        "-o",
        output,
    ]
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"The best 15 of {RECIPES} recipes")
    assert "\x1b" not in done.stdout
    assert f"{output}/sweep.png" in done.stdout


def test_where_nothing_can_be_written_nothing_is_done(tmp_path):
    """Found before the checkpoint is looked for."""
    console = Console(file=io.StringIO())
    with pytest.raises(VectorFileError, match="/proc"):
        sweeping.run("/nowhere", ["eol"], [], COLOURS, Path("/proc/sweep"), console)
    with pytest.raises(VectorFileError, match="no folder"):
        calibrating.run("/nowhere", "mean", b"", tmp_path / "missing" / "c.npz", console)


def test_what_cannot_be_swept_is_a_sentence(tmp_path, folder):
    console = Console(file=io.StringIO())
    with pytest.raises(SourceError, match="name one of"):
        sweeping.run(str(folder), ["color"], [], COLOURS, tmp_path, console)
