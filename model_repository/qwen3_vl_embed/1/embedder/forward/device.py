"""Which device computes, and how the CPU's numbers get there."""

from itertools import accumulate
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import EmbedderConfig
from ..errors import UnsupportedCheckpoint
from .hardware import Card, automatic_dtype, driver, no_float8, outdated, refusal


def usable(config: EmbedderConfig, own: str) -> tuple[str, str]:
    """(device, dtype) of these settings, `auto` resolved; `own`: the dtype of the checkpoint's weights.

    Raises:
        UnsupportedCheckpoint: the device is not there, or cannot compute in that dtype.
    """
    there = torch.cuda.is_available()
    device = ("cuda" if there else "cpu") if config.device == "auto" else config.device
    if not there and config.device != "cpu" and (why := outdated(*driver(), torch.version.cuda)):
        raise UnsupportedCheckpoint(why)
    dtype = automatic_dtype(device, own) if config.dtype == "auto" else config.dtype
    card = None
    if device != "cpu":
        cards = Card.seen(device) if there else []
        if not cards:
            raise UnsupportedCheckpoint(
                f"EMBED_DEVICE={config.device}: torch sees {torch.cuda.device_count()} GPUs here (CUDA_VISIBLE_DEVICES "
                "and the container's own list may hide some); set EMBED_DEVICE=cpu to do without"
            )
        card = cards[0]
        if why := refusal(card, dtype, torch.cuda.get_arch_list()):
            raise UnsupportedCheckpoint(why)
    if config.weights == "float8" and (why := no_float8(card, dtype)):
        raise UnsupportedCheckpoint(why)
    return device, dtype


def stay(device: torch.device | str) -> None:
    """From here on this thread's current GPU is that of `device`, where it names one.

    A new thread's is the first GPU. There CUDA would make a context of half a gigabyte, for calls that name none.
    """
    if (index := torch.device(device).index) is not None and torch.device(device).type == "cuda":
        torch.cuda.set_device(index)


LEAST_PAUSE, MOST_PAUSE, SHARE = 1e-4, 2e-3, 0.02  # seconds twice; of the time that was waited
ALIGNED = 16  # bytes: where each of several tensors in one copy starts


def pause(started: float) -> None:
    """Between two looks at what has been under way since `started` (`perf_counter`): a fiftieth of that time.

    What is looked for is seen a little late. In exchange it costs some hundredths of a core in place of all of it.
    Those who prepare the next inputs are not asked for Python's lock thousands of times a second.
    """
    sleep(min(max(LEAST_PAUSE, SHARE * (perf_counter() - started)), MOST_PAUSE))


class Moment:
    """When a device gets to this point of its work. A CPU computes while it is asked, so that it is there already."""

    def __init__(self, device: torch.device) -> None:
        self._at, self._event = perf_counter(), None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def passed(self) -> bool:
        """Raises: RuntimeError: the device is lost to this process."""
        return self._event is None or bool(self._event.query())

    def ms_until(self, later: "Moment") -> float:
        """Milliseconds from this one to a later one of the same device; both have passed."""
        if self._event is None or later._event is None:
            return (later._at - self._at) * 1e3
        return float(self._event.elapsed_time(later._event))


class Arriving:
    """Rows on their way from the device: float32 (N, D). Others can be sent after them before anybody waits for these.

    The looks of the thread that waits are also its heartbeat (`pipeline.BEATING`). By it the watchdog knows a process
    that waits for its device from one that is frozen.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows, self.device = rows, rows.device
        if rows.is_cuda:
            self._rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._rows.copy_(rows, non_blocking=True)
        self.arrived = Moment(self.device)

    def there(self) -> bool:
        """Raises: RuntimeError: the device is lost to this process."""
        return self.arrived.passed()

    def wait(self) -> NDArray[np.float32]:
        """Raises: RuntimeError: the device is lost to this process."""
        started = perf_counter()
        while not self.there():
            pause(started)
        rows: NDArray[np.float32] = self._rows.numpy()
        return rows


def gather(arrays: list[NDArray[Any]], device: torch.device | str) -> torch.Tensor:
    """They, joined; on the way to a GPU straight into page-locked memory."""
    if torch.device(device).type != "cuda":
        return torch.from_numpy(np.concatenate(arrays)).to(device)
    shape, dtype = (sum(map(len, arrays)), *arrays[0].shape[1:]), torch.from_numpy(arrays[0][:0]).dtype
    pinned = torch.empty(shape, dtype=dtype, pin_memory=True)
    np.concatenate(arrays, out=pinned.numpy())
    return pinned.to(device, non_blocking=True)


def sent(arrays: dict[str, NDArray[Any]], device: torch.device | str) -> dict[str, torch.Tensor]:
    """Tensors of the same numbers; to a GPU in one copy, which blocks nothing."""
    if torch.device(device).type != "cuda":
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    starts = list(accumulate((-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays.values()), initial=0))
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for start, array in zip(starts, arrays.values(), strict=False):
        pinned.numpy()[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = pinned.to(device, non_blocking=True)
    return {
        name: there[start : start + array.nbytes].view(getattr(torch, array.dtype.name)).view(array.shape)
        for start, (name, array) in zip(starts, arrays.items(), strict=False)
    }


def to_device(array: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """A tensor of the same numbers; to a GPU from page-locked memory: the copy blocks nothing."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
