"""`bulk` against one server: as fast as 64 callers?

python -m lab.bulk --seconds 20
"""

import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import typer
from PIL import Image

from lab.benchmarks import services
from lab.benchmarks.checkpoints import ROOT, TINY
from lab.benchmarks.inputs import SWATCH
from lab.benchmarks.load import closed, request
from qwen3_vl_embed.pictures import encoded

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def swatch(number: int) -> bytes:
    """A PNG of one colour; 2²⁴ differ."""
    colour = (number * 0x9E3779B1) % 2**24
    return encoded(Image.new("RGB", SWATCH, (colour >> 16, colour >> 8 & 255, colour & 255)))


def bulk(source: Path, out: Path, url: str) -> float:
    """The seconds that it says."""
    words = [sys.executable, "-m", "qwen3_vl_embed.cli", "bulk", str(source), "-o", str(out), "--url", url]
    said = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True).stderr
    return float(said.rsplit(" rows in ", 1)[1].split(" s,")[0])


@app.command(epilog="Example: python -m lab.bulk --seconds 20")
def main(seconds: float = 15, rounds: int = 3) -> None:
    """Rows/s of `bulk` over what 64 callers get, an item a request; they take turns at a server without a cache."""
    with services.running(str(TINY), "cpu") as running, TemporaryDirectory() as place:
        for kind in ("names", "swatches"):
            ratios = []
            for number in range(rounds):
                if kind == "names":
                    requests = [request("/txt/embed", {"input": f"colour {number} {i}"}) for i in range(4096)]
                else:
                    images = [b64encode(swatch(number * 512 + i)).decode() for i in range(512)]
                    requests = [request("/img/embed", {"input": image}) for image in images]
                alone = closed(running.ours, requests, 64, seconds).figures()["requests_per_s"]
                count, source = int(alone * seconds), Path(place, f"{kind}-{number}.txt")
                if kind == "names":
                    source.write_text("".join(f"shade {number} {i}\n" for i in range(count)))
                else:
                    source.mkdir()
                    for i in range(count):
                        (source / f"{i}.png").write_bytes(swatch(10**6 + number * count + i))
                rate = count / bulk(source, Path(place, f"out-{kind}-{number}"), running.ours)
                ratios.append(rate / alone)
                print(f"{kind} 64 callers {alone:.0f}/s, bulk {rate:.0f}/s: {ratios[-1]:.2f}", flush=True)
            print(f"{kind} median ratio {median(ratios):.2f}", flush=True)


if __name__ == "__main__":
    app()
