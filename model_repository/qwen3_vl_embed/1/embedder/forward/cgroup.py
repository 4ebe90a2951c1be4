"""What a container, or a service's unit, may take of its machine: Linux's control groups, versions 1 and 2.

Neither torch nor psutil asks for it. Sources: cgroups(7), and the kernel's admin-guide, cgroup-v1/memory, cgroup-v2 and
scheduler/sched-bwc.
"""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """Threads that can run at once: by the affinity, and by the smallest quota (`--cpus`, `limits.cpu`), rounded up."""
    found = []
    for group in _groups("cpu"):
        quota, period = (_words(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        found += [_words(group / "cpu.max"), quota + period]
    quotas = [int(given[0]) / int(given[1]) for given in found if len(given) == 2 and given[0] not in ("max", "-1")]
    machine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ceil(min([machine, *quotas]))


def memory() -> int | None:
    """Bytes, by the smallest limit; None without one. Version 1 writes some 2^63 then, which is more than there is."""
    names = ("memory.max", "memory.limit_in_bytes")
    found = [words[0] for group in _groups("memory") for name in names if (words := _words(group / name))]
    return min((int(limit) for limit in found if limit != "max"), default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folder of this process' group, and of each above it; a container sees its own at the mount itself."""
    for line in OWN.read_text().splitlines() if OWN.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = MOUNT / controller if controllers else MOUNT  # version 1 has a mount for each
        yield mount
        group = mount
        for name in path.strip("/").split("/"):
            group /= name
            yield group


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []
