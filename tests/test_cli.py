"""The commands, as a person types them, against the real stack: Triton, the adapter and the checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner, Result

from qwen3_vl_embed.cli.__main__ import app
from qwen3_vl_embed.cli.validation import NAMES, swatch

runner = CliRunner()


@pytest.fixture
def run(stack, monkeypatch):
    """Runs a command against the stack; stdout and stderr apart."""
    monkeypatch.setenv("QWEN3_VL_EMBED_URL", stack.adapter_url)

    def invoke(*arguments: object, **settings: Any) -> Result:
        return runner.invoke(app, [str(argument) for argument in arguments], **settings)

    return invoke


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("blue", "green", "red"):
        (folder / f"{name}.png").write_bytes(swatch(name))
    return folder


def rows(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [orjson.loads(line) for line in result.stdout.splitlines()]


def test_words_files_and_folders_keep_their_order(run, photos):
    ambiguous = ["--text", "no.png", "--image", photos / "blue.png"]
    got = rows(run("embed", "red", photos, photos / "red.png", "blue", *ambiguous))
    expected = ["red", *(str(photos / f"{name}.png") for name in ("blue", "green", "red", "red")), "blue", "no.png"]
    assert [row["item"] for row in got] == [*expected, str(photos / "blue.png")]
    assert [row["kind"] for row in got] == ["text", *["image"] * 4, "text", "text", "image"]
    assert got[3]["embedding"] == got[4]["embedding"]


def test_lines_of_stdin(run):
    got = rows(run("embed", "-", input="red\nblue\nred\n"))
    assert [row["item"] for row in got] == ["red", "blue", "red"]
    assert got[0]["embedding"] == got[2]["embedding"] != got[1]["embedding"]


def test_a_csv_column_in_batches_of_one(run, tmp_path):
    path = tmp_path / "colours.csv"
    path.write_text("hex,name\n#f00,red\n#00f,blue\n")
    got = rows(run("embed", "--csv", path, "--column", "name", "--batch-size", 1))
    assert [row["item"] for row in got] == ["red", "blue"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".jsonl"])
def test_output_files(run, photos, tmp_path, suffix):
    path = tmp_path / f"vectors{suffix}"
    result = run("embed", "red", photos, "--output", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "4 vectors in" in result.stderr
    assert path.stat().st_size > 0


def test_npz_rows_are_the_vectors_of_their_items(run, photos, tmp_path):
    run("embed", "red", photos, "-o", tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz") as file:
        vectors, items = file["vectors"], file["items"].tolist()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors[0]
    assert items[1 + int(cosines[1:].argmax())] == str(photos / "red.png")


def test_the_recipe_reaches_the_model(run, photos):
    plain, short, mean, told = (
        rows(run("embed", "red", photos / "red.png", *options))
        for options in (
            [],
            ["--dimensions", 16],
            ["--pooling", "mean"],
            ["--instruction", "Name the colour."],
        )
    )
    assert {len(row["embedding"]) for row in short} == {16}
    for other in (mean, told):
        assert plain[0]["embedding"] != other[0]["embedding"]
        assert plain[1]["embedding"] != other[1]["embedding"]


def test_pixel_bounds_go_with_images_only(run, photos):
    """The tiny checkpoint has one size for all images; texts refuse these options."""
    word, image = rows(run("embed", "red", photos / "red.png", "--min-pixels", 4096, "--max-pixels", 4096))
    assert (word["kind"], image["kind"]) == ("text", "image")
    assert "max_pixels" in run("embed", "red", photos / "red.png", "--max-pixels", 1).stderr


def test_no_normalize_and_back(run):
    [raw] = rows(run("embed", "red", "--no-normalize"))
    [unit] = rows(run("embed", "red", "--normalize"))
    vector = np.array(raw["embedding"])
    np.testing.assert_allclose(vector / np.linalg.norm(vector), unit["embedding"], atol=1e-6)


@pytest.fixture
def broken(photos: Path) -> Path:
    (photos / "cut.png").write_bytes(swatch("pink")[:100])
    return photos


def test_a_bad_image_is_named_and_nothing_is_written(run, broken, tmp_path):
    result = run("embed", broken, "-o", tmp_path / "v.npz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {broken / 'cut.png'}: ")
    assert not (tmp_path / "v.npz").exists()


def test_skip_errors_goes_on_and_lists_them(run, broken, tmp_path):
    result = run("embed", broken, "", "red", "--skip-errors", "-o", tmp_path / "v.npz")
    assert result.exit_code == 1
    assert f"Error: {broken / 'cut.png'}: " in result.stderr
    assert 'Error: "": ' in result.stderr
    assert "2 of 6 items were left out." in result.stderr
    with np.load(tmp_path / "v.npz") as file:
        assert [Path(item).stem for item in file["items"]] == ["blue", "green", "red", "red"]


def test_nothing_left_after_skipping(run, tmp_path):
    result = run("embed", "--text", "", "--skip-errors", "-o", tmp_path / "v.npz")
    assert result.exit_code == 1
    assert not (tmp_path / "v.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is nothing to embed."),
        (["missing.png"], "There is no image missing.png."),
        (["--image", "missing"], "There is no image missing."),
        (["--csv", "colours.csv"], "--csv and --column go together"),
        (["red", "-o", "v.txt"], "v.txt must end in one of"),
        (["red", "-o", "missing/v.npz"], "there is no folder missing"),
        (["red", "--batch-size", "100000"], "The server takes at most"),
    ],
)
def test_what_was_typed_wrong_is_a_sentence_and_exit_code_2(run, arguments, sentence):
    result = run("embed", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert sentence in result.stderr


@pytest.mark.parametrize("options", [["--pooling", "max"], ["--dimensions", 7], ["--dimensions", 10**6]])
def test_what_the_server_refuses_is_its_own_sentence(run, options):
    result = run("embed", "red", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [["embed", "red"], ["validate"], ["info"]])
def test_no_server_is_a_sentence(command):
    result = runner.invoke(app, [*command, "--url", "http://127.0.0.1:9"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Nothing answers at http://127.0.0.1:9.")


@pytest.mark.parametrize("command", ["serve", "embed", "validate", "info"])
def test_help_has_examples(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"qwen3-vl-embed {command}" in result.stdout


def test_info_is_json_in_a_pipe(run):
    model = orjson.loads(run("info").stdout)["model"]
    [row] = rows(run("embed", "red"))
    assert len(row["embedding"]) == model["dimension"]


def test_validate(run):
    result = run("validate", "--strict")
    assert result.exit_code == 0, result.stdout
    assert "FAILED" not in result.stdout
    for check in ("contract", "dimension", "unit norm", "list = single", "red", "every colour"):
        assert f"ok  {check}" in result.stdout
    for name in NAMES:
        assert name in result.stdout
