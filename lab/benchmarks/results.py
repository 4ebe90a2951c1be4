"""A run of a program: its options, and the JSON document that it ends in and leaves as a file."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import rich.progress
import typer
from rich.console import Console
from rich.markdown import Markdown

from lab.benchmarks import blocks, checkpoints, hardware
from lab.benchmarks.hardware import Ceiling
from lab.benchmarks.targets import Key

FOLDER = checkpoints.ROOT / "lab" / "benchmarks" / "results"
QUICK_FOLDER = checkpoints.CACHE / "results"  # never committed: quick runs are for trying the programs
PACKAGES = ("torch", "transformers", "sentence-transformers", "pillow", "numpy")

CheckpointOption = Annotated[str, typer.Option(help="tiny, 100m, 4b, or a folder.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Few repetitions: to see that it works, not to quote.")]
ResultsOption = Annotated[Path | None, typer.Option(help="Folder of the results [default: lab/benchmarks/results].")]

# For people; stdout's last line is for programs. In a log file, tables get room.
console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 110)

Thing = TypeVar("Thing")


def track(what: Iterable[Thing], name: str) -> Iterable[Thing]:
    """With a bar, which is gone at the end."""
    return rich.progress.track(what, name, console=console, transient=True)


@dataclass(frozen=True)
class Run:
    """One call of one program."""

    program: str
    checkpoint: str
    device: str
    quick: bool = False
    results: Path | None = None
    options: str = ""  # those of this program alone, as they are typed
    chosen: bool = True  # whether the program has options for its checkpoint and device
    commit: str | None = field(default_factory=lambda: _commit())  # when it starts

    @property
    def folder(self) -> str:
        return str(checkpoints.folder(self.checkpoint, self.device))

    @property
    def key(self) -> Key:
        return self.program, Path(self.checkpoint).name, self.device.partition(":")[0]

    @property
    def file(self) -> Path:
        return (self.results or (QUICK_FOLDER if self.quick else FOLDER)) / f"{'-'.join(self.key)}.json"

    @property
    def command(self) -> str:
        words = [f"python -m lab.benchmarks.{self.program}"]
        words += [f"--checkpoint {self.checkpoint} --device {self.device}"] if self.chosen else []
        return " ".join([*words, *filter(None, [self.options, "--quick" if self.quick else ""])])

    def ceiling(self) -> Ceiling:
        """Measure it and say it: the first thing that each program prints."""
        dtype = checkpoints.dtype(self.checkpoint, self.device)
        found = Ceiling.measure(self.device, dtype, 0.1 if self.quick else hardware.MEASURE_SECONDS)
        console.print(f"[bold]{self.command}[/]\nceiling: {found}")
        return found

    def document(
        self, about: dict[str, Any] | None, ceiling: dict[str, Any] | None, workload: str, figures: dict[str, Any]
    ) -> dict[str, Any]:
        """What is written; `about`: the machine, by `hardware.describe`."""
        return rounded(
            {
                "program": self.program,
                "checkpoint": self.checkpoint,
                "command": self.command,
                "date": datetime.now(UTC).date().isoformat(),
                "commit": self.commit,
                "hardware": about,
                "versions": {"python": platform.python_version(), **hardware.versions(PACKAGES)},
                "ceiling": ceiling,
                "workload": workload,
                "figures": figures,
            }
        )

    def finish(self, ceiling: Ceiling, workload: str, figures: dict[str, Any]) -> None:
        """Write the file, say what is in it, and print it as the last line of stdout."""
        document = self.document(hardware.describe(self.device), asdict(ceiling), workload, figures)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        console.print(Markdown(blocks.told(self.key, document)))
        console.print(f"written to {self.file.name}")
        print(json.dumps(document, ensure_ascii=False), flush=True)


def rounded(value: Any) -> Any:
    """Floats to four digits: nothing that is measured here has more."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read(folder: Path = FOLDER) -> blocks.Results:
    """Every result in `folder`, by (program, checkpoint, cpu or cuda)."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        program, checkpoint, device = path.stem.split("-")
        found[program, checkpoint, device] = json.loads(path.read_text())
    return found


def _commit() -> str | None:
    """The checked-out commit, with + when files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(checkpoints.ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def fail(sentence: str) -> None:
    """Say why it cannot be measured here and end with status 1."""
    console.print(f"[bold red]{sentence}")
    sys.exit(1)
