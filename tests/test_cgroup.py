"""What a container may take of its machine is known, by both versions of control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedder import Embedder, EmbedderConfig, UnsupportedCheckpoint
from embedder.forward import cgroup, weights
from embedder.forward.hardware import too_large
from tests.conftest import CHECKPOINT, ROOT

HYBRID = "4:memory:/app\n1:cpu,cpuacct:/app/web\n0::/app\n"  # version 1, and an empty version 2 beside it
FILES = {  # of each group: what is there, cores and bytes
    "version 2": ("0::/\n", {"cpu.max": "150000 100000", "memory.max": "2000"}, 2, 2000),
    "without limits": ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 64, None),
    "a group above": ("0::/app/web\n", {"app/cpu.max": "100000 100000", "app/web/cpu.max": "max 100000"}, 1, None),
    "the smallest": ("0::/app/web\n", {"app/memory.max": "500", "app/web/memory.max": "900"}, 64, 500),
    "version 1": (
        HYBRID,
        {
            "cpu/app/web/cpu.cfs_quota_us": "50000",
            "cpu/app/web/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/app/memory.limit_in_bytes": "3000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
        1,
        3000,
    ),
    "seen at the mount": (HYBRID, {"memory/memory.limit_in_bytes": "4000"}, 64, 4000),
    "of another namespace": ("0::/../../other\n", {"memory.max": "5000"}, 64, 5000),
    "nothing": ("", {}, 64, None),
}


@pytest.mark.parametrize("case", FILES)
def test_the_limits_of_a_group(tmp_path, monkeypatch, case):
    own, files, cores, memory = FILES[case]
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert (cgroup.cores(), cgroup.memory()) == (cores, memory)


def test_without_control_groups_there_is_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "none")
    assert (cgroup.cores(), cgroup.memory()) == (len(os.sched_getaffinity(0)), None)


def test_a_real_quota_is_seen():
    """Of a group made here, where this kernel and this user may."""
    mount = Path("/sys/fs/cgroup")
    group = (mount / "cpu" if (mount / "cpu").is_dir() else mount) / f"quota-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        quotas = [name for name in ("cpu.max", "cpu.cfs_quota_us") if (group / name).is_file()]
        if not quotas:
            pytest.skip("a control group has no quota here")
        (group / quotas[0]).write_text("100000")
        ask = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); import cgroup; print(cgroup.cores())"
        room = ROOT / "model_repository" / "qwen3_vl_embed" / "1" / "embedder" / "forward"
        command = [sys.executable, "-c", ask, str(group / "cgroup.procs")]
        asked = subprocess.run(command, cwd=room, capture_output=True, text=True, check=True)
        assert asked.stdout == "1\n"
    finally:
        group.rmdir()


def test_a_pass_has_no_more_threads_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(cgroup, "cores", lambda: 3)
    assert Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu"))._threads == 3


def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(weights, "memory", lambda: 1_000_000)
    with pytest.raises(
        UnsupportedCheckpoint, match=r"take .* GB in float32.* set EMBED_DTYPE=bfloat16, which takes half"
    ):
        Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu"))
    assert too_large(90, "float32", 100) is None
    assert "EMBED_DTYPE" not in (too_large(9, "bfloat16", 8) or "")
