"""The few lines that a GPU needs and a CPU does not: wait for it, its peak memory, how busy it was.

On a CPU the first does nothing and the second reads the kernel's own record of this process.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


def is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given; a CPU already has."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


def release(device: str) -> None:
    """Give back what torch keeps for later: another process may need it, and the embedder counts what is free."""
    if is_cuda(device):
        torch.cuda.empty_cache()


def forget_peak(device: str) -> None:
    """Count peak memory from here."""
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to what is held now


def peak_bytes(device: str) -> int:
    """The most memory held since `forget_peak`: allocated on the device, or resident in this process."""
    if is_cuda(device):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@contextmanager
def busy(device: str) -> Iterator[list[float]]:
    """Within it, nvidia-smi samples how busy the GPU is; after it, the list holds the mean share, 0…1 (none on a CPU,
    or without nvidia-smi).

    nvidia-smi's figure is the share of each sampling period in which any kernel ran.
    """
    found: list[float] = []
    if not is_cuda(device) or not shutil.which("nvidia-smi"):
        yield found
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200", "--id=0"]
    sampler = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    try:
        yield found
    finally:
        sampler.terminate()
        samples = [float(line) / 100 for line in sampler.communicate()[0].split() if line.strip().isdigit()]
        found += [float(np.mean(samples))] if samples else []
