"""What must be reached, and the figure that says whether it was, taken from the results' files."""

from collections.abc import Callable
from dataclasses import dataclass

Key = tuple[str, str, str]  # program, checkpoint, cpu or cuda
GPU_COMMAND = "`make bench-gpu`"


@dataclass(frozen=True)
class Target:
    """One row of the table."""

    where: str
    what: str
    key: Key
    least: float
    figure: Callable[[dict], float | None]  # from a result's `figures`
    unit: str = "×"
    at_most: bool = False
    in_readme: bool = True
    beside: Callable[[dict], str] = lambda figures: ""  # what is told with the figure

    def value(self, results: dict[Key, dict]) -> float | None:
        """The figure; None while its program or its part was not run."""
        return self.figure(results[self.key]["figures"]) if self.key in results else None

    def reached(self, value: float) -> bool:
        return value <= self.least if self.at_most else value >= self.least

    def cells(self, results: dict[Key, dict]) -> list[str]:
        """Where, what, target, figure, and what there is to say."""
        bound = f"{'≤' if self.at_most else '≥'} {self.least:g}{self.unit}"
        value, cuda = self.value(results), self.key[2] == "cuda"
        if value is None:
            how = f"needs a GPU: {GPU_COMMAND}" if cuda else "`make bench`"
            return [self.where, self.what, bound, "not measured", how]
        where = self.where.replace("GPU", results[self.key]["hardware"]["device"]) if cuda else self.where
        verdict = "reached" if self.reached(value) else "missed: see the log"
        said = f"{value:.2f}" if isinstance(value, float) else f"{value}"  # a count is whole
        told = f"**{said}{self.unit}**{self.beside(results[self.key]['figures'])}"
        return [where, self.what, bound, told, verdict]


def replay(name: str) -> Callable[[dict], float | None]:
    return lambda figures: figures.get("replay", {}).get(name)


def throughput(callers: int) -> Callable[[dict], float | None]:
    """Ours over the plain service's at that many callers."""

    def ratio(figures: dict) -> float | None:
        rows = figures.get("load", {}).get("closed", [])
        rates = {row["service"]: row["requests_per_s"] for row in rows if row["callers"] == callers}
        return rates["ours"] / rates["plan"] if rates else None

    return ratio


def against(name: str) -> Callable[[dict], float | None]:
    """In the dtype of its own default."""
    return lambda figures: figures["contenders"].get(name, {}).get("times_ours")


def in_our_dtype(name: str) -> Callable[[dict], float | None]:
    """Its default, where nothing else was run."""

    def times(figures: dict) -> float | None:
        found = [each["times_ours"] for who, each in figures["contenders"].items() if who.startswith(name)]
        return found[-1] if found else None

    return times


def best(figures: dict, kind: str) -> dict:
    """The best batch of a kind; empty where it was not run."""
    rows = [row for row in figures.get("rows", []) if row["kind"] == kind]
    return max(rows, key=lambda row: row["mfu"], default={})


def mfu(kind: str) -> Callable[[dict], float | None]:
    return lambda figures: best(figures, kind).get("mfu")


def a_second(kind: str) -> Callable[[dict], str]:
    return lambda figures: f"; {best(figures, kind)['forward_per_s']:.3g} a second"


def lines(verdict: str) -> Callable[[dict], float | None]:
    """So many of the lines of `gpu_check`."""
    return lambda figures: figures["counts"][verdict]


def photo_memory(figures: dict) -> float | None:
    """Peak memory of 64 photos of 12 megapixels over that of 16; a photo that failed would have failed the run."""
    peaks = {row["count"]: row["peak_bytes"] for row in figures["rows"] if row["series"] == "photos"}
    return peaks[64] / peaks[16] if {16, 64} <= set(peaks) else None


SERVE, GPU = ("serve", "tiny", "cpu"), ("gpu_check", "4b", "cuda")
PEERS_CPU = ("peers", "100m", "cpu")
PEERS, ALONE = "sentence-transformers", "transformers, one at a time"
PHOTOS = "memory peak of 64 images of 12 megapixels, over that of 16"
TARGETS = (
    Target("GPU, 4B", "swatches, the best batch: MFU", GPU, 0.5, mfu("swatch"), unit="", beside=a_second("swatch")),
    Target("GPU, 4B", "images of 512×512: MFU", GPU, 0.6, mfu("512×512"), unit="", beside=a_second("512×512")),
    Target("GPU, 4B", "images of 1024×1024: MFU", GPU, 0.6, mfu("1024×1024"), unit="", beside=a_second("1024×1024")),
    Target("GPU, 4B", "mixed sizes, against sentence-transformers", ("peers", "4b", "cuda"), 3, against(PEERS)),
    Target("GPU, 4B", "the same, against transformers one at a time", ("peers", "4b", "cuda"), 2, against(ALONE)),
    Target("GPU, 4B", "a lone colour name's forward, of the time to read the weights once", GPU, 2,
           lambda figures: figures.get("lone_name", {}).get("times_the_bound"), at_most=True),
    Target("GPU, 4B", "2 to 16 names together, of the same in turn: the worst", GPU, 1,
           lambda figures: max(figures.get("names_together", {}).values(), default=None), at_most=True),
    Target("GPU, 4B", "a pass is on the device, of the time: swatches through the pipeline", GPU, 0.9,
           lambda figures: figures.get("busy"), unit=""),
    Target("GPU, 4B", "GPU busy, by nvidia-smi: swatches through Triton and adapter", ("serve", "4b", "cuda"), 0.9,
           lambda figures: figures.get("busy"), unit=""),
    Target("GPU, 4B", PHOTOS, GPU, 1.5, lambda figures: figures.get("photo_memory"), at_most=True, in_readme=False),
    Target("GPU, 4B", "all that `gpu_check` asks: lines that are wrong", GPU, 0, lines("fail"), unit="", at_most=True,
           in_readme=False),
    Target("GPU, 4B", "the same: lines that are slower than expected", GPU, 0, lines("slow"), unit="", at_most=True,
           in_readme=False),
    Target("CPU, tiny", "the 1,898 single requests in a row, against a plain FastAPI service", SERVE, 2,
           replay("plan_over_ours")),
    Target("CPU, tiny", "the same in the benchmark's batches, against it, one at a time", SERVE, 6,
           replay("plan_over_ours_batched")),
    Target("CPU, tiny", "32 concurrent single requests, half names, half swatches: throughput", SERVE, 6,
           throughput(32)),
    Target("CPU, 100m", "mixed sizes and texts, against sentence-transformers as it is by default", PEERS_CPU, 4,
           against(PEERS)),
    Target("CPU, 100m", "the same, in the same dtype", PEERS_CPU, 3, in_our_dtype(PEERS)),
    Target("CPU, 100m", "the same, against transformers one at a time, by default", PEERS_CPU, 1.5, against(ALONE)),
    Target("CPU, 100m", "the same, in the same dtype", PEERS_CPU, 1.5, in_our_dtype(ALONE)),
    Target("CPU, 100m", "through Triton and adapter at concurrency 32, of the embedder alone", ("serve", "100m", "cpu"),
           0.9, lambda figures: figures.get("share", {}).get("share"), unit=""),
    Target("CPU, tiny", PHOTOS, ("growth", "tiny", "cpu"), 1.5, photo_memory, at_most=True, in_readme=False),
    Target("CPU, 100m", "the same", ("growth", "100m", "cpu"), 1.5, photo_memory, at_most=True, in_readme=False),
)  # fmt: skip
