"""What `serving` started does not outlive it, not even after a kill -9 that leaves it no time to stop anything.

A process of its own holds the end of a pipe whose other end is ours alone. The kernel closes that one however we end;
then it kills the process groups that it was told of and removes their shared memory. (`PR_SET_PDEATHSIG` would do
neither for grandchildren, and fires when the starting thread ends.) It cannot help when it is killed first.

    reaper.py PREFIX    process groups on stdin, a line each, `-` before one that is over
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


class Reaper:
    """Runs from here to `close`, or to our end."""

    def __init__(self, prefix: str, environment: dict[str, str]) -> None:
        """`prefix`: of the names of all shared memory that our processes make."""
        self._popen = subprocess.Popen(
            [sys.executable, "-S", __file__, prefix],
            env=environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int) -> None:
        self._say(str(group))

    def release(self, group: int) -> None:
        """Its number may soon be somebody else's."""
        self._say(f"-{group}")

    def close(self) -> None:
        """Everything that it still knows of is killed."""
        assert self._popen.stdin
        with suppress(BrokenPipeError):
            self._popen.stdin.close()
        self._popen.wait()

    def _say(self, line: str) -> None:
        assert self._popen.stdin
        with suppress(BrokenPipeError):  # somebody killed it: we can serve without
            print(line, file=self._popen.stdin, flush=True)


def remove_regions(prefix: str) -> None:
    """A killed Triton leaves its shared memory behind, and so does one whose start failed half-way."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def reap(lines: Iterable[str], prefix: str) -> None:
    """Read to the end, then end what is left."""
    groups: set[int] = set()
    for line in lines:
        group = int(line)
        groups = groups | {group} if group > 0 else groups - {-group}
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    remove_regions(prefix)


if __name__ == "__main__":
    reap(sys.stdin, sys.argv[1])
