"""What was tried and what came of it: counts of the documented outcomes, and an example of each that is not one.

Knows no texts. An input is judged by what it raised, how long it took and how much memory was left.
"""

import json
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, thread_time

import psutil
import typer
from rich.console import Console

from embedder.errors import InvalidInput

MAX_SECONDS = 5.0  # of CPU for one input
MAX_GROWTH = 512 * 2**20  # bytes at the end of a run, beyond those after its first thousand inputs
SETTLED = 1000  # inputs after which caches and allocators have what they want
HANG_SECONDS = 60.0
console = Console(stderr=True)


@dataclass
class Findings:
    """One run. `folder` gets one file for each different finding, the smallest input that showed it."""

    name: str
    seed: int
    folder: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    sentences: Counter[str] = field(default_factory=Counter)
    found: dict[str, bytes] = field(default_factory=dict)
    slowest: float = 0.0
    started: float = field(default_factory=perf_counter)
    settled_bytes: int = 0

    @property
    def tried(self) -> int:
        return self.outcomes.total()

    def judge(self, content: bytes, attempt: Callable[[], object]) -> str | None:
        """Run `attempt`; what it did if that is a finding, else None."""
        began, problem, outcome = thread_time(), None, "accepted"
        watch = threading.Timer(HANG_SECONDS, self._hangs, (content,))
        watch.daemon = True
        watch.start()
        try:
            attempt()
        except InvalidInput as error:
            outcome = "refused"
            self.sentences["".join(sign for sign in str(error) if not sign.isdigit())] += 1
        except Exception as error:  # two inputs that fail alike are one finding
            frame = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
        finally:
            watch.cancel()
        took = thread_time() - began
        self.slowest = max(self.slowest, took)
        if took > MAX_SECONDS:
            problem = problem or f"took {took:.0f} s"
        self.note((problem and "finding") or outcome, problem, content)
        return problem

    def note(self, outcome: str, problem: str | None, content: bytes) -> None:
        """Count one input; keep it when it is the smallest that showed this problem."""
        self.outcomes[outcome] += 1
        if self.tried == SETTLED:
            self.settled_bytes = psutil.Process().memory_info().rss
        if problem and len(content) < len(self.found.get(problem, content + b" ")):
            self.found[problem] = content

    def report(self, **more: object) -> None:
        """Save what was found, print the document, and exit with 1 if there is anything."""
        grown = psutil.Process().memory_info().rss - self.settled_bytes if self.settled_bytes else 0
        if grown > MAX_GROWTH:
            self.found[f"grew by {grown >> 20} MB"] = b""
        document = {
            "program": self.name,
            "seed": self.seed,
            "inputs": self.tried,
            "outcomes": dict(self.outcomes),
            "different_sentences": len(self.sentences),
            "findings": sorted(self.found),
            "slowest_cpu_seconds": round(self.slowest, 3),
            "grown_mb": grown >> 20,
            "seconds": round(perf_counter() - self.started, 1),
        }
        self._save()
        print(json.dumps(document | more, ensure_ascii=False))
        raise typer.Exit(bool(self.found))

    def _save(self) -> None:
        for index, (problem, content) in enumerate(sorted(self.found.items())):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{self.name}-{self.seed}-{index}.bin").write_bytes(content)
            console.print(f"[red]{problem}[/red] ({len(content)} bytes)")

    def _hangs(self, content: bytes) -> None:
        """Nothing can be stopped from here: what is saved says which input it was."""
        self.found[f"hangs for more than {HANG_SECONDS:.0f} s"] = content
        self._save()
