"""`bulk` against one server: as fast as 64 callers, and each row once whatever kills it.

Example: python -m lab.bulk share --seconds 20
         python -m lab.bulk killed --names 100000 --swatches 20000
"""

import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import pyarrow.parquet as pq
import typer
from PIL import Image

from lab.benchmarks import services
from lab.benchmarks.checkpoints import ROOT, TINY
from lab.benchmarks.inputs import SWATCH
from lab.benchmarks.load import closed, request
from qwen3_vl_embed.pictures import encoded

app = typer.Typer(add_completion=False)


def swatch(number: int) -> bytes:
    """A PNG of one colour; 2²⁴ differ."""
    colour = (number * 0x9E3779B1) % 2**24
    return encoded(Image.new("RGB", SWATCH, (colour >> 16, colour >> 8 & 255, colour & 255)))


def bulk(source: Path, out: Path, url: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "qwen3_vl_embed.cli", "bulk", str(source), "-o", str(out), "--url", url]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)


def told(job: subprocess.Popen[bytes]) -> str:
    """Its last line."""
    return job.communicate()[1].decode().strip().splitlines()[-1]


@contextmanager
def serving() -> Iterator[tuple[Path, str]]:
    """A folder of one's own, and the address of a server without a cache."""
    with services.running(str(TINY), "cpu") as running, TemporaryDirectory() as place:
        yield Path(place), running.ours


def rows(folder: Path) -> int:
    return sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*"))


@app.command()
def share(seconds: float = 15, rounds: int = 3) -> None:
    """Rows/s of `bulk` over what 64 callers get, an item a request; they take turns at a server without a cache."""
    with serving() as (place, url):
        for kind in ("names", "swatches"):
            ratios = []
            for number in range(rounds):
                if kind == "names":
                    requests = [request("/txt/embed", {"input": f"colour {number} {i}"}) for i in range(4096)]
                else:
                    images = [b64encode(swatch(number * 512 + i)).decode() for i in range(512)]
                    requests = [request("/img/embed", {"input": image}) for image in images]
                alone = closed(url, requests, 64, seconds).figures()["requests_per_s"]
                count, source = int(alone * seconds), place / f"{kind}-{number}.txt"
                if kind == "names":
                    source.write_text("".join(f"shade {number} {i}\n" for i in range(count)))
                else:
                    source.mkdir()
                    for i in range(count):
                        (source / f"{i}.png").write_bytes(swatch(10**6 + number * count + i))
                said = bulk(source, place / f"out-{kind}-{number}", url).communicate()[1].decode()
                rate = count / float(said.rsplit(" rows in ", 1)[1].split(" s,")[0])
                ratios.append(rate / alone)
                print(f"{kind} 64 callers {alone:.0f}/s, bulk {rate:.0f}/s: {ratios[-1]:.2f}", flush=True)
            print(f"{kind} median ratio {median(ratios):.2f}", flush=True)


@app.command()
def killed(names: int = 100_000, swatches: int = 20_000, times: int = 2) -> None:
    """Both jobs with `kill -9` so many times on the way; then each row is counted."""
    with serving() as (place, url):
        texts, pictures = place / "names.txt", place / "pictures"
        texts.write_text("".join(f"a colour like {i} others\n" for i in range(names)))
        pictures.mkdir()
        for i in range(swatches):
            (pictures / f"{i:06}.png").write_bytes(swatch(i))
        for source, count in ((texts, names), (pictures, swatches)):
            out, started = place / f"out of {source.name}", time.perf_counter()
            for kill in range(times):
                job = bulk(source, out, url)
                while len(list(out.glob("part-*"))) < kill + 1 and job.poll() is None:
                    time.sleep(0.1)
                time.sleep(1.5)
                job.kill()
                job.communicate()
                print(f"killed with {rows(out):,} of {count:,} rows in its parts", flush=True)
            job = bulk(source, out, url)
            said = told(job)
            ids = Counter(id for part in out.glob("part-*") for id in pq.read_table(part)["id"].to_pylist())
            once = sum(times == 1 for times in ids.values())
            print(f"{said} exit code {job.returncode}")
            print(f"{source.name}: {once:,} of {count:,} rows once, {len(ids) - once} more often; "
                  f"{time.perf_counter() - started:.0f} s in all", flush=True)  # fmt: skip


@app.command()
def memory(rows_: Annotated[int, typer.Option("--rows")] = 1_000_000, every: int = 100_000) -> None:
    """The memory of `bulk` while so many names go through a real server, and at the most."""
    with serving() as (place, url):
        source, out = place / "names.txt", place / "out"
        with source.open("w") as file:
            file.writelines(f"a colour like {number} others\n" for number in range(rows_))
        started, shown, most = time.perf_counter(), 0, 0
        job = bulk(source, out, url)
        process = psutil.Process(job.pid)
        while job.poll() is None:
            time.sleep(1)
            with suppress(psutil.NoSuchProcess):
                most = max(most, process.memory_info().rss)
            if (done := rows(out)) >= shown + every:
                shown = done
                print(f"{done:>9,} rows: {most / 2**20:.0f} MiB, {time.perf_counter() - started:.0f} s", flush=True)
        print(told(job), f"{most / 2**20:.0f} MiB at the most")


if __name__ == "__main__":
    app()
