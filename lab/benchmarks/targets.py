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

    def value(self, results: dict[Key, dict]) -> float | None:
        """The figure; None while its program or its part was not run."""
        return self.figure(results[self.key]["figures"]) if self.key in results else None

    def reached(self, value: float) -> bool:
        return value <= self.least if self.at_most else value >= self.least

    def cells(self, results: dict[Key, dict]) -> list[str]:
        """Where, what, target, figure, and what there is to say."""
        bound = f"{'≤' if self.at_most else '≥'} {self.least:g}{self.unit}"
        value = self.value(results)
        if value is None:
            how = f"needs a GPU: {GPU_COMMAND}" if self.key[2] == "cuda" else "`make bench`"
            return [self.where, self.what, bound, "not measured", how]
        verdict = "reached" if self.reached(value) else "missed: see the log"
        return [self.where, self.what, bound, f"**{value:.2f}{self.unit}**", verdict]


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
    return lambda figures: figures["contenders"].get(name, {}).get("times_ours")


def best_mfu(*kinds: str) -> Callable[[dict], float | None]:
    """The worst kind's best batch."""
    return lambda figures: min(max(row["mfu"] for row in figures["rows"] if row["kind"] == kind) for kind in kinds)


def photo_memory(figures: dict) -> float | None:
    """Peak memory of 64 photos of 12 megapixels over that of 16; a photo that failed would have failed the run."""
    peaks = {row["count"]: row["peak_bytes"] for row in figures["rows"] if row["series"] == "photos"}
    return peaks[64] / peaks[16] if {16, 64} <= set(peaks) else None


SERVE, FORWARD, PEERS = ("serve", "tiny", "cpu"), ("forward", "4b", "cuda"), "sentence-transformers"
TARGETS = (
    Target("CPU, tiny", "the 1,898 single requests in a row, against a plain FastAPI service", SERVE, 2,
           replay("plan_over_ours")),
    Target("CPU, tiny", "the same in the benchmark's batches, against it, one at a time", SERVE, 6,
           replay("plan_over_ours_batched")),
    Target("CPU, tiny", "32 concurrent single requests, half names, half swatches: throughput", SERVE, 6,
           throughput(32)),
    Target("CPU, 100m", "mixed sizes and texts, against sentence-transformers, same batch", ("peers", "100m", "cpu"), 4,
           against(PEERS)),
    Target("CPU, 100m", "the same, against transformers one at a time", ("peers", "100m", "cpu"), 1.5,
           against("transformers, one at a time")),
    Target("CPU, 100m", "through Triton and adapter at concurrency 32, of the embedder alone", ("serve", "100m", "cpu"),
           0.9, lambda figures: figures.get("share", {}).get("share"), unit=""),
    Target("GPU, 4B", "swatches, batched: MFU", FORWARD, 0.5, best_mfu("swatch"), unit=""),
    Target("GPU, 4B", "512² and 1024² images: MFU", FORWARD, 0.6, best_mfu("512×512", "1024×1024"), unit=""),
    Target("GPU, 4B", "mixed sizes, against sentence-transformers", ("peers", "4b", "cuda"), 3, against(PEERS)),
    Target("GPU, 4B", "a lone colour name's forward, of the time to read the weights once", FORWARD, 2,
           lambda figures: figures["lone_name"]["times_the_bound"], at_most=True),
    Target("GPU, 4B", "GPU busy during a swatch load through Triton and adapter", ("serve", "4b", "cuda"), 0.9,
           lambda figures: figures.get("busy"), unit=""),
    Target("GPU, 4B", "GPU busy during a swatch load through the pipeline alone", ("gpu_check", "4b", "cuda"), 0.9,
           lambda figures: figures.get("busy"), unit=""),
    Target("CPU, tiny", "memory peak of 64 images of 12 megapixels, over that of 16", ("growth", "tiny", "cpu"), 1.5,
           photo_memory, at_most=True),
    Target("CPU, 100m", "the same", ("growth", "100m", "cpu"), 1.5, photo_memory, at_most=True),
    Target("GPU, 4B", "the same", ("growth", "4b", "cuda"), 1.5, photo_memory, at_most=True),
)  # fmt: skip
