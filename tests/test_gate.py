"""The gate is shut: what `make test` runs first, and the settings of pytest, with and without pytest-asyncio."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests import both_ends

ROOT = Path(__file__).parent.parent


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_warning_is_an_error(tmp_path):
    path = tmp_path / "test_planted.py"
    path.write_text("import warnings\n\n\ndef test_it():\n    warnings.warn('planted', stacklevel=1)\n")
    done = run_pytest("-c", "pyproject.toml", "-p", "tests.conftest", str(path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "UserWarning: planted" in done.stdout


@pytest.mark.benchmarks
def test_the_gpu_tests_run_where_pytest_asyncio_is_not_installed():
    done = run_pytest("-p", "no:asyncio", "tests/test_gpu.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout or "skipped" in done.stdout


def test_pre_commit_and_the_workflow_do_what_make_does():
    makefile = (ROOT / "Makefile").read_text()
    assert "\ntest: check" in makefile
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        tool = " ".join(word for word in hook["entry"].split() if word != "--force-exclude")
        assert tool.replace(".venv/bin", "$(BIN)") in makefile
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == ".ci/run"


def test_ci_runs_what_make_test_leaves_out():
    """All but the containers, which need podman and root. `make test-all` is the same."""
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    left_out = re.findall(r'^FAST := "not \((.*)\)"', makefile, re.MULTILINE)[0].split(" or ")
    together = re.findall(r'-m "(gateways .*)"', makefile)[0].split(" or ")
    assert sorted(left_out) == sorted([*together, "chromium", "containers"])
    targets = {"test", "test-long", "test-chromium"}
    assert set(re.findall(r"^ *make (test\S*)$", ci, re.MULTILINE)) == targets
    assert set(re.findall(r"^test-all: (.*?)  ##", makefile, re.MULTILINE)[0].split()) == targets
    assert "\nexport CI=true\n" in ci


def test_extras_and_groups_of_one_name_are_the_same():
    """A group cannot name an extra, nor the other way round."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, groups = settings["project"]["optional-dependencies"], settings["dependency-groups"]
    assert set(extras) == {"parquet", "bulk", "search", "lancedb", "ray", "evaluation", "local", "lora"}
    assert (extras["local"], extras["lora"]) == (groups["server"], groups["lora"])


class Process:
    """What pytest-xdist knows of one."""

    shutting_down = False

    def __init__(self) -> None:
        self.given: list[int] = []
        self.gateway = SimpleNamespace(id="")

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_one_process_takes_the_next_file_and_another_the_last():
    """Every test runs once, beside those of its file. A private method of pytest-xdist's is overridden for it."""
    config = SimpleNamespace(option=SimpleNamespace(), getvalue=lambda name: ["popen", "popen"])
    shared = both_ends.pytest_xdist_make_scheduler(config, None)
    tests = [f"test_{file}.py::test_{number}" for file in "abcde" for number in range(3)]
    first, last = processes = Process(), Process()
    for process in processes:
        shared.add_node(process)
        shared.add_node_collection(process, tests)
    shared.schedule()
    for turn in range(len(tests)):
        for process in processes:
            if turn < len(process.given):
                shared.mark_test_complete(process, process.given[turn])
    assert [tests[index][5] for index in first.given[::3]] == ["a", "b", "c"]
    assert [tests[index][5] for index in last.given[::3]] == ["e", "d"]
    assert sorted(first.given + last.given) == list(range(len(tests)))
    assert first.shutting_down
    assert last.shutting_down
