"""GPUs and hours for the 4B, up to 10⁹ images: by calls that were measured on a GPU, else by an estimate.

A measured call is the embedder's, from files to vectors: decoding and the pass take turns. The estimate of a pass: the
weights are read once, and the operations of flops.py are done at 40 % of the published peak (dense bfloat16). That is
half of what one large product reaches on an H200. Its own estimate stands beside its measured rows.
Queues are simulated by `qwen3_vl_embed.sizing`, as `qwen3-vl-embed size` does.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

from embedder.forward.budget import FEWEST, MOST, PASS_SECONDS
from lab.benchmarks import checkpoints, flops
from lab.benchmarks.targets import GPU, Key
from qwen3_vl_embed.sizing import SIZES, Times, needed, sizes

PEAK_SHARE = 0.4
WEIGHTS = 8.9e9  # bytes, bfloat16
KINDS = {"swatch": (82, 256), "512×512": (274, 1024), "1024×1024": (1042, 4096)}  # tokens, patches
RATES, P99 = (100, 1000), 1.0  # images a second, seconds


class Gpu(NamedTuple):
    """By its data sheet."""

    flops: float  # a second: bfloat16, dense
    bandwidth: float  # bytes a second


GPUS = {
    "H200": Gpu(990e12, 4.8e12),
    "H100 SXM": Gpu(990e12, 3.35e12),
    "L40S": Gpu(362e12, 0.864e12),
    "A100 80 GB": Gpu(312e12, 2.04e12),
    "L4": Gpu(121e12, 0.3e12),
}


class Case(NamedTuple):
    """What one kind of GPU takes for one kind of images."""

    gpu: str
    images: str
    basis: str
    times: Times

    def gpus(self, rate: float) -> str:
        """So many for `rate` images a second, P99 kept; `none` where a lone image takes longer."""
        found = needed(self.times, rate, P99)
        return str(found[-1].gpus) if found else "none"


def estimated(gpu: Gpu, tokens: int, patches: int) -> Times:
    """Of one kind of images; passes up to the budget of tokens that the embedder would set itself there."""
    config = json.loads(checkpoints.PUBLISHED.read_text())
    each = flops.count(config, tokens, patches).total / (PEAK_SHARE * gpu.flops)
    budget = min(MOST, max(FEWEST, PASS_SECONDS / (each / tokens)))
    most = max(1, min(SIZES[-1], int(budget / tokens)))
    return Times({size: WEIGHTS / gpu.bandwidth + size * each for size in sizes(most)})


def cases(results: dict[Key, dict]) -> Iterator[Case]:
    """Measured ones first."""
    if measured := results.get(GPU):
        rows = [row for row in measured["figures"].get("rows", []) if row["batch"] <= SIZES[-1]]
        for kind in KINDS:
            if passes := {row["batch"]: row["call_s"] for row in rows if row["kind"] == kind}:
                yield Case(measured["hardware"]["device"], kind, "measured", Times(passes))
    for name, gpu in GPUS.items():
        for kind, shape in KINDS.items():
            yield Case(name, kind, "estimated", estimated(gpu, *shape))
