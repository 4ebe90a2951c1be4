"""Everything that a new GPU must show, in one command: no Triton, no network, no 9 GB file.

    python -m lab.benchmarks.gpu_check --json gpu.json

The 4B's configuration with weights drawn on the device, in twelve checks (gpu_checks/): four minutes on an H200.
Each line says at once what was found and what was expected: `ok`, `SLOW` (right, and not as fast as predicted), `FAIL`.
No check stops another. One that raises, hangs or ends its process is a FAIL, and a fresh process goes on with the next
one. After some errors a GPU is lost to the process that made them. `--device cpu` runs the same code with small shapes
in a minute; there, what only CUDA has says `skipped`.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text

from lab.benchmarks import hardware
from lab.benchmarks.gpu import is_cuda
from lab.benchmarks.gpu_checks import CHECKS, Check
from lab.benchmarks.gpu_checks.bench import Bench
from lab.benchmarks.gpu_checks.figures import Figure, Verdict
from lab.benchmarks.gpu_checks.serving import BUSY
from lab.benchmarks.results import DeviceOption, Run, console, fail

START_SECONDS = 120.0  # of a process, before it says what it runs on and begins
COLOURS = {Verdict.SKIPPED: "dim", Verdict.OK: "green", Verdict.SLOW: "yellow", Verdict.FAIL: "bold red"}
WORKLOAD = "the 4B's configuration, random weights; on a CPU two million of them and small batches"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass
class Outcome:
    """What became of one check."""

    check: Check
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of its lines; `skipped` only if all are."""
        return max((figure.verdict for figure in self.figures), key=list(Verdict).index, default=Verdict.FAIL)

    def as_dict(self) -> dict[str, Any]:
        about = {"number": self.check.number, "title": self.check.title, "verdict": str(self.verdict)}
        return about | {"seconds": self.seconds, "figures": [asdict(figure) for figure in self.figures]}


def work(checks: Sequence[Check], device: str, folder: str, messages: Connection) -> None:
    """In a process of its own: one check after the other, until one raises; temporary files go into `folder`.

    Sends each figure, what it learns about the machine, and after each check whether it came to its end.
    """
    os.setpgid(0, 0)  # with its own children, so that all of them can be ended together
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        bench = Bench(device)
        messages.send({"hardware": hardware.describe(bench.device)})
        for check in checks:
            try:
                for figure in check.run(bench):
                    messages.send(figure)
            finally:
                messages.send(bench.found)
            messages.send(True)
    except Exception as error:
        traceback.print_exc()
        said = (str(error).strip().splitlines() or ["without a word"])[0]
        messages.send(Figure("raised", f"{type(error).__name__}: {said}", verdict=Verdict.FAIL))
        messages.send(False)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


class Runner:
    """Runs checks in processes that may be lost, and keeps what they found."""

    def __init__(
        self, checks: Sequence[Check], device: str, seconds: float, after_each: Callable[["Runner"], None]
    ) -> None:
        """`seconds`: for all of them together; what has not begun by then fails."""
        self.outcomes = [Outcome(check) for check in checks]
        self.about: dict[str, Any] = {}  # `hardware` and what `Bench.found` has, as soon as they are known
        self._device, self._until, self._after_each = device, monotonic() + seconds, after_each

    def run(self) -> None:
        """All of them, each to its end or its failure."""
        todo = self.outcomes
        with TemporaryDirectory(prefix="gpu-check-") as folder:
            while todo and monotonic() < self._until:
                todo = self._one_process(todo, folder)
        for outcome in todo:
            self._say(outcome, Figure("not begun", "--seconds were over", verdict=Verdict.FAIL))
        self._after_each(self)

    @property
    def counts(self) -> dict[str, int]:
        """Lines by verdict."""
        found = Counter(figure.verdict for outcome in self.outcomes for figure in outcome.figures)
        return {verdict.lower(): found[verdict] for verdict in Verdict}

    def figures(self) -> dict[str, Any]:
        """For the document: all lines, what targets are set for, and the longest kernels."""
        lines = [figure for outcome in self.outcomes for figure in outcome.figures]
        busy = next((each.value for each in lines if each.what == BUSY and each.verdict != Verdict.SKIPPED), None)
        checks = [outcome.as_dict() for outcome in self.outcomes if outcome.figures]
        found = {name: value for name, value in self.about.items() if name not in ("hardware", "ceiling")}
        return {"counts": self.counts, "busy": busy, **found, "checks": checks}

    def _one_process(self, todo: list[Outcome], folder: str) -> list[Outcome]:
        """Runs them in one process, as far as it goes; returns those that it did not begin."""
        context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
        messages, theirs = context.Pipe(duplex=False)
        checks = [outcome.check for outcome in todo]
        process = context.Process(target=work, args=(checks, self._device, folder, theirs))
        process.start()
        theirs.close()
        try:
            for index, outcome in enumerate(todo):
                if monotonic() > self._until:
                    return todo[index:]
                whole = self._one_check(outcome, process, messages, 0.0 if index else START_SECONDS)
                self._after_each(self)
                if not whole:
                    return todo[index + 1 :]
            process.join(10)
            return []
        finally:
            _end(process)

    def _one_check(self, outcome: Outcome, process: BaseProcess, messages: Connection, spare: float) -> bool:
        """Take what it sends; False when its process is of no use any more. `spare`: seconds for the process' start."""
        console.print(f"[bold]{outcome.check.number}  {outcome.check.title}")
        started = monotonic()
        until = min(started + outcome.check.seconds + spare, self._until)
        try:
            while messages.poll(max(0.0, until - monotonic())):
                message = messages.recv()
                if isinstance(message, bool):
                    return message
                if isinstance(message, Figure):
                    self._say(outcome, message)
                else:
                    self.about |= message
                    until = min(until, monotonic() + outcome.check.seconds)
            self._say(outcome, Figure("no end", f"after {monotonic() - started:.0f} s", verdict=Verdict.FAIL))
        except EOFError:  # it closed its end without a word: it is gone
            process.join(5)
            status = process.exitcode
            how = "only its pipe" if status is None else f"with status {status}"
            how = f"by {signal.Signals(-status).name}" if status and status < 0 else how
            self._say(outcome, Figure("its process ended", how, verdict=Verdict.FAIL))
        finally:
            outcome.seconds = monotonic() - started
        return False

    def _say(self, outcome: Outcome, figure: Figure) -> None:
        outcome.figures.append(figure)
        console.print(Text(f"   {figure}", COLOURS[figure.verdict]), soft_wrap=True)


def _end(process: BaseProcess) -> None:
    """It, and the children that it may have left."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # one that was too young to have a group
    process.join()


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each check, and what was not as expected."""
    drawn = Table("", "check", "", "s", "not as expected", title="GPU check")
    for outcome in outcomes:
        odd = [str(each) for each in outcome.figures if each.verdict in (Verdict.SLOW, Verdict.FAIL)]
        verdict = Text(outcome.verdict, COLOURS[outcome.verdict])
        title, said = outcome.check.title, Text("\n".join(odd))
        drawn.add_row(str(outcome.check.number), title, verdict, f"{outcome.seconds:.0f}", said)
    return drawn


def chosen(only: str) -> list[Check]:
    """The checks of `3,5`; all of them for an empty string.

    Raises:
        typer.BadParameter: no such check.
    """
    known = {str(check.number): check for check in CHECKS}
    names = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"no check {', '.join(unknown)}; there are {', '.join(known)}")
    return [check for name, check in known.items() if name in names]


EXAMPLES = (
    "Examples: python -m lab.benchmarks.gpu_check --json gpu.json; python -m lab.benchmarks.gpu_check --only 5,8; "
    "python -m lab.benchmarks.gpu_check --device cpu"
)


@app.command(epilog=EXAMPLES)
def main(
    only: Annotated[str, typer.Option(help="Numbers of the checks to run, such as 3,5 [default: all].")] = "",
    seconds: Annotated[float, typer.Option(help="For all of them; what has not begun by then fails.")] = 420,
    device: DeviceOption = "cuda",
    file: Annotated[Path | None, typer.Option("--json", help="Write the document here too, after each check.")] = None,
) -> None:
    """Check the GPU path: right, as fast as predicted, and whole after failures. Status 0 only without a FAIL."""
    checks = chosen(only)
    if is_cuda(device) and not torch.cuda.is_available():
        fail("torch sees no CUDA device here: nvidia-smi tells whether there is one; --device cpu runs small shapes")
    if not is_cuda(device):
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler says each time that there is no GPU
    options = f"--device {device}" + (f" --only {only}" if only else "")
    run = Run("gpu_check", "4b" if is_cuda(device) else "mini", device, options=options, chosen=False)

    def document(runner: Runner, indent: int | None = None) -> str:
        about, ceiling = runner.about.get("hardware"), runner.about.get("ceiling")
        found = run.document(about, ceiling, WORKLOAD, runner.figures())
        return json.dumps(found, indent=indent, ensure_ascii=False)

    def write(runner: Runner) -> None:
        if file:
            file.write_text(document(runner, 1) + "\n")

    runner = Runner(checks, device, seconds, write)
    runner.run()
    console.print(table(runner.outcomes))
    console.print(", ".join(f"{count} {verdict}" for verdict, count in runner.counts.items()))
    print(document(runner), flush=True)
    sys.exit(1 if runner.counts["fail"] else 0)


if __name__ == "__main__":
    app()
