"""A machine whose own Python cannot serve: `make` gets one, with the shared library that Triton's stub loads."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from qwen3_vl_embed.serving import interpreter
from qwen3_vl_embed.serving.settings import ROOT

pytestmark = pytest.mark.installs
PYTHON = Path(sys.executable).resolve()
WITHOUT = ("test", "site-packages", "dist-packages", "__pycache__", "idlelib", "tkinter", "turtledemo", "config-*")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """What uv is told to download from: this very Python, packed as python-build-standalone packs its own."""
    folder = tmp_path_factory.mktemp("downloads")
    library = interpreter.libpython()
    assert library is not None
    stdlib = Path(sysconfig.get_path("stdlib"))
    own = folder / "python"
    (own / "bin").mkdir(parents=True)
    for name in ("python", "python3", stdlib.name):
        shutil.copy(PYTHON, own / "bin" / name)
    shutil.copytree(stdlib, own / "lib" / stdlib.name, ignore=shutil.ignore_patterns(*WITHOUT))
    shutil.copy(library, own / "lib")
    with tarfile.open(folder / "python.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(own, "python")
    version = dict(zip(("major", "minor", "patch"), sys.version_info[:3], strict=True))
    entry = {
        "name": "cpython",
        "arch": {"family": platform.machine(), "variant": None},
        "os": "linux",
        "libc": "gnu",
        **version,
        "prerelease": "",
        "url": f"file://{folder}/python.tar.gz",
        "sha256": None,
        "variant": None,
        "build": None,
    }
    key = f"cpython-{platform.python_version()}-linux-{platform.machine()}-gnu"
    (folder / "downloads.json").write_text(json.dumps({key: entry}))
    return folder / "downloads.json"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """As much of this one as is needed to make its virtual environment."""
    folder = tmp_path / "checkout"
    (folder / "requirements").mkdir(parents=True)
    (folder / "qwen3_vl_embed" / "serving").mkdir(parents=True)
    for file in (
        "Makefile",
        "requirements/uv.txt",
        "qwen3_vl_embed/serving/venv.sh",
        "qwen3_vl_embed/serving/interpreter.py",
    ):
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a machine whose only Python cannot serve, and whose home folder nobody wrote to."""
    tools, home = tmp_path / "bin", tmp_path / "home"
    tools.mkdir()
    home.mkdir()
    python = tools / "python3"
    python.write_text(f'#!/bin/sh\ncase $1 in *interpreter.py) exit 1; esac\nexec {PYTHON} "$@"\n')
    python.chmod(0o755)
    for name in ("python3.11", "python3.12"):
        (tools / name).symlink_to("/bin/false")
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return kept | {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(home)}


def make_venv(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [checkout / "qwen3_vl_embed" / "serving" / "venv.sh"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_machine_without_a_fitting_python_gets_one_with_its_own_library(downloads, checkout, bare, tmp_path):
    made = make_venv(checkout, bare | {"UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads)})
    assert made.returncode == 0, made.stdout + made.stderr
    assert "getting one into .cache/python" in made.stdout
    asked = "import sys; from interpreter import libpython; print(sys.base_prefix, libpython())"
    told = subprocess.check_output(
        [checkout / ".venv" / "bin" / "python", "-c", asked],
        cwd=checkout / "qwen3_vl_embed" / "serving",
        text=True,
        env=bare,
    )
    base, library = map(Path, told.split())
    assert base.is_relative_to(checkout / ".cache" / "python")
    assert library.is_relative_to(base)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("missing", ['*"-m venv"*', '*"-m venv"*|*"-m pip"*'])
def test_uv_comes_by_pip_where_there_is_no_venv_or_it_is_said_what_to_install(checkout, bare, tmp_path, missing):
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\ncase "$*" in {missing}) exit 1; esac\nexec {PYTHON} "$@"\n')
    command = ["make", "-C", checkout, ".cache/uv/bin/uv"]
    made = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=300)
    if "pip" in missing:
        assert made.returncode != 0
        assert "Python has neither venv nor pip here: apt install python3-venv" in made.stderr
    else:
        assert made.returncode == 0, made.stdout + made.stderr
        assert subprocess.check_output([checkout / ".cache" / "uv" / "bin" / "uv", "--version"]).startswith(b"uv ")


def test_where_none_can_be_got_either_it_is_said(checkout, bare, tmp_path):
    made = make_venv(checkout, bare | {"UV_PYTHON_DOWNLOADS_JSON_URL": str(tmp_path / "nowhere.json")})
    assert made.returncode != 0
    assert "PYTHON=/path/to/python3.12" in made.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_named_is_taken_or_refused_by_name(checkout, bare):
    made = make_venv(checkout, bare | {"PYTHON": str(PYTHON)})
    assert made.returncode == 0, made.stderr
    assert (checkout / ".venv" / "bin" / "python").resolve() == PYTHON
    refused = make_venv(checkout, bare | {"PYTHON": "/nowhere/python"})
    assert refused.returncode != 0
    assert "/nowhere/python" in refused.stderr


def test_a_folder_that_no_path_can_name_is_refused_before_anything_is_made(checkout, bare):
    moved = checkout.rename(checkout.with_name("a:b"))
    refused = make_venv(moved, bare)
    assert refused.returncode != 0
    assert "a:b: a virtual environment cannot be where a path holds a colon" in refused.stderr
    assert not (moved / ".venv").exists()


def test_a_python_that_tritons_stub_could_not_start_is_refused_with_its_path(downloads, checkout, bare):
    """It looks for its modules below the path that its executable really has, in a locale of ASCII alone."""
    moved = checkout.rename(checkout.with_name("größe"))
    refused = make_venv(moved, bare | {"UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads)})
    assert refused.returncode != 0
    assert "größe" in refused.stderr
    assert "a Python must lie in a path of ASCII, so move it, or make PYTHON=another" in refused.stderr
    assert not (moved / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10", "3.13", "3.14"])
def test_another_version_does_not_fit(monkeypatch, version):
    monkeypatch.setattr(interpreter, "VERSION", version)
    assert f"is Python {version}; 3.11 or 3.12 is needed" in str(interpreter.misfit())
