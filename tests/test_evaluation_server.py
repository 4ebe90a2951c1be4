"""The command `report`: against another maker's server, our own stack, and what was typed wrong."""

import base64
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from qwen3_vl_embed.cli import report as evaluation
from qwen3_vl_embed.cli.__main__ import app
from qwen3_vl_embed.cli.recipe import option
from qwen3_vl_embed.evaluation.pairs import Pairs, load
from qwen3_vl_embed.files.errors import SourceError
from tests.test_evaluation_report import NAMES, RGB, Document, seen, write_images


@pytest.mark.parametrize(
    ("text", "expected"),
    [("dimensions=64", ("dimensions", 64)), ("normalize=true", ("normalize", True)), ("prompt=a=b", ("prompt", "a=b"))],
)
def test_an_option_is_json_or_a_string(text, expected):
    assert option(text) == expected


def test_an_option_without_a_value_is_refused():
    with pytest.raises(SourceError, match="must look like"):
        option("pooling")


class AnothersServer(BaseHTTPRequestHandler):
    """The local-provider schema under other names: no lists, images as data: URLs only, no /info."""

    DOCUMENT = json.dumps({
        "paths": {
            path: {"post": {"requestBody": {"content": {"application/json": {"schema": {
                "properties": {"content": {"type": "string"}}
            }}}}}}
            for path in ("/embed/text", "/embed/image")
        }
    })  # fmt: skip
    fields: set[str]

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/openapi.json" else 404, self.DOCUMENT)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).fields |= set(body)
        content = body["content"]
        if self.path == "/embed/text":
            rgb = RGB[NAMES.index(content)]
        else:
            image = Image.open(io.BytesIO(base64.b64decode(content.removeprefix("data:image/png;base64,"))))
            rgb = np.array(image.getpixel((0, 0)))
        self.answer(200, json.dumps({"vector": seen(rgb).tolist()}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def anothers() -> Iterator[list[str]]:
    """Options that name a running server of another make."""
    AnothersServer.fields = set()
    server = HTTPServer(("127.0.0.1", 0), AnothersServer)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield [
        "--url", f"http://127.0.0.1:{server.server_port}", "--text-path", "/embed/text", "--image-path", "/embed/image",
        "--input-field", "content", "--output-field", "vector",
    ]  # fmt: skip
    server.shutdown()
    server.server_close()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_another_makers_server_over_a_csv_of_colours(anothers, tmp_path):
    rows = "".join(f"{name},#{bytes(rgb).hex()}\n" for name, rgb in zip(NAMES, RGB, strict=True))
    (tmp_path / "colours.csv").write_text("name,hex\n" + rows)
    result = run("--colours", tmp_path / "colours.csv", *anothers, "--option", "prompt=colour", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert AnothersServer.fields == {"content", "prompt"}
    assert "tells pairs apart" in result.stdout
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["raw"]["text_to_image_recall_1"]["value"] == 1
    assert told["raw"]["matched_mean"]["value"] == pytest.approx(0, abs=1e-6)
    assert told["about"]["options"] == {"prompt": "colour"}

    again = run("--vectors", tmp_path / "out" / "vectors.npz", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again" / "report.json").read_text())["raw"] == told["raw"]


def test_images_with_captions_leave_colour_out_and_say_so(anothers, tmp_path):
    write_images(tmp_path / "photos")
    result = run("--images", tmp_path / "photos", *anothers, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Colour figures are left out" in result.stdout
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "spearman_text_to_text" not in told["raw"]
    assert told["raw"]["probe_text"]["value"] > 0  # of the captions' words: better than their mean
    assert told["raw"]["text_to_image_recall_1"]["value"] == 1
    text = (tmp_path / "out" / "report.html").read_text()
    assert "no one colour" in text
    assert "url(data:image/jpeg;base64," in text
    assert Document(text).open == []


@pytest.mark.parametrize("count", [0, 9, 3001])
def test_too_few_or_too_many_are_not_embedded_first(anothers, tmp_path, count):
    (tmp_path / "colours.csv").write_text("name,hex\n" + f"{NAMES[0]},#ff0000\n" * count)
    result = run("--colours", tmp_path / "colours.csv", *anothers, "-o", tmp_path / "out")
    assert (result.exit_code, f"There are {count} pairs; a report needs 10 to 3000." in result.stderr) == (2, True)
    assert AnothersServer.fields == set()


def test_names_that_are_not_utf8_do_not_end_a_report(anothers, tmp_path):
    """A folder's, and what was typed."""
    photos = tmp_path / "fot\udcf3s"
    write_images(photos)
    result = run("--images", photos, *anothers, "--name", "m\udcf3dulo", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (told["name"], told["about"]["source"][-8:]) == (r"m\udcf3dulo", r"t\udcf3s")
    assert r"m\udcf3dulo" in (tmp_path / "out" / "report.html").read_text()


def test_vectors_are_kept_before_they_are_evaluated(tmp_path, monkeypatch):
    """They took longest."""
    vectors = seen(RGB).astype(np.float32)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluation.write(Pairs(NAMES, vectors, vectors, RGB), "x", tmp_path / "out")
    np.testing.assert_array_equal(load(tmp_path / "out" / "vectors.npz").text, vectors)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--colours", "c.csv", "--images", "d"], "exclude each other"),
        (["--vectors", "missing.npz"], "There is no file missing.npz"),
        (["--vectors", "v.npz", "--images", "d"], "leave all others out"),
        (["--vectors", "v.npz", "--pooling", "mean"], "leave all others out"),
        (["--images", "missing"], "There is no folder missing"),
        (["--option", "pooling"], "must look like"),
    ],
)
def test_what_was_typed_wrong_is_a_sentence(arguments, sentence):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr


def test_help_has_examples():
    assert "qwen3-vl-embed report --images" in run("--help").stdout


def test_a_server_of_another_kind_is_a_sentence(anothers):
    result = run("--url", anothers[1])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no server of the local-provider schema" in result.stderr


@pytest.mark.benchmarks
def test_the_served_checkpoint(stack, tmp_path):
    """Our own stack, over the 949 colours: the same figures as the benchmark's own client gets (R@10, mean)."""
    result = run("--url", stack.adapter_url, "-o", tmp_path, "--pooling", "last")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["pairs"], told["name"]) == (949, "qwen3-vl-color-tiny")
    assert told["verdict"]["kind"] == "sound"
    assert told["raw"]["text_to_image_recall_10"]["value"] > 0.9
