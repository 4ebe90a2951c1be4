"""The check of a GPU, run on a CPU: whole, and with checks that raise, hang, or take their process with them."""

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from time import sleep

import psutil
import pytest
import torch
from typer.testing import CliRunner

from lab.benchmarks import gpu_check
from lab.benchmarks.checkpoints import ROOT
from lab.benchmarks.gpu_check import Runner
from lab.benchmarks.gpu_checks import CHECKS, Check, attention, vectors
from lab.benchmarks.gpu_checks.bench import Bench
from lab.benchmarks.gpu_checks.figures import Figure, Verdict, fast, right, told
from tests.waits import until

# What a CPU does not have: kernels, page-locked memory, launches and their gaps, graphs' memory.
CUDAS_OWN = {0: 1, 1: 1, 2: 1, 5: 4, 6: 1, 7: 1, 8: 5, 9: 11, 10: 3}


def run(*options: str) -> tuple[int, dict, str]:
    """Exit status, the JSON of the last line, and what people see."""
    command = [sys.executable, "-m", "lab.benchmarks.gpu_check", *options]
    path = os.pathsep.join([".", "model_repository/qwen3_vl_embed/1"])
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    assert found.stdout, found.stderr
    return found.returncode, json.loads(found.stdout.splitlines()[-1]), found.stderr


@pytest.mark.benchmarks
def test_all_of_it_runs_on_a_cpu(tmp_path):
    from tests.test_benchmarks import assert_is_result  # imports much, and each process below imports this module

    status, document, said = run("--device", "cpu", "--seconds", "900", "--json", str(tmp_path / "gpu.json"))
    figures = document["figures"]
    failed = [figure for check in figures["checks"] for figure in check["figures"] if figure["verdict"] == "FAIL"]
    assert not failed, said
    assert status == 0
    assert_is_result(document)
    assert document == json.loads((tmp_path / "gpu.json").read_text())
    assert [check["number"] for check in figures["checks"]] == list(range(12))
    skipped = {
        check["number"]: sum(figure["verdict"] == "skipped" for figure in check["figures"])
        for check in figures["checks"]
    }
    assert {number: count for number, count in skipped.items() if count} == CUDAS_OWN
    assert figures["counts"]["skipped"] == sum(CUDAS_OWN.values())
    assert figures["counts"]["ok"] + figures["counts"]["slow"] > 100
    for figure in (figure for check in figures["checks"] for figure in check["figures"]):
        assert f"{figure['verdict']:<7}  {figure['what']}: " in said  # each line was said


# Checks with a fault, run by the processes that run the real ones.


def fine(bench: Bench) -> Iterator[Figure]:
    yield told("its process", os.getpid())


def raises(bench: Bench) -> Iterator[Figure]:
    yield told("its process", os.getpid())
    torch.ones(2) @ torch.ones(3)


def hangs(bench: Bench) -> Iterator[Figure]:
    child = subprocess.Popen(["sleep", "600"])
    yield told("its process", os.getpid())
    yield told("its child", child.pid)
    sleep(600)


def dies(bench: Bench) -> Iterator[Figure]:
    yield told("its process", os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(bench: Bench) -> Iterator[Figure]:
    yield told("its process", os.getpid())
    os._exit(70)


def ran(*functions, seconds: float = 600, limit: float = 60) -> tuple[list[list[Figure]], Runner]:
    told_of: list[int] = []
    checks = [Check(number, "planted", limit, function) for number, function in enumerate(functions)]
    runner = Runner(checks, "cpu", seconds, lambda runner: told_of.append(len(runner.outcomes)))
    runner.run()
    begun = sum(outcome.figures[0].what != "not begun" for outcome in runner.outcomes)
    assert len(told_of) == begun + 1  # after each, so that a run which is ended from outside leaves its results
    return [outcome.figures for outcome in runner.outcomes], runner


@pytest.mark.benchmarks
def test_no_fault_stops_the_rest():
    """Each of the healthy ones comes to its end, and what failed left its process to nobody."""
    found, runner = ran(fine, raises, fine, dies, leaves, fine)
    processes = [figures[0].value for figures in found]
    assert processes[0] == processes[1]  # one process, as long as nothing goes wrong
    assert processes[2] == processes[3]
    assert len(set(processes)) == 4
    assert [len(figures) for figures in found] == [1, 2, 1, 2, 2, 1]
    raised, died, left = found[1][1], found[3][1], found[4][1]
    assert (raised.what, raised.verdict) == ("raised", Verdict.FAIL)
    assert str(raised.value).startswith("RuntimeError: ")
    assert (died.what, died.value, died.verdict) == ("its process ended", "by SIGKILL", Verdict.FAIL)
    assert (left.what, left.value) == ("its process ended", "with status 70")
    assert runner.counts == {"skipped": 0, "ok": 6, "slow": 0, "fail": 3}


@pytest.mark.benchmarks
def test_what_hangs_is_ended_with_its_children():
    found, _ = ran(hangs, fine, limit=5)  # from when the process has started
    assert found[0][-1].what == "no end"
    assert found[0][-1].verdict == Verdict.FAIL
    assert found[1][0].verdict == Verdict.OK
    for process in (int(figure.value) for figure in found[0][:2]):
        until(lambda pid=process: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_what_does_not_begin_in_time_is_no_success():
    found, runner = ran(fine, fine, seconds=0)
    assert [figures[0].what for figures in found] == ["not begun", "not begun"]
    assert runner.counts["fail"] == 2


# The checks find what they are for.


def test_a_wrong_attention_is_found(monkeypatch):
    real = attention.packed_attention

    def not_causal(module, *given):
        module.is_causal = False
        return real(module, *given)

    assert attention._packed(Bench("cpu"), attention.TEXT, torch.float32).verdict == Verdict.OK
    monkeypatch.setattr(attention, "packed_attention", not_causal)
    assert attention._packed(Bench("cpu"), attention.TEXT, torch.float32).verdict == Verdict.FAIL
    assert attention._after_a_prefix(Bench("cpu"), torch.float32).verdict == Verdict.OK  # it has its own mask


@pytest.mark.benchmarks
def test_another_models_vectors_are_found(monkeypatch):
    """transformers' in float32 are those of weights that differ by one part in fifty."""
    theirs = vectors._theirs

    def elsewhere(bench, model, batch):
        if model.dtype == torch.float32:
            torch.manual_seed(0)
            model = copy.deepcopy(model)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight), alpha=0.02 * float(weight.std()))
        return theirs(bench, model, batch)

    monkeypatch.setattr(vectors, "_theirs", elsewhere)
    verdicts = {figure.what: figure.verdict for figure in vectors.against_transformers(Bench("cpu"))}
    assert verdicts["ours and transformers', float32: least cosine"] == Verdict.FAIL


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (right("error", 0.5, most=0.1), "FAIL"),
        (right("error", float("nan"), most=0.1), "FAIL"),
        (right("cosine", 0.9, least=0.8), "ok"),
        (fast("rate", 1.0, least=2.0), "SLOW"),
        (fast("rate", 1.0), "ok"),
    ],
)
def test_a_bound_decides(figure, verdict):
    assert figure.verdict == verdict
    assert asdict(figure)["verdict"] == verdict


def test_only_known_checks_are_taken():
    assert [check.number for check in gpu_check.chosen("5, 3")] == [3, 5]
    assert gpu_check.chosen("") == list(CHECKS)
    result = CliRunner().invoke(gpu_check.app, ["--only", "12", "--device", "cpu"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "no check 12; there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11" in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without one")
def test_without_a_gpu_it_says_so():
    result = CliRunner().invoke(gpu_check.app, [])
    assert result.exit_code == 1
    assert "torch sees no CUDA device here" in result.stderr


def test_help_has_examples():
    said = CliRunner().invoke(gpu_check.app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "python -m lab.benchmarks.gpu_check --only 5,8" in " ".join(said.split())


# The Makefile and the documented command.


def test_bench_gpu_extends_the_path_and_runs_every_line(tmp_path):
    """With a python that only tells what it is asked, and fails at the second of four."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH $2"\n[ "$2" != lab.benchmarks.peers ]\n')
    python.chmod(0o755)
    command = ["make", "-s", "bench-gpu", f"BENCH_PYTHON={python}"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "/carried"}, capture_output=True, text=True
    )
    programs = ["gpu_check", "peers", "serve", "table"]
    embedder = "model_repository/qwen3_vl_embed/1"
    assert found.stdout.splitlines() == [f"{embedder}:/carried lab.benchmarks.{program}" for program in programs]
    assert found.returncode != 0
    assert "peers failed" in found.stderr


@pytest.mark.benchmarks
def test_what_asks_a_served_model_says_what_it_lacks(tmp_path):
    (tmp_path / "orjson.py").write_text("raise ModuleNotFoundError(\"No module named 'orjson'\", name='orjson')")
    path = os.pathsep.join([str(tmp_path), ".", "model_repository/qwen3_vl_embed/1"])
    command = [sys.executable, "-m", "lab.benchmarks.serve", "--checkpoint", "tiny"]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith("orjson is not installed")
    assert "gpu_check --only 10" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_documented_command_is_short_and_names_what_there_is():
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.split("## First start on a new GPU")[1].split("\n## ")[0]
    (command,) = [block for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) if "gpu_check" in block]
    assert len(command) < 2000
    words = shlex.split(command, comments=True)
    assert {"tests/test_gpu.py", "lab.benchmarks.gpu_check", "--no-index"} <= set(words)
    assert subprocess.run(["bash", "-n"], input=command, text=True).returncode == 0
    for check in CHECKS:
        assert re.search(rf"^\| {check.number} {re.escape(check.title)} \|", section, re.MULTILINE), check
