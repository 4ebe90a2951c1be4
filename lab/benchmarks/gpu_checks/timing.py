"""How long things take on the device, and on the CPU that gives it its work."""

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter, thread_time

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from lab.benchmarks.gpu import is_cuda, synchronize

Work = Callable[[], object]
LONGEST, NAME = 25, 120  # kernels that a profile names; letters of a name
# By what the kernels are called: cuBLAS and CUTLASS on a GPU, aten's operators on a CPU.
PARTS = {
    "attention": ("flash", "fmha", "attention", "softmax"),
    "products": (
        *("gemm", "cutlass", "cublas", "nvjet", "xmma", "gemv", "splitk", "linear_silu_mul"),
        *("aten::mm", "aten::addmm", "aten::bmm"),
    ),
    "copies": ("memcpy", "memset", "aten::copy_"),
}


def device_seconds(work: Work, device: str, budget: float = 0.3, least: int = 3, most: int = 100) -> float:
    """Median over the calls that fit into `budget` seconds, after two that are not counted."""
    work()
    synchronize(device)
    started = perf_counter()
    work()
    synchronize(device)
    count = max(least, min(most, int(budget / (perf_counter() - started))))
    if not is_cuda(device):
        return median(timeit.repeat(work, number=1, repeat=count))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    return median(before.elapsed_time(after) for before, after in pairwise(events)) / 1e3


def replayed_seconds(work: Work, device: str, calls: int = 8) -> float:
    """Of one call, of several in a CUDA graph: the device's own time, where the host takes longer to launch the work.

    What `work` allocates is the graph's. A CPU has no graphs: there it is `device_seconds`.
    """
    if not is_cuda(device):
        return device_seconds(work, device)
    work()  # what is compiled and chosen at a first call is not captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            work()
    return device_seconds(graph.replay, device) / calls


def host_seconds(work: Work, device: str, times: int = 3) -> float:
    """CPU time of this thread for one call, the device's own time left out: what it costs to launch it. Median."""
    took = []
    for _ in range(times):
        synchronize(device)
        started = thread_time()
        work()
        took.append(thread_time() - started)
    synchronize(device)
    return median(took)


@dataclass(frozen=True)
class Profile:
    """One call under torch's profiler."""

    kernels: int  # launches; on a CPU operators
    seconds: float  # in them, on the device
    parts: dict[str, float]  # seconds by kind: products, attention, copies, elementwise
    longest: list[tuple[str, int, float]]  # kernels: name, launches, microseconds of all of them


def profile(work: Work, device: str) -> Profile:
    """Kernels by name. On a CPU operators, each without those that it calls."""
    on_gpu = is_cuda(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
        work()
        synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    rows = [row for row in recorded.key_averages() if row.device_type == wanted and not row.is_user_annotation]
    parts = dict.fromkeys([*PARTS, "elementwise"], 0.0)
    kernels: list[tuple[str, int, float]] = []
    for row in rows:
        took = row.self_device_time_total if on_gpu else row.self_cpu_time_total  # microseconds
        kernels.append((row.key[:NAME], row.count, took))
        kernel = row.key.lower()
        kind = next((part for part, words in PARTS.items() if any(word in kernel for word in words)), "elementwise")
        parts[kind] += took / 1e6
    longest = sorted(kernels, key=lambda kernel: -kernel[2])[:LONGEST]
    return Profile(sum(row.count for row in rows), sum(parts.values()), parts, longest)
