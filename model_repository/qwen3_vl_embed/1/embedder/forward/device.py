"""From the CPU's numbers to the device's."""

from typing import Any

import torch
from numpy.typing import NDArray


def to_device(array: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """A tensor of the same numbers; to a GPU from page-locked memory: the copy blocks nothing."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
