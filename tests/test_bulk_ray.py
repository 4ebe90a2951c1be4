"""`bulk --ray` on a cluster of three nodes: a node is killed, a driver is killed, and the other engine goes on.

`make test-ray`: Ray has an environment of its own, which also runs the command.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from qwen3_vl_embed.serving.settings import ROOT
from tests.test_bulk import held
from tests.test_cli import command
from tests.waits import until

pytestmark = pytest.mark.ray
RAY = Path(os.environ.get("RAY_PYTHON", ROOT / ".cache" / "ray" / "bin" / "python"))
SMALL_PIECES = """
import qwen3_vl_embed.bulk.sources as sources, qwen3_vl_embed.cli.__main__ as main
sources.PIECE = 20
main.app()
"""
ROWS = 400


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """With its address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
    started: Any = subprocess.Popen(
        [RAY, ROOT / "tests" / "ray_cluster.py"], stdin=PIPE, stdout=PIPE, text=True, env=environment
    )
    with started:
        started.address = started.stdout.readline().strip()
        yield started
        started.stdin.close()
        started.wait(60)


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {i} of {tmp_path.name}\n" if i != 50 else "\n" for i in range(ROWS)))
    return path


def on_ray(cluster: Any, *arguments: object) -> Any:
    words = [str(RAY), "-c", SMALL_PIECES, *map(str, arguments), "--ray", cluster.address, "--workers", "4"]
    return subprocess.Popen(words, cwd=ROOT, stderr=PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def parts(folder: Path, count: int, job: Any) -> None:
    """Waits until so many are there."""
    while len(list(folder.glob("part-*"))) < count:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)


def every_row_once(folder: Path) -> None:
    table = held(folder)
    assert sorted(table["id"].to_pylist()) == sorted(f"lines.txt:{i + 1}" for i in range(ROWS))
    assert table["error"].null_count == ROWS - 1


def test_a_node_that_is_killed(stack, cluster, lines, tmp_path):
    out = tmp_path / "out"
    job = on_ray(cluster, "bulk", lines, "-o", out, "--url", stack.adapter_url, "--url", stack.adapter_url + "/")
    parts(out, 3, job)
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "killed\n"
    assert len(list(out.glob("part-*"))) < ROWS // 20, "it was too late"
    told = job.communicate(timeout=300)[1]
    assert job.returncode == 1, told  # one row is empty
    every_row_once(out)


@pytest.mark.parametrize("first", ["ray", "here"])
def test_a_driver_that_is_killed_and_the_other_engine_goes_on(stack, cluster, lines, tmp_path, first):
    out, whole = tmp_path / "out", lines.read_text()
    arguments = ("bulk", lines, "-o", out, "--url", stack.adapter_url, "--batch-size", "4", "--in-flight", "1")
    if first == "ray":
        job = on_ray(cluster, *arguments)
        parts(out, 3, job)
        job.send_signal(signal.SIGKILL)
        job.communicate()
    else:  # of half of it; then the file has grown
        lines.write_text("".join(whole.splitlines(keepends=True)[: ROWS // 2]))
        half_done = subprocess.run(command(*arguments), cwd=ROOT, stderr=PIPE)
        assert half_done.returncode == 1, half_done.stderr
        lines.write_text(whole)
    before = held(out)["id"].to_pylist()
    assert 0 < len(before) < ROWS
    if first == "ray":

        def nothing_more() -> bool:  # its workers end with it
            there = set(out.iterdir())
            time.sleep(5)
            return set(out.iterdir()) == there

        until(nothing_more)
        before = held(out)["id"].to_pylist()
        done = subprocess.run(command(*arguments), cwd=ROOT, stderr=PIPE, text=True)
        told, code = done.stderr, done.returncode
    else:
        job = on_ray(cluster, *arguments)
        told, code = job.communicate(timeout=300)[1], job.returncode
    assert code == 1, told
    every_row_once(out)
    assert f"({ROWS - len(before)} rows in " in told
