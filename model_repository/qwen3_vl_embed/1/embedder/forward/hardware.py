"""What a device can do, and in one sentence what it cannot.

Nothing here needs a GPU but `Card.seen`: the others are given what was seen.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

BFLOAT16_FROM = (8, 0)  # Ampere: tensor cores and FlashAttention compute in it (CUDA C++ Programming Guide, 5.3)
CPUINFO = Path("/proc/cpuinfo")
FLOAT8_FROM = (8, 9)  # Ada: tensor cores multiply 8-bit floats (CUDA C++ Programming Guide, 5.3)
OTHERWISE = "or set EMBED_DEVICE=cpu"
OWN_TORCH = "build the image with another torch (TORCH_INDEX and TORCH_PINS, docs/operations.md)"


@dataclass(frozen=True)
class Card:
    """One GPU, or a slice of one (MIG), as this process sees it."""

    name: str
    capability: tuple[int, int]
    memory: int  # bytes in all
    free: int  # bytes

    @classmethod
    def seen(cls, device: str = "cuda") -> list["Card"]:
        """Those that `device` may mean: `cuda` all of this process, `cuda:1` one of them, none where it is not there.

        With MIG a process has one slice at most, whatever the machine has. Asking a GPU for its memory takes half a
        gigabyte of it, for this process's context: of two instances none asks the other's.
        """
        found, one = [], torch.device(device).index
        for index in range(torch.cuda.device_count()) if one is None else [one][: one < torch.cuda.device_count()]:
            about = torch.cuda.get_device_properties(index)
            free, memory = torch.cuda.mem_get_info(index)
            found.append(cls(about.name, (about.major, about.minor), memory, free))
        return found

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.capability[0]}{self.capability[1]}, {self.free / 1e9:.1f} GB free)"

    def runs(self, architectures: list[str]) -> bool:
        """Whether torch has code for it: `architectures`, such as sm_80 and compute_90.

        Machine code runs on the same major version, from its own minor version on. What is compiled at start (PTX) runs
        on every later one (CUDA C++ Programming Guide, 3.1).
        """
        built = [(kind, digits.rstrip("af")) for kind, _, digits in (each.partition("_") for each in architectures)]
        return any(
            (int(version[:-1]), int(version[-1])) <= self.capability
            and (kind == "compute" or int(version[:-1]) == self.capability[0])
            for kind, version in built
        )


def refusal(card: Card, dtype: str, architectures: list[str]) -> str | None:
    """Why this card cannot serve in this dtype; None where it can."""
    if not card.runs(architectures):
        known = ", ".join(architectures) or "none"
        return (
            f"torch {torch.__version__} has no code for {card}, only for {known}: take another GPU, {OWN_TORCH}, "
            f"{OTHERWISE}"
        )
    if dtype == "bfloat16" and card.capability < BFLOAT16_FROM:
        return (
            f"{card} has no bfloat16 (sm_80, Ampere, is the first with it): set EMBED_DTYPE=float32, which takes twice "
            f"the memory, take another GPU, {OTHERWISE}"
        )
    return None


def no_float8(card: Card | None, dtype: str) -> str | None:
    """Why weights cannot be 8-bit floats, and arithmetic in this dtype; None where they can. `card`: None for a CPU."""
    if card is None or card.capability < FLOAT8_FROM:
        return (
            f"EMBED_WEIGHTS=float8 needs a GPU that multiplies 8-bit floats (sm_89, Ada, is the first), and this is "
            f"{card or 'a CPU'}: leave EMBED_WEIGHTS unset, or take another GPU"
        )
    if dtype != "bfloat16":
        return f"EMBED_WEIGHTS=float8 goes with bfloat16 and not with {dtype}: leave EMBED_WEIGHTS or EMBED_DTYPE unset"
    return None


def too_little(size: int, cards: list[Card], there: int = 0) -> str | None:
    """Why `size` bytes of weights do not fit on these cards; None where they do. A tenth is left for activations.

    `there`: GPUs of this process, also those that are another instance's.
    """
    if size <= 0.9 * sum(card.free for card in cards):
        return None
    several = f"{len(cards)} GPUs here, {', '.join(map(str, cards))}, have together" if len(cards) > 1 else ""
    one = f"{cards[0]} has" if cards else "no GPU here has"
    mig = ": a MIG slice is all that this process sees of its GPU" if any("MIG" in card.name for card in cards) else ""
    whole = "give one instance all GPUs (instance_group's `kind: KIND_MODEL` in config.pbtxt)"
    more = whole if there > len(cards) else "give it more or larger ones"
    return (
        f"its weights take {size / 1e9:.1f} GB, more than {several or one} free{mig}; end what else runs there, "
        f"{more}, {OTHERWISE}"
    )


def too_large(size: int, dtype: str, memory: int) -> str | None:
    """Why `size` bytes of weights in this dtype do not fit into `memory` bytes of a CPU's; None where they do."""
    if size <= 0.9 * memory:
        return None
    half = "set EMBED_DTYPE=bfloat16, which takes half, or " if dtype == "float32" else ""
    return (
        f"its weights take {size / 1e9:.3g} GB in {dtype}, and there are {memory / 1e9:.3g} GB of memory here, of the "
        f"machine or by its container's limit: {half}give it more"
    )


def outdated(driver: int | None, devices: int, built: str | None) -> str | None:
    """Why torch sees no GPU though the driver has some; None for another reason.

    `driver`: the newest CUDA that it runs, such as 12080; None without a driver. `devices`: GPUs that it lets this
    process see. `built`: the CUDA of this torch, such as 13.0. Within a major version any driver will do (CUDA
    Compatibility, "minor version compatibility").
    """
    if driver is None or not devices or not built or driver // 1000 >= int(built.partition(".")[0]):
        return None
    return (
        f"the NVIDIA driver here runs CUDA {driver // 1000}.{driver % 1000 // 10}, and this torch is built for CUDA "
        f"{built}: update the driver (R580 or newer runs CUDA 13), {OWN_TORCH}, {OTHERWISE}"
    )


def driver() -> tuple[int | None, int]:
    """(the newest CUDA that the driver runs, GPUs that it lets this process see); (None, 0) without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, 0
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return version.value, 0
    return version.value, count.value


def bfloat16_is_faster(cpuinfo: str) -> bool:
    """Whether a CPU multiplies bfloat16 faster than float32; `cpuinfo`: the text of Linux's /proc/cpuinfo.

    With AMX it does, and AMD's with AVX512-BF16 (since Zen 4). Intel's AVX512-BF16 has half the rate of float32: seen
    where a hypervisor hides AMX (docs/log.md, 2026-11-26). Without either oneDNN widens every number.
    """
    about = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    flags = about.get("flags", [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and about.get("vendor_id") == ["AuthenticAMD"])


def automatic_dtype(device: str, own: str) -> str:
    """What EMBED_DTYPE=auto means; `own`: the dtype that the weights are stored in."""
    if device != "cpu":
        return "bfloat16"
    faster = CPUINFO.is_file() and bfloat16_is_faster(CPUINFO.read_text(errors="replace"))
    return "bfloat16" if own == "bfloat16" and faster else "float32"
