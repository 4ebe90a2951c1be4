"""The commands, as a person types them, against the real stack: Triton, the adapter and the checkpoint."""

import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner, Result

from client import __version__
from qwen3_vl_embed.cli.__main__ import app
from qwen3_vl_embed.cli.validation import NAMES, swatch
from qwen3_vl_embed.serving.settings import ROOT
from tests.conftest import running, serve_settings
from tests.waits import until

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


def test_a_layer_is_a_number_or_a_name(run):
    """As `embed --help` shows it: `--layer -2` was sent as a string, and refused."""
    [flag], [free], [named], [plain] = (
        rows(run("embed", "red", "--prompt", "colour", *options))
        for options in (["--layer", -2], ["--option", "layer=-2"], ["--layer", "attn"], [])
    )
    assert flag["embedding"] == free["embedding"]
    assert len({tuple(row["embedding"]) for row in (flag, named, plain)}) == 3


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


@pytest.mark.parametrize("option", [[], ["--skip-errors"]])
def test_bad_items_fail_alone_and_are_named(run, broken, tmp_path, option):
    result = run("embed", broken, "", "red", *option, "-o", tmp_path / "v.npz")
    assert result.exit_code == 1
    assert f"Error: {broken / 'cut.png'}: " in result.stderr
    assert 'Error: "": ' in result.stderr
    assert "2 of 6 items were left out." in result.stderr
    with np.load(tmp_path / "v.npz") as file:
        assert [Path(item).stem for item in file["items"]] == ["blue", "green", "red", "red"]


def test_nothing_left_after_skipping(run, tmp_path):
    result = run("embed", "--text", "", "-o", tmp_path / "v.npz")
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_is_no_items_fault(run, tmp_path):
    """Nor is it asked about item by item."""
    for options in (["--option", "layer=99"], ["--pooling", "x", "--batch-size", 1]):
        result = run("embed", *["red"] * 100, *options, "-o", tmp_path / "v.npz")
        assert (result.exit_code, result.stderr.count("Error")) == (1, 1)
        assert '"red"' not in result.stderr


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "qwen3_vl_embed.cli", *map(str, arguments)]


def holds_something(folder: Path) -> bool:
    return any(each.stat().st_size for each in folder.iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_keeps_what_is_done_and_says_so(run, tmp_path, number):
    """Ctrl-C, `kill`, a closed terminal: of 50,000 lines what came is in the file, whole."""
    lines = "".join(f"line {index} of many\n" for index in range(50_000)).encode()
    path = tmp_path / "v.jsonl"
    heeded = partial(signal.signal, number, signal.SIG_DFL)  # a shell's background job ignores one, nohup another
    with subprocess.Popen(
        command("embed", "-", "-o", path), cwd=ROOT, stdin=PIPE, stderr=PIPE, preexec_fn=heeded
    ) as started:
        started.stdin.write(lines)
        started.stdin.close()
        until(lambda: holds_something(tmp_path))
        started.send_signal(number)
        told = started.stderr.read().decode()
    assert started.returncode == 130
    done = [orjson.loads(line)["item"] for line in path.read_bytes().splitlines()]
    assert done == [f"line {index} of many" for index in range(len(done))]
    assert 0 < len(done) < 50_000
    assert told.startswith(f"Error: Interrupted.\n{len(done)} of 50000 vectors in {path} (")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.faults
@pytest.mark.parametrize(("pooling", "code"), [("last", 0), ("mean", 1)])
def test_a_restart_in_the_middle(tmp_path, pooling, code):
    """All of the server, for longer than its adapter waits. What comes back must make the same vectors."""
    lines, path = [f"line {index}" for index in range(4_000)], tmp_path / "v.jsonl"
    settings = serve_settings()
    with running(settings) as stack:
        arguments = command("embed", "-", "-o", path, "--url", stack.adapter_url)
        started = subprocess.Popen(arguments, cwd=ROOT, stdin=PIPE, stderr=PIPE)
        started.stdin.write("\n".join(lines).encode())
        started.stdin.close()
        until(lambda: holds_something(tmp_path))
    assert started.poll() is None
    with started, running(settings, EMBED_POOLING=pooling):
        told = started.stderr.read().decode()
    assert started.returncode == code, told
    done = [orjson.loads(line)["item"] for line in path.read_bytes().splitlines()]
    assert done == lines[: len(done)]
    assert "Asking again for up to 120 s." in told
    if code:
        assert "Error: " in told
        assert "another" in told
        assert f"{len(done)} of 4000 vectors in {path}" in told
    else:
        assert len(done) == 4_000


def test_a_reader_that_has_enough_ends_it_quietly(run):
    piped = f"{shlex.join(command('embed', '-'))} | head -n 1"
    done = subprocess.run(["bash", "-c", piped], input=b"red\n" * 10_000, cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert orjson.loads(done.stdout)["item"] == "red"


def in_shell(words: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    told = f"{shlex.join(command(*words))} {redirection}"
    return subprocess.run(["bash", "-c", told], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("words", [["embed", "red"], ["info"], ["size", "--rate=1", "--passes=1:0.1"], ["--help"]])
@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
def test_an_output_that_takes_nothing_is_a_sentence(run, words, to, why):
    done = in_shell(words, to)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) <= 2  # "Nothing was written."


def test_a_closed_input_holds_nothing(run):
    done = in_shell(["embed", "-"], "<&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: There is nothing to embed.")


def test_names_that_no_terminal_takes(run, photos):
    name = os.fsdecode(b"in\xffvalid\nline.png")
    (photos / name).write_bytes(b"")
    result = run("embed", photos / name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {photos}/in\\udcffvalid\n       line.png: ")
    missing = subprocess.run(command("embed", b"in\xff\n.png".decode(errors="surrogateescape")), cwd=ROOT, stderr=PIPE)
    assert missing.stderr.startswith(b"Error: There is no image in\\udcff\n       .png.")


@pytest.mark.parametrize("words", [("-o", ""), ("--output", ""), ("--output=",)])
def test_an_output_without_a_name_is_refused(run, tmp_path, monkeypatch, words):
    """It would be this folder."""
    monkeypatch.chdir(tmp_path)
    result = run("index", "vectors", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--output is empty" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_version(run):
    assert run("--version").stdout == f"qwen3-vl-embed {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is nothing to embed."),
        (["missing.png"], "There is no image missing.png."),
        (["--image", "missing"], "There is no image missing."),
        (["--csv", "colours.csv"], "--csv and --column go together"),
        (["red", "-o", "v.txt"], "v.txt must end in one of"),
        (["red", "-o", "missing/v.npz"], "there is no folder missing"),
        (["red", "-o", "/proc/v.npz"], "/proc/v.npz cannot be written"),
        (["red", "-o", f"{'x' * 252}.npz"], "cannot be written (File name too long)"),
        (["red", "-o", f"{'x' * 250}.npy"], ".npy.json cannot be written (File name too long)"),
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


@pytest.mark.parametrize("command", [["embed", "red"], ["validate"], ["size", "--rate", "1"], ["info"]])
def test_no_server_is_a_sentence(command):
    result = runner.invoke(app, [*command, "--url", "http://127.0.0.1:9"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Nothing answers at http://127.0.0.1:9.")


@pytest.mark.parametrize("command", ["serve", "embed", "bulk", "index", "search", "validate", "size", "info"])
def test_help_has_examples(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"qwen3-vl-embed {command}" in result.stdout


HELP = """
import runpy, sys
for command in ([], ["embed"], ["bulk"], ["index"], ["search"], ["report"], ["size"], ["sweep"]):
    sys.argv = ["qwen3-vl-embed", *command, "--help"]
    try:
        runpy.run_module("qwen3_vl_embed.cli", run_name="__main__")
    except SystemExit as ended:
        assert not ended.code
    heavy = {"numpy", "pyarrow", "fastapi", "torch"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""


def test_help_waits_for_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, stdout=PIPE, text=True, check=True)
    assert done.stdout.count("Usage: qwen3-vl-embed") == 8


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
