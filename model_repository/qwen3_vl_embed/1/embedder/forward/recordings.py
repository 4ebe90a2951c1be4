"""Two ways to run one forward pass again without the Python around its operations: a CUDA graph, and a trace."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from ..options import Layer
from .packing import Packed

States = dict[Layer, torch.Tensor]
Pass = Callable[[Packed, frozenset[Layer], torch.Tensor | None], States]


class CudaGraph:
    """On a GPU: the kernels with their arguments, launched as one. It reads and writes where it did when captured."""

    def __init__(
        self, run: Callable[[], States], device: torch.device, constants: object, beside: "CudaGraph | None"
    ) -> None:
        """`constants`: what `run` reads beside inputs and weights; kept, so that nobody else gets its memory.

        `beside`: one whose memory it works in too. One is replayed at a time, and what it leaves is read before the
        next. A pool of memory is gone with its last graph, and torch takes its name for a fault from then on.
        """
        self._constants, self._device = constants, device  # a thread's current device is the first one, whatever it is
        run()  # what is compiled and cached at a first pass of these sizes is not captured
        self._graph, pool = torch.cuda.CUDAGraph(), beside and beside._graph.pool()
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),  # to come back to it from a failed capture
            torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self._states = run()
        for state in self._states.values():
            state.zero_()  # or a graph that replays nothing would leave what is right for this one input

    def __call__(self) -> States:
        """The states are overwritten by the next call."""
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._states


class Trace:
    """On a CPU: the same operations, called one after the other by TorchScript's interpreter."""

    def __init__(self, run: Pass, packed: Packed, layers: frozenset[Layer], rows: torch.Tensor | None) -> None:
        self._layers = tuple(layers)

        def operations(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            images = packed.images and replace(packed.images, pixels=given[2], tokens=given[3])
            same = replace(packed, input_ids=given[0], position_ids=given[1], images=images)
            states = run(same, layers, None if rows is None else given[-1])
            return tuple(states[layer] for layer in self._layers)

        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that lengths become constants: they are what a shape has in common
            self._operations = torch.jit.trace(operations, tuple(tensors(packed, rows)), check_trace=False)

    def replay(self, packed: Packed, rows: torch.Tensor | None) -> States:
        return dict(zip(self._layers, self._operations(*tensors(packed, rows)), strict=True))


def tensors(packed: Packed, rows: torch.Tensor | None) -> list[torch.Tensor]:
    """All that differs between two passes of one shape, in the order in which a trace is given it."""
    given = [packed.input_ids, packed.position_ids]
    if packed.images is not None:
        given += [packed.images.pixels, packed.images.tokens]
    return given if rows is None else [*given, rows]
