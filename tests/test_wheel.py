"""What `pip install` brings: one name, a client's needs, and what works with them against a running server."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from client import __version__
from qwen3_vl_embed import Client
from qwen3_vl_embed.serving.settings import ROOT

pytestmark = pytest.mark.installs

EMBEDDER = ROOT / "model_repository/qwen3_vl_embed/1/embedder"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "client", "qwen3_vl_embed", "model_repository")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
CLIENT = """
import sys, numpy
from qwen3_vl_embed import Client
with Client(sys.argv[1]) as client:
    vectors = client.embed_text(["red", "blue"])
numpy.save(sys.argv[2], vectors)
"""
LOCAL = """
import sys, numpy
from qwen3_vl_embed.embedder import EmbedInput, Embedder, EmbedderConfig
embedder = Embedder.load(EmbedderConfig(checkpoint=sys.argv[1]))
numpy.save(sys.argv[2], numpy.stack([each.vector for each in embedder.embed([EmbedInput(text="red")])]))
assert "embedder" not in sys.modules
"""


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """As somebody runs it who has no checkout."""
    told = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=told, cwd="/", check=False)


def done(*command: object, **environment: str) -> str:
    ran = run(*command, **environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves a folder behind, and would take what an earlier build left there."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    done(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, copy)
    [file] = built.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder `bin` of an environment that holds the wheel and what it needs, in the versions of wheel.txt."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    into = *PIP[:3], "--python", folder / "bin/python", *PIP[3:], "install"
    done(*into, "--require-hashes", "-r", ROOT / "requirements/wheel.txt")
    [packages] = folder.glob("lib/python*/site-packages")
    before = {path.name for path in packages.iterdir()}
    done(*into, "--no-deps", wheel)
    new = {path.name for path in packages.iterdir()} - before
    assert new == {"qwen3_vl_embed", f"qwen3_vl_embed-{__version__}.dist-info"}
    done(*PIP[:3], "--python", folder / "bin/python", *PIP[3:], "check")
    return folder / "bin"


def test_the_wheel_holds_every_module_and_no_other_package(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "qwen3_vl_embed").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    embedder = {f"qwen3_vl_embed/embedder/{path.relative_to(EMBEDDER)}" for path in EMBEDDER.rglob("*.py")}
    assert held == {name for name in ours if not name.endswith(".sh")} | embedder


def test_the_client_embeds(stack, installed, tmp_path):
    done(installed / "python", "-c", CLIENT, stack.adapter_url, tmp_path / "client.npy")
    vectors = np.load(tmp_path / "client.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    command, file = installed / "qwen3-vl-embed", tmp_path / "command.npy"
    done(command, "embed", "red", "blue", "-o", file, QWEN3_VL_EMBED_URL=stack.adapter_url)
    np.testing.assert_array_equal(np.load(file), vectors)
    assert "FAILED" not in done(command, "validate", "--url", stack.adapter_url)
    assert done(command, "--version") == f"qwen3-vl-embed {__version__}\n"
    assert "calibrate" in done(command, "--help")


def test_the_embedder_embeds_without_a_server(stack, wheel, tmp_path):
    """Its needs, the extra `local`, are this environment's own."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    checkpoint = ROOT / "checkpoints/qwen3-vl-color-tiny"
    done(sys.executable, "-c", LOCAL, checkpoint, tmp_path / "local.npy", PYTHONPATH=str(tmp_path / "site"))
    with Client(stack.adapter_url) as client:
        served = client.embed_text(["red"])
    assert (np.load(tmp_path / "local.npy") * served).sum() > 0.99999


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["serve"], 2, "`serve` runs in a checkout of the project alone"),
        (["sweep"], 2, "`sweep` runs in a checkout of the project alone"),
        (["calibrate"], 2, "`calibrate` runs in a checkout of the project alone"),
        (["report"], 2, r"`report` needs \w+: pip install 'qwen3-vl-embed\[evaluation\]'"),
        (["bulk", "/tmp", "-o", "/tmp/v"], 2, r"`bulk` needs \w+: pip install 'qwen3-vl-embed\[bulk\]'"),
        (["index", "/tmp"], 2, r"`index` needs \w+: pip install 'qwen3-vl-embed\[search\]'"),
        (["search", "red"], 2, r"`search` needs \w+: pip install 'qwen3-vl-embed\[search\]'"),
        (["embed", "red", "-o", "/tmp/v.parquet"], 2, r"needs pyarrow: pip install 'qwen3-vl-embed\[parquet\]'"),
        (["embed", "red", "--url", "http://127.0.0.1:9"], 1, "Nothing answers at"),
    ],
)
def test_what_the_package_alone_cannot_do_is_a_sentence(installed, arguments, code, sentence):
    ran = run(installed / "qwen3-vl-embed", *arguments)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert re.match("Error: .*" + sentence, ran.stderr), ran.stderr
    assert "Traceback" not in ran.stderr
