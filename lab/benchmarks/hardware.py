"""The machine: what it is, and the two ceilings that are measured on it: matrix products and copies."""

import os
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import torch

from lab.benchmarks.gpu import is_cuda, release, synchronize

MEASURE_SECONDS = 1.5  # for each ceiling


@dataclass(frozen=True)
class Ceiling:
    """What nothing on this machine can pass: the best of many, measured in the same run as the figures below it."""

    dtype: str
    matmul_flops: float  # floating point operations a second of a large square matrix product in `dtype`
    copy_bytes: float  # bytes a second, read and written, of a large copy within the device's memory

    @classmethod
    def measure(cls, device: str, dtype: str, seconds: float = MEASURE_SECONDS) -> "Ceiling":
        products, copies = _matmul(device, getattr(torch, dtype), seconds), _copy(device, seconds)
        release(device)
        return cls(dtype, products, copies)

    def __str__(self) -> str:
        return (
            f"matrix products at {self.matmul_flops / 1e12:.3g} TFLOP/s ({self.dtype}), "
            f"memory at {self.copy_bytes / 1e9:.3g} GB/s"
        )


def _matmul(device: str, dtype: torch.dtype, seconds: float) -> float:
    side = 8192 if is_cuda(device) else 2048  # large enough that nothing but the product counts
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: torch.mm(a, b), device, seconds)


def _copy(device: str, seconds: float) -> float:
    source = torch.ones(2**30 if is_cuda(device) else 2**26, device=device)  # 4 GiB; 256 MiB, beyond any cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device, seconds)


def _best(work: Callable[[], object], device: str, seconds: float) -> float:
    """The shortest of the calls that fit into `seconds`, at least three."""
    took: list[float] = []
    stop = perf_counter() + seconds
    while len(took) < 3 or perf_counter() < stop:
        synchronize(device)
        started = perf_counter()
        work()
        synchronize(device)
        took.append(perf_counter() - started)
    return min(took)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def describe(device: str) -> dict:
    """What a reader needs to judge the numbers."""
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda(device) else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
