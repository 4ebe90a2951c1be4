"""schemathesis against the real server, on the server's own description.

    python -m lab.fuzz --seconds 60 --seed 1
    python -m lab.fuzz --url http://localhost:8001
    python -m lab.fuzz --paths '^/(v1|v2|vectorize)' --cases 7000 --seconds 3600

Without --url a stack of its own is started with the tiny checkpoint, and stopped. schemathesis runs in an environment
of its own (`make fuzz` makes it, from requirements/fuzz.txt). The exit status is its own, or 1 when the server is not
ready afterwards. Odd texts and files are the tests' affair: `tests/test_odd_texts.py`, `tests/bad_inputs.py`.
"""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer

from lab.benchmarks import checkpoints, services
from lab.benchmarks.results import console

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: python -m lab.fuzz --seconds 60 --seed 1")
def main(
    url: Annotated[str | None, typer.Option(help="A running adapter; without it one is started.")] = None,
    seconds: Annotated[int, typer.Option(help="How long it may take.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same requests.")] = 0,
    paths: Annotated[str, typer.Option(help="Only the paths in which this regular expression is found.")] = "",
    cases: Annotated[int | None, typer.Option(help="At most so many drawn requests of each endpoint.")] = None,
    program: Annotated[Path, typer.Option(help="schemathesis' command.")] = Path(".cache/fuzz/bin/st"),
) -> None:
    """Send what the description allows and what it does not; every answer must be one that it describes."""
    if not program.exists():
        sys.exit(f"{program} is not there: make fuzz")
    with nullcontext() if url else services.running(str(checkpoints.TINY), "cpu") as started:
        url = started.ours if started else url
        command = [str(program.absolute()), "run", f"{url}/openapi.json", "--seed", str(seed)]
        command += ["--max-time", str(seconds), "--checks", CHECKS, "--workers", "2", "--warnings", "off", "--no-color"]
        command += ["--header", "x-timeout: 30"]  # one of 5e-324 s is rightly answered with a 504
        command += (["--include-path-regex", paths] if paths else []) + (
            ["--max-examples", str(cases)] if cases else []
        )
        with TemporaryDirectory() as folder:  # it keeps notes where it runs
            status = subprocess.run(command, cwd=folder, timeout=seconds + 120, check=False).returncode
        ready = httpx.get(f"{url}/health", timeout=60).status_code
    console.print(f"schemathesis ended with {status}; health {ready}")
    raise typer.Exit(status or int(ready != 200))


if __name__ == "__main__":
    app()
