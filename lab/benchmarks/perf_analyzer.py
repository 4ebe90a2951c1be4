"""NVIDIA's perf_analyzer against Triton alone, past the adapter: names and swatches in turn, from an input file.

Its binary comes in the wheel tritonclient 2.48 (requirements/perf_analyzer.txt, in an environment of its own: the
project's tritonclient is newer). It needs two libraries beside it: Debian's libb64-0d, and a CUDA runtime, which the
tritonserver wheel has. Throughput is taken over its measurement windows; its `--request-count` rounds the seconds.
"""

import base64
import csv
import json
import os
import struct
import subprocess
from ctypes.util import find_library
from pathlib import Path
from tempfile import TemporaryDirectory

from embedder import EmbedInput
from lab.benchmarks.checkpoints import ROOT

HOME = ROOT / ".cache" / "perf_analyzer"
BINARY, LIBRARIES = HOME / "bin" / "perf_analyzer", HOME / "lib"  # `make bench-setup` makes both
WINDOW_MS = 4000
STABILITY = 50  # percent that three windows may differ by: cores are shared here
COLUMNS = {
    "requests_per_s": ("Inferences/Second", 1.0),
    "p50_ms": ("p50 latency", 1e-3),
    "p95_ms": ("p95 latency", 1e-3),
    "p99_ms": ("p99 latency", 1e-3),
}


def missing() -> str | None:
    """The sentence that says what it lacks here; None when it can run."""
    if not BINARY.is_file():
        return "perf_analyzer is not installed: make bench-setup"
    if find_library("b64") is None:
        return "perf_analyzer needs libb64.so.0d: apt install libb64-0d"
    if not (LIBRARIES / "libcudart.so.12").exists():
        return "perf_analyzer needs a CUDA runtime 12, which the tritonserver wheel brings: make bench-setup"
    return None


def measure(address: str, batch: list[EmbedInput], callers: int, window_ms: int = WINDOW_MS) -> dict[str, float | str]:
    """Requests a second and latencies at `callers` concurrent requests; `address` is Triton's gRPC, host:port.

    When it fails (on a busy machine it finds no steady windows), `failed` is the last line that it said.
    """
    with TemporaryDirectory() as folder:
        data, report = Path(folder, "inputs.json"), Path(folder, "report.csv")
        data.write_text(json.dumps({"data": [_entry(item) for item in batch]}))
        environment = os.environ | {
            "LD_LIBRARY_PATH": f"{LIBRARIES}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        }
        command = [BINARY, "-m", "qwen3_vl_embed", "-u", address, "-i", "grpc", "--async", "--input-data", data]
        command += ["--concurrency-range", str(callers), "-p", str(window_ms), "-s", str(STABILITY), "-f", report]
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300)
        if not report.is_file():
            return {"failed": (done.stderr or done.stdout).strip().splitlines()[-1]}
        row = next(csv.DictReader(report.open()))
    return {name: float(row[column]) * scale for name, (column, scale) in COLUMNS.items()}


def _entry(item: EmbedInput) -> dict:
    """One request: each input is a BYTES element, base64 of a 4-byte length and the content."""
    contents = {"text": (item.text or "").encode(), "image": item.image or b"", "options": b""}
    return {
        name: {"content": {"b64": base64.b64encode(struct.pack("<I", len(each)) + each).decode()}, "shape": [1]}
        for name, each in contents.items()
    }
