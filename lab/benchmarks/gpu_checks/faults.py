"""What may end a process, so it is done in one of its own: `python -m lab.benchmarks.gpu_checks.faults FAULT DEVICE`.

    capture  a pass fails while it is captured: on CUDA the process' end; elsewhere the last line on stdout says what
             became of later passes
    lost     a pass fails with an error after which the GPU is lost to the process; the pipeline must end it

A CPU cannot be lost. There the same pass fails for the same reason, and the device is said to be lost.
"""

import json
import sys
from threading import Event
from time import sleep

import torch

from embedder import Answer, CaptureFailed, Embedder, EmbedInput
from embedder.errors import CAPTURE_FAILED
from embedder.parity import least_cosine
from embedder.pipeline import Pipeline, Request
from lab.benchmarks import inputs, subject
from lab.benchmarks.checkpoints import TINY
from lab.benchmarks.gpu import is_cuda
from lab.benchmarks.gpu_checks.bench import eager
from lab.benchmarks.subject import vectors

BREAKING = "breaking"  # said before the pass that does not come back
GONE_SECONDS = 30.0  # a process that is still there by then was not ended


def command(fault: str, device: str) -> list[str]:
    """The process that does it."""
    return [sys.executable, "-m", "lab.benchmarks.gpu_checks.faults", fault, device]


def last_line(text: str) -> str:
    """For people: what a process said in the end."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def capture(device: str) -> None:
    embedder = subject.load(str(TINY), device)
    item, batch = EmbedInput(text="red"), inputs.half_and_half(8)
    with eager(embedder.model):
        expected = vectors(embedder, [item]), vectors(embedder, batch)

    def fail(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if is_cuda(device) and torch.cuda.is_current_stream_capturing():
            given[0].sum().item()  # waits for the device, which a capture does not allow
        elif torch.jit.is_tracing():
            raise RuntimeError("planted: this cannot be captured")

    embedder.model.model.language_model.rotary_emb.register_forward_pre_hook(fail)
    try:
        with embedder.model.capturing():
            vectors(embedder, [item])
    except CaptureFailed as failure:
        print(failure, file=sys.stderr)
        sys.exit(CAPTURE_FAILED)
    embedder.model.recover()  # what comes after any failed pass: memory is given back
    later = vectors(embedder, [item]), vectors(embedder, batch)
    least = min(least_cosine(*pair) for pair in zip(later, expected, strict=True))
    replay = embedder.model.replay
    assert replay is not None
    print(json.dumps({"captured": len(replay.captured), "least_cosine": least}))


def lost(device: str) -> None:
    embedder = subject.load(str(TINY), device)
    pipeline = Pipeline(embedder, 8)
    answered = Event()

    def reply(_: list[Answer]) -> None:
        answered.set()

    pipeline.submit(Request([EmbedInput(text="red")], reply, lambda: False))
    if not answered.wait(GONE_SECONDS):
        sys.exit("an ordinary request was not answered")
    _break(embedder, device)
    print(BREAKING, flush=True)
    pipeline.submit(Request([EmbedInput(text="blue")], reply, lambda: False))
    sleep(GONE_SECONDS)


def _break(embedder: Embedder, device: str) -> None:
    table = torch.zeros(4, device=embedder.model.device)

    def beyond(*_: object) -> None:
        table[torch.tensor([10**6], device=table.device)]  # on CUDA a device-side assertion, seen at the next wait

    embedder.model.model.language_model.rotary_emb.register_forward_pre_hook(beyond)
    if not is_cuda(device):

        def recover() -> None:
            raise RuntimeError("planted: the device is lost to this process")

        embedder.model.recover = recover  # type: ignore[method-assign]


if __name__ == "__main__":
    {"capture": capture, "lost": lost}[sys.argv[1]](sys.argv[2])
