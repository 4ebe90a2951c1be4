"""What of Triton's log a person wants to see, and the one line that says why a model did not load."""

import os
import re
from contextlib import suppress
from typing import Any, TextIO

# Harmless on a machine without a GPU and said at every start; or the reason of a failed start, which we say once, last.
NOISE = re.compile(
    r"CudaDriverHelper|NVML|DCGM|pinned memory|CUDA memory pool|Cuda support|No memory type"
    r"|Failed to create instance|failed to load|creating server"
)
GLOG = re.compile(r'^(?P<level>[IWEF])\d{4} \S+ +\d+ (?P<where>[^\]]+)\] *"?(?P<message>.*?)"?$')
REASON = re.compile(r"failed to load '[^']+' version \d+: (?:\w+: )?(.*)")
WHAT = re.compile(r"  what\(\): +(.*)")  # of an exception that ended a process of C++, as the model's begins


def quiet(line: str) -> str | None:
    """Warnings, errors and the model's own lines; Triton's tables and reports are left out."""
    if NOISE.search(line) or not line.strip() or line[0] in "+|":
        return None
    parsed = GLOG.match(line)
    if parsed is None:
        return line if WHAT.match(line) or not line.startswith(("  ", "Loading weights")) else None
    if parsed["level"] == "I" and not parsed["where"].startswith("model.py"):
        return None
    return parsed["message"].split("\\n")[0]


def everything(line: str) -> str | None:
    return line or None


def load_failure(lines: list[str]) -> str:
    """The sentence with which the model refused to load, or the log's last error, or its last line."""
    for line in lines:
        if found := REASON.search(line) or WHAT.match(line):
            reason = found[1].split("\\n\\nAt:")[0].split("\\nAt:")[0].rstrip('"')
            return reason.replace("\\n", "\n").removeprefix("TritonModelException: ")
    errors = [line for line in lines if line.startswith(("E", "F", "error")) and not NOISE.search(line)]
    return (errors or [line for line in lines if line.strip()] or ["it said nothing"])[-1]


class Unfailing:
    """A stream that loses what cannot be written: a full disk or a closed pipe is no reason to stop serving.

    It writes to the file itself: Python keeps what a buffer could not pass on, and exits with 120 for it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(self._stream.fileno(), text.encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
