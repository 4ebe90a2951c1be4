"""`bulk` against one server: as fast as 64 callers, and each row once whatever kills it.

Example: python -m lab.bulk share --seconds 20
         python -m lab.bulk killed --names 100000 --swatches 20000
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import pyarrow.parquet as pq
import typer
from PIL import Image

from lab.ports import serve_settings
from qwen3_vl_embed.serving.console import Console
from qwen3_vl_embed.serving.settings import ROOT
from qwen3_vl_embed.serving.stack import Stack

CHECKPOINT = ROOT / "checkpoints" / "qwen3-vl-color-tiny"
SIDE = 244

app = typer.Typer(add_completion=False)


def swatch(number: int) -> bytes:
    """A PNG of one colour; 2²⁴ differ."""
    colour = (number * 0x9E3779B1) % 2**24
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (colour >> 16, colour >> 8 & 255, colour & 255)).save(file, "PNG")
    return file.getvalue()


def bulk(source: Path, out: Path, url: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "qwen3_vl_embed.cli", "bulk", str(source), "-o", str(out), "--url", url]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)


def stack() -> Stack:
    os.environ.setdefault("ADAPTER_LOG_LEVEL", "warning")
    os.environ.setdefault("ADAPTER_CACHE_BYTES", "0")
    return Stack(serve_settings(), str(CHECKPOINT), Console(stderr=True))


@app.command()
def share(seconds: float = 15, rounds: int = 3) -> None:
    """Rows/s of `bulk` over what 64 callers get, an item a request; they take turns at a server without a cache."""
    from lab.benchmarks.load import closed, request  # torch comes with it, and `memory` is without

    server = stack()
    try:
        server.start()
        with tempfile.TemporaryDirectory() as place:
            for kind in ("names", "swatches"):
                got: list[tuple[float, float]] = []
                for number in range(rounds):
                    if kind == "names":
                        requests = [request("/txt/embed", {"input": f"colour {number} {i}"}) for i in range(4096)]
                    else:
                        images = [b64encode(swatch(number * 512 + i)).decode() for i in range(512)]
                        requests = [request("/img/embed", {"input": image}) for image in images]
                    alone = closed(server.url, requests, 64, seconds).figures()["requests_per_s"]
                    count = int(alone * seconds)
                    source = Path(place, f"{kind}-{number}.txt")
                    if kind == "names":
                        source.write_text("".join(f"shade {number} {i}\n" for i in range(count)))
                    else:
                        source.mkdir()
                        for i in range(count):
                            (source / f"{i}.png").write_bytes(swatch(10**6 + number * count + i))
                    job = bulk(source, Path(place, f"out-{kind}-{number}"), server.url)
                    told = job.communicate()[1].decode()
                    took = float(told.rsplit(" rows in ", 1)[1].split(" s,")[0])
                    got.append((alone, count / took))
                    print(
                        kind,
                        f"64 callers {alone:.0f}/s, bulk {count / took:.0f}/s: {count / took / alone:.2f}",
                        flush=True,
                    )
                print(kind, f"median ratio {median(b / a for a, b in got):.2f}", flush=True)
    finally:
        server.stop()


@app.command()
def killed(names: int = 100_000, swatches: int = 20_000, times: int = 2) -> None:
    """Both jobs with `kill -9` so many times on the way; then each row is counted."""
    server = stack()
    try:
        server.start()
        with tempfile.TemporaryDirectory() as place:
            texts, pictures = Path(place, "names.txt"), Path(place, "pictures")
            texts.write_text("".join(f"a colour like {i} others\n" for i in range(names)))
            pictures.mkdir()
            for i in range(swatches):
                (pictures / f"{i:06}.png").write_bytes(swatch(i))
            for source, count in ((texts, names), (pictures, swatches)):
                out, started = Path(place, f"out of {source.name}"), time.perf_counter()
                for kill in range(times):
                    job = bulk(source, out, server.url)
                    while len(list(out.glob("part-*"))) < kill + 1 and job.poll() is None:
                        time.sleep(0.1)
                    time.sleep(1.5)
                    job.kill()
                    job.communicate()
                    print(f"killed with {rows(out):,} of {count:,} rows in its parts", flush=True)
                job = bulk(source, out, server.url)
                told = job.communicate()[1].decode()
                ids = Counter(id for part in out.glob("part-*") for id in pq.read_table(part)["id"].to_pylist())
                print(told.strip().splitlines()[-1], f"exit code {job.returncode}")
                once = sum(times == 1 for times in ids.values())
                print(f"{source.name}: {once:,} of {count:,} rows once, {len(ids) - once} more often; "
                      f"{time.perf_counter() - started:.0f} s in all", flush=True)  # fmt: skip
    finally:
        server.stop()


@app.command()
def memory(rows_: Annotated[int, typer.Option("--rows")] = 1_000_000, every: int = 100_000) -> None:
    """The memory of `bulk` while so many names go through a real server, and at the most."""
    server = stack()
    try:
        server.start()
        with tempfile.TemporaryDirectory() as place:
            source, out = Path(place, "names.txt"), Path(place, "out")
            with source.open("w") as file:
                file.writelines(f"a colour like {number} others\n" for number in range(rows_))
            started, told, most = time.perf_counter(), 0, 0
            job = bulk(source, out, server.url)
            process = psutil.Process(job.pid)
            while job.poll() is None:
                time.sleep(1)
                with suppress(psutil.NoSuchProcess):
                    most = max(most, process.memory_info().rss)
                if (done := rows(out)) >= told + every:
                    told = done
                    print(f"{done:>9,} rows: {most / 2**20:.0f} MiB, {time.perf_counter() - started:.0f} s", flush=True)
            print(job.communicate()[1].decode().strip().splitlines()[-1], f"{most / 2**20:.0f} MiB at the most")
    finally:
        server.stop()


def rows(folder: Path) -> int:
    return sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*"))


if __name__ == "__main__":
    app()
