"""What `benchmarks.gpu_check` runs, in its order: what breaks first, and is cheapest, comes first.

Each check is a function that gets a `Bench` and yields a `Figure` for each thing it finds. Whatever it raises is its
own failure. On a CPU the same functions run with small shapes; what only CUDA has says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lab.benchmarks.gpu_checks import attention, levers, machine, memory, passes, serving, throughput, vectors
from lab.benchmarks.gpu_checks.bench import Bench
from lab.benchmarks.gpu_checks.figures import Figure


@dataclass(frozen=True)
class Check:
    """One question."""

    number: int
    title: str
    seconds: float  # after which it has hung: about four times what it should take on an H100
    run: Callable[[Bench], Iterator[Figure]]


CHECKS = (
    Check(0, "is everything there", 60, machine.surroundings),
    Check(1, "this machine's ceilings", 60, machine.ceilings),
    Check(2, "attention against float64", 80, attention.kernels),
    Check(3, "the GPU against the CPU", 100, vectors.against_a_cpu),
    Check(4, "the 4B's shape against transformers", 150, vectors.against_transformers),
    Check(5, "one pass, kernel by kernel", 60, passes.one_pass),
    Check(6, "passes replayed", 120, passes.graphs),
    Check(7, "the token budget, and beyond it", 120, memory.memory),
    Check(8, "throughput, and where the time goes", 200, throughput.throughput),
    Check(9, "what is served against what could be", 120, levers.levers),
    Check(10, "the pipeline under load", 120, serving.pipeline),
    Check(11, "a lost GPU", 100, serving.lost_device),
)
