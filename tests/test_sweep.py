"""The sweep and the calibration on a small random checkpoint: every recipe is the one that is served."""

import io
import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import Qwen3VLModel

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.poolings import POOLINGS
from qwen3_vl_embed.cli import calibrate as calibrating
from qwen3_vl_embed.cli import sweep as sweeping
from qwen3_vl_embed.evaluation.calibrate import default_images, default_texts
from qwen3_vl_embed.evaluation.colours import Palette, png, swatch, xkcd
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.space import centred, cross_fitted
from qwen3_vl_embed.evaluation.sweep import (
    CALIBRATIONS,
    MEANS,
    Block,
    Row,
    Subject,
    colours,
    fitted,
    halves,
    label_free,
    load,
    ranking,
    readable,
    recommended,
    vectors,
)
from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.serving.settings import ROOT
from tests.reference import cosine, random_checkpoint
from tests.reference import png as picture

COLOURS = 12
# Layers 0 … 4, attn and means; poolings; norms; calibrations. The input's last token is the same of all texts: it can
# be aligned to nothing, with the norm or without.
RECIPES = (6 + len(MEANS)) * sum(not each.append for each in POOLINGS.values()) * 2 * len(CALIBRATIONS) - 2


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


@pytest.fixture(scope="module")
def subject(palette):
    return colours(palette)


def run(folder, output, prompts, subject):
    shown = io.StringIO()
    sweeping.run(str(folder), prompts, [], subject, output, Console(file=shown, width=200))
    (file,) = output.glob("*.jsonl")
    return file, *load(file), shown.getvalue()


@pytest.fixture
def undrawn(monkeypatch):
    """Without the picture, which takes as long as all else."""
    monkeypatch.setattr(sweeping, "draw", lambda rows, file: None)


@pytest.fixture(scope="module")
def swept(folder, subject, tmp_path_factory):
    return run(folder, tmp_path_factory.mktemp("sweep"), ["eol"], subject)


@pytest.mark.parametrize("prompt", ["colour", "echo"])
def test_every_way_is_what_the_options_give(embedder, palette, prompt):
    block = Block(prompt, 4096)
    inputs = [EmbedInput(text=name, options=block.options("text")) for name in palette.names[:3]]
    inputs += [EmbedInput(image=png(swatch(rgb)), options=block.options("image")) for rgb in palette.rgb[:3]]
    ways, _ = vectors(embedder, inputs[:3], lambda count: None)
    of_images, _ = vectors(embedder, inputs[3:], lambda count: None)
    for way, texts in ways.items():
        rows = [*texts, *of_images[way]]
        layer, pooling, final_norm = way
        if layer in MEANS:
            continue
        served = Options(max_pixels=4096, layer=layer, pooling=pooling, final_norm=final_norm)
        asked = [served.model_copy(update={"prompt": item.options.prompt}) for item in inputs]
        answers = embedder.embed([EmbedInput(i.text, i.image, own) for i, own in zip(inputs, asked, strict=True)])
        assert all(cosine(row, answer.vector) >= 0.99999 for row, answer in zip(rows, answers, strict=True))


def test_a_mean_over_layers_is_of_unit_vectors(embedder, palette):
    """No layer's length counts."""
    ways, _ = vectors(embedder, [EmbedInput(text=name) for name in palette.names[:3]], lambda count: None)

    def units(layer):
        rows = ways[layer, "last", False]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    lengths = [float(np.linalg.norm(ways[layer, "last", False])) for layer in range(1, 5)]
    assert max(lengths) > 1.2 * min(lengths)
    for name, layers in {"last 2": (3, 4), "first+last": (1, 4), "all": (1, 2, 3, 4)}.items():
        expected = sum(map(units, layers)) / len(layers)
        np.testing.assert_allclose(ways[name, "last", False], expected, atol=1e-6)


def test_the_vision_towers_stages_are_transformers_own(folder, embedder):
    """Its blocks' outputs, the merger's and DeepStack's, of three sizes of image in one pass."""
    images = [picture(size, seed) for seed, size in enumerate([(64, 64), (40, 300), (244, 244)])]
    _, found = vectors(embedder, [EmbedInput(image=file) for file in images], lambda count: None)
    assert set(found) == {*(f"block {n}" for n in range(1, 5)), *(f"DeepStack {n}" for n in range(1, 4)), "merger"}
    visual = Qwen3VLModel.from_pretrained(folder, attn_implementation="sdpa").eval().visual
    kept = []
    for block in visual.blocks:
        block.register_forward_hook(lambda module, given, out: kept.append(out))
    for row, file in enumerate(images):
        patches = embedder.prepare(EmbedInput(image=file)).sequence.patches
        frames = embedder.model.normalized(torch.from_numpy(patches.pixels)).unflatten(1, (16, 16, 3))
        pixels = frames.permute(0, 3, 1, 2)[:, :, None].repeat(1, 1, 2, 1, 1).flatten(1)  # channels, two frames
        kept.clear()
        with torch.inference_mode():
            out = visual(pixels, grid_thw=torch.tensor([[1, *patches.grid]]))
        expected = {f"block {number}": each for number, each in enumerate(kept, 1)} | {"merger": out.pooler_output}
        expected |= {f"DeepStack {number}": each for number, each in enumerate(out.deepstack_features, 1)}
        for stage, states in expected.items():
            assert cosine(found[stage][row], states.mean(dim=0).numpy()) >= 0.99999, stage
    merged, _ = vectors(embedder, [EmbedInput(image=images[0])], lambda count: None)
    assert cosine(merged[0, "mean", False][0], found["merger"][0]) >= 0.99999  # which is what the first layer reads


def test_it_is_resumed_where_it_stopped(folder, swept, subject, tmp_path):
    whole, first, stages, _ = swept
    file = Path(shutil.copy(whole, tmp_path))
    assert len(first) == RECIPES
    assert len(stages) == 4 + 3 + 1  # blocks, levels of DeepStack, the merger
    before = file.read_text()
    _, both, same, _ = run(folder, tmp_path, ["eol", "chat"], subject)
    assert len(both) == 2 * len(first)
    assert same == stages  # which no prompt changes
    assert file.read_text().startswith(before)
    assert all(json.loads(line, parse_constant=pytest.fail) for line in before.splitlines())  # JSON has no NaN
    assert (file.parent / "sweep.png").stat().st_size > 10_000


def test_a_disk_that_is_full_leaves_whole_blocks(folder, swept, subject, tmp_path, undrawn):
    """A block of which a part was written was taken for all of it, and its last line for none."""
    whole, first, *_ = swept
    file = Path(shutil.copy(whole, tmp_path))
    before = file.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10_000, limit[1]))
    try:
        with pytest.raises(VectorFileError, match="File too large"):
            run(folder, tmp_path, ["eol", "chat"], subject)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_bytes() == before
    assert len(run(folder, tmp_path, ["eol", "chat"], subject)[1]) == 2 * len(first)


def test_other_settings_are_another_file(folder, subject, tmp_path, monkeypatch, undrawn):
    """With another dtype, the rows of the first one were shown again."""
    few = Subject(subject.names[:12], subject.images[:12], subject.rgb[:12])
    run(folder, tmp_path, ["eol"], few)
    monkeypatch.setenv("EMBED_DTYPE", "bfloat16")
    sweeping.run(str(folder), ["eol"], [], few, tmp_path, Console(file=io.StringIO()))
    one, other = (load(file)[0] for file in tmp_path.glob("*.jsonl"))
    assert [row.probe for row in one] != [row.probe for row in other]


@pytest.mark.parametrize("content", ["[1]\n", '{"prompt": "eol"', '{"prompt": "eol", "of": "another version"}\n'])
def test_a_file_of_another_make_is_a_sentence(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(SourceError, match="take it away"):
        load(tmp_path / "x.jsonl")


def test_another_subject_is_another_file(subject):
    other = Subject(subject.names, (*subject.images[1:], subject.images[0]))
    assert len({subject.digest, other.digest, colours(xkcd()).digest}) == 3


def test_recommendations_are_options_of_a_request(swept, embedder):
    _, rows, _, shown = swept
    assert ranking(rows)[0].choose_mrr >= max(row.choose_mrr for row in rows) - 1e-3
    for name, row in recommended(rows):
        assert row.served
        Options.parse(json.dumps(row.options()).encode())
        assert f"{name}: MRR {row.test_mrr:.3f}" in shown
        assert json.dumps(row.options()) in shown


def test_a_prompt_for_texts_alone_leaves_the_images_theirs(folder, palette, tmp_path, embedder, undrawn):
    few = colours(Palette(palette.names[:12], palette.rgb[:12]))
    *_, shown = run(folder, tmp_path, ["echo"], few)
    of_texts, of_images = (row_options(shown, kind) for kind in ("texts", "images"))
    assert (of_texts["prompt"], of_images["prompt"]) == ("echo", "eol")
    embedder.embed([EmbedInput(text="red", options=Options(**of_texts | {"center": False}))])
    embedder.embed([EmbedInput(image=few.images[0], options=Options(**of_images | {"center": False}))])


def row_options(shown, kind):
    return json.loads(next(line for line in shown.splitlines() if line.startswith(f"of {kind}: ")).split(": ", 1)[1])


def test_a_folder_of_captions_is_swept_too(folder, tmp_path):
    for n, (number, shape) in enumerate(itertools.product(("one", "two", "three", "four"), ("a", "b", "c", "d", "e"))):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text(f"{number} {shape}")
    _, rows, stages, _ = run(folder, tmp_path / "out", ["eol"], sweeping.subject(None, tmp_path))
    assert len(rows) == RECIPES
    assert all(np.isfinite(stage.probe) for stage in stages)  # the captions' words are what is read off
    with pytest.raises(SourceError, match="exclude each other"):
        sweeping.subject(20, tmp_path)
    with pytest.raises(SourceError, match="no captioned images"):
        sweeping.subject(None, tmp_path / "out")


def made(text, image):
    return Pairs(xkcd().names[: len(text)], text, image, xkcd().rgb[: len(text)])


def test_figures_cannot_be_had_for_nothing():
    rng = np.random.default_rng(0)
    lab = xkcd().lab[:200]
    known = rng.normal(size=(3, 64))
    text, image = (lab @ known + rng.normal(size=(200, 64)) for _ in range(2))
    constant = np.ones((200, 64)) + rng.normal(scale=1e-3, size=(200, 64))
    good, nothing = (halves(made(*each), fitted("none")) for each in ((text, image), (constant, constant[::-1])))
    assert nothing["test_matched"] < 1e-4 < good["test_matched"]  # the benchmark's metric prefers the constant
    assert good["test_mrr"] > 5 * nothing["test_mrr"]
    assert readable(made(text, image), "text") > 0.7
    assert readable(made(constant, constant), "text") < 0.1


def test_calibrations_are_cross_fitted_as_the_report_centres():
    """One half's figures do not change with what the other half's vectors are judged by."""
    rng = np.random.default_rng(0)
    text, image = (rng.normal(size=(60, 16)) + middle for middle in (2, -1))
    subject = made(text, image)
    for ours, reports in zip(cross_fitted(subject, fitted("mean")), centred(subject).views, strict=True):
        np.testing.assert_array_equal(ours.rows, reports.rows)
        np.testing.assert_allclose(ours.text, reports.text, atol=1e-6)
        np.testing.assert_allclose(ours.image, reports.image, atol=1e-6)


def test_align_closes_a_gap_that_is_a_shift_and_a_scale():
    """Unpaired: each half is moved by what the other half's texts and images have in common, in no order."""
    rng = np.random.default_rng(0)
    said = rng.normal(size=(200, 16))
    text = 5 * np.eye(16)[0] + 0.3 * said + 0.02 * rng.normal(size=said.shape)
    image = 4 * np.eye(16)[1] + said + 0.02 * rng.normal(size=said.shape)
    plain, aligned = (halves(made(text, image), fitted(each)) for each in ("none", "align"))
    assert plain["test_mrr"] < 0.7 < 0.9 < aligned["test_mrr"]
    assert plain["test_mixed_recall_1"] < 0.1 < 0.8 < aligned["test_mixed_recall_1"]
    noise = halves(made(*rng.normal(size=(2, 200, 16))), fitted("align"))
    assert noise["test_mrr"] < 0.1  # it makes nothing of noise


def test_what_needs_no_labels_is_compared_with_what_does():
    def row(layer, dimension, mrr, **more):
        return Row("eol", None, layer, "last", final_norm=True, calibration="none", probe=0.0,
            intrinsic_dimension=dimension, choose_mrr=mrr, test_mrr=mrr, test_recall_1=mrr, test_mixed_recall_1=mrr,
            test_matched=0.1, test_unmatched=0.9)  # fmt: skip

    rows = [row(0, float("nan"), 0.0), row(1, 9.0, 0.1), row(2, 5.0, 0.3), row(3, 4.0, 0.2), row("all", 1.0, 0.9)]
    [found] = label_free(rows)
    assert (found.chosen.layer, found.best.layer) == (3, 2)
    assert found.agreement == pytest.approx(-0.5)


def test_calibration_data_is_disjoint_from_the_survey():
    names = {name.replace(" ", "") for name in xkcd().names}
    assert len(default_texts()) > 50
    assert not names & set(default_texts())
    assert not {png(swatch(rgb)) for rgb in xkcd().rgb} & set(default_images())


@pytest.mark.benchmarks
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
    row = Row("{content}\nColour name:", 65536, "first+last", "last", final_norm=True, calibration="align",
        probe=-10.125, intrinsic_dimension=12.125, choose_mrr=0.5, test_mrr=0.25, test_recall_1=1.0,
        test_mixed_recall_1=0.125, test_matched=0.125, test_unmatched=1.125)  # fmt: skip
    shown = io.StringIO()
    Console(file=shown, width=width).print(sweeping._table([row], width))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    [line] = [line for line in lines if "0.500" in line]
    assert line.split()[-figures:] == ["0.500", "0.250", "1.000", "0.125", "-10.125", "12.125"][:figures]
    assert "…" not in shown.getvalue()


@pytest.mark.benchmarks
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
        20,  # at least
        "-o",
        output,
    ]
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"The best 15 of {RECIPES} recipes")
    assert "\x1b" not in done.stdout
    assert f"{output}/sweep.png" in done.stdout


def test_where_nothing_can_be_written_nothing_is_done(tmp_path, subject):
    """Found before the checkpoint is looked for."""
    console = Console(file=io.StringIO())
    with pytest.raises(VectorFileError, match="/proc"):
        sweeping.run("/nowhere", ["eol"], [], subject, Path("/proc/sweep"), console)
    with pytest.raises(VectorFileError, match="no folder"):
        calibrating.run("/nowhere", "mean", b"", tmp_path / "missing" / "c.npz", console)


def test_what_cannot_be_swept_is_a_sentence(tmp_path, folder, subject, palette):
    console = Console(file=io.StringIO())
    with pytest.raises(SourceError, match="name one of"):
        sweeping.run(str(folder), ["color"], [], subject, tmp_path, console)
    few = colours(Palette(palette.names[:9], palette.rgb[:9]))
    with pytest.raises(SourceError, match="9 pairs; a report needs 10"):
        sweeping.run(str(folder), ["eol"], [], few, tmp_path, console)
