"""The real server under odd requests: schemathesis on its own description, then odd texts among good inputs.

    python -m lab.fuzzing.http --inputs 5000 --seed 1
    python -m lab.fuzzing.http --url http://localhost:8001 --schemathesis-seconds 300

Without --url a stack of its own is started with the tiny checkpoint, and stopped. Every answer is a vector or a
documented error with the one body that errors have; the good ones' vectors are always the same; and the server is
ready afterwards. schemathesis runs where it is installed (`make fuzz` does that): requirements/fuzz.txt.
"""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import perf_counter
from typing import Annotated

import httpx
import numpy as np
import typer
from rich.progress import track

from lab.benchmarks import services, traffic
from lab.benchmarks.inputs import swatch
from lab.fuzzing.findings import Findings, console
from lab.fuzzing.text import TINY, Texts

DOCUMENTED = {200, 400, 413, 429}  # what these requests may be answered with
CALLERS = 8
MAX_SECONDS = 10.0  # of one request, among so many callers
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Asked:
    """One request; `expected` is the vector of a good one."""

    path: str
    body: dict
    expected: np.ndarray | None = None


class Caller:
    """Draws requests, sends them, judges the answers; for several threads at once."""

    def __init__(self, http: httpx.Client, result: Findings, seed: int) -> None:
        self.http, self.result = http, result
        self.random = np.random.default_rng(seed)
        self.texts = Texts(SPECIAL, self.random)
        self.lock = Lock()
        self.good = [self._known(Asked("/txt/embed", {"input": "very dark teal"}))]
        self.good.append(self._known(Asked("/img/embed", {"input": traffic.data_url(swatch(0))})))

    def step(self, _: int) -> None:
        with self.lock:  # the generator's order is the seed's; the answers' is not
            asked = self._draw()
        began = perf_counter()
        try:
            problem, outcome = self._judge(asked, self.http.post(asked.path, json=asked.body))
        except (httpx.HTTPError, ValueError) as error:
            problem, outcome = type(error).__name__, "finding"
        took = perf_counter() - began
        if took > MAX_SECONDS:
            problem, outcome = problem or f"took more than {MAX_SECONDS:g} s", "finding"
        with self.lock:
            self.result.slowest = max(self.result.slowest, took)
            self.result.note(outcome, problem, json.dumps([asked.path, asked.body]).encode())

    def _draw(self) -> Asked:
        kind = self.random.random()
        if kind < 0.5:
            return self.good[int(kind < 0.25)]
        odd = {"input": self.texts.text(), **self.texts.options()}
        sent = json.dumps(odd, ensure_ascii=False).encode("utf-8", "replace")  # nobody can send half a surrogate pair
        return Asked("/txt/embed", json.loads(sent))

    def _judge(self, asked: Asked, response: httpx.Response) -> tuple[str | None, str]:
        status, body = response.status_code, response.json()
        if status not in DOCUMENTED or (status != 200 and asked.expected is not None):
            return f"status {status}", "finding"
        if status != 200:
            complete = set(body["error"]) == {"message", "type", "param", "code"}
            return None if complete else "an error of another form", "refused" if complete else "finding"
        vector = np.array(body["embedding"])
        if not np.isfinite(vector).all() or abs(np.linalg.norm(vector) - 1) > 1e-4:
            return "no unit vector", "finding"
        if asked.expected is not None and vector @ asked.expected < 0.99999:
            return "another vector of a good input", "finding"
        return None, "accepted" if asked.expected is None else "good"

    def _known(self, asked: Asked) -> Asked:
        answer = self.http.post(asked.path, json=asked.body).raise_for_status().json()
        return Asked(asked.path, asked.body, np.array(answer["embedding"]))


def schemathesis(url: str, program: str, seed: int, seconds: int, result: Findings) -> str:
    """Run it on the server's own description; what it prints goes to stderr, and failures are one finding."""
    found = shutil.which(program)
    if found is None:
        return f"not run: no {program}"
    command = [
        str(Path(found).absolute()),
        "run",
        f"{url}/openapi.json",
        "--seed",
        str(seed),
        "--max-time",
        str(seconds),
    ]
    command += ["--checks", CHECKS, "--workers", "2", "--warnings", "off", "--no-color"]
    command += ["--header", "x-timeout: 30"]  # one of 5e-324 s is rightly answered with a 504
    with TemporaryDirectory() as folder:  # it keeps notes where it runs
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 120, check=False)
    console.print(done.stdout, markup=False)
    result.note("schemathesis", "schemathesis" if done.returncode else None, done.stdout.encode())
    summary = [line for line in done.stdout.splitlines() if "generated" in line or "cases" in line]
    return " ".join(summary).strip()


@app.command(epilog="Example: python -m lab.fuzzing.http --inputs 5000 --seed 1")
def main(
    url: Annotated[str | None, typer.Option(help="a running adapter; without it one is started")] = None,
    inputs: Annotated[int, typer.Option(help="how many requests, half of them good ones")] = 10_000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same requests")] = 0,
    schemathesis_seconds: Annotated[int, typer.Option(help="how long schemathesis may take; 0: not at all")] = 60,
    program: Annotated[str, typer.Option(help="schemathesis' command")] = ".cache/fuzz/bin/st",
    findings: Annotated[Path, typer.Option(help="where requests without a documented outcome are kept")] = Path(
        "findings"
    ),
) -> None:
    """Send odd requests to the real server; the last line is what came of it, as JSON."""
    if url is None:
        with services.running(str(TINY), "cpu", console, with_plan=False) as started:
            result, summary = attack(started.ours, inputs, seed, schemathesis_seconds, program, findings)
    else:
        result, summary = attack(url, inputs, seed, schemathesis_seconds, program, findings)
    result.report(schemathesis=summary)


def attack(url: str, inputs: int, seed: int, seconds: int, program: str, folder: Path) -> tuple[Findings, str]:
    """Both parts, and whether the server is ready after them."""
    result = Findings("http", seed, folder)
    summary = schemathesis(url, program, seed, seconds, result) if seconds else "not asked for"
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(CALLERS) as pool:
        caller = Caller(http, result, seed)
        for _ in track(pool.map(caller.step, range(inputs)), "http", total=inputs, console=console, transient=True):
            pass
        ready = http.get("/health").status_code
    result.note("ready" if ready == 200 else "finding", None if ready == 200 else f"health {ready}", b"")
    return result, summary


if __name__ == "__main__":
    app()
