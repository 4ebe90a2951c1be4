"""Preparing and computing at the same time: while one batch is on the device, the next inputs are made ready.

A request comes in through `submit`, and its inputs are prepared on a few threads. One thread runs the forward passes,
each over what is ready by then: first come, first served, within the token budget. On a GPU the next pass is launched
before the one under way has ended, once as much is ready. Another thread hands the answers out. What is large (images,
and texts far too long) is prepared on threads of its own, within the budget of pixels: nothing waits for it. Worth its
threads where the device is not the CPU that prepares, and for what is large everywhere (docs/log.md, 2026-11-24 to 26).
"""

import ctypes
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition, Semaphore, Thread
from time import monotonic, perf_counter

from .embedder import WORKERS, Answer, Embedder, UnderWay
from .errors import LOST, Abandoned, EmbedError
from .forward.device import pause, stay
from .inputs import EmbedInput
from .prepare.pixels import SMALL, Budget, cost
from .prepare.preparer import Prepared

logger = logging.getLogger(__name__)

# The thread that waits for the device, as the kernel shows it: the watchdog counts how often it wakes.
PR_SET_NAME, BEATING = 15, b"forward"  # prctl(2)
# Seconds inside. A younger request is not asked whether its caller still waits, which costs a round trip.
ASK_AFTER = 0.25


@dataclass(eq=False)
class Request:
    """Inputs that are answered together, in their order."""

    inputs: list[EmbedInput | EmbedError]
    reply: Callable[[list[Answer]], None]  # called once, on a thread of the pipeline's
    given_up: Callable[[], bool]  # whether the caller does not wait any more
    since: float = field(default_factory=monotonic)
    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def abandoned(self) -> bool:
        return monotonic() - self.since > ASK_AFTER and self.given_up()


@dataclass(frozen=True)
class Ready:
    """One input of a request, on its way to the device."""

    request: Request
    index: int
    prepared: Prepared


class Pipeline:
    """Runs one embedder's two stages side by side."""

    def __init__(self, embedder: Embedder, capacity: int, pass_tokens: int | None = None) -> None:
        """`capacity`: inputs inside at most, being prepared, ready, or on the device; what is large waits before that.

        A pass has half of them at most, so that the next one can be made ready beside it.
        `pass_tokens`: of one forward pass, if fewer than the embedder's own.
        """
        self._embedder = embedder
        self._pass_tokens = pass_tokens
        self._capacity, self._room = capacity, Semaphore(capacity)
        self._budget = Budget(embedder.config.max_concurrent_pixels)
        self._large = ThreadPoolExecutor(WORKERS, thread_name_prefix="large")
        self._ready: deque[Ready] = deque()  # only the forward thread takes from it
        self._ready_tokens = 0
        self._changed = Condition()
        self._closing = False
        self._replies = ThreadPoolExecutor(1, thread_name_prefix="reply")
        self._thread = Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    def large(self, inputs: list[EmbedInput | EmbedError]) -> bool:
        """Whether one of them is an image or a text that takes so long that others should not wait for it."""
        return any(isinstance(item, EmbedInput) and self._cost(item) > SMALL for item in inputs)

    def submit(self, request: Request) -> None:
        """Take a request in. Blocks while the pipeline is full: the backpressure that Triton sees."""
        for index, item in enumerate(request.inputs):
            if isinstance(item, EmbedInput) and (pixels := self._cost(item)) > SMALL:
                self._large.submit(self._prepare_large, request, index, item, pixels)
                continue
            self._room.acquire()
            if isinstance(item, EmbedError) or item.image is None:  # quicker than handing it over
                self._prepare(request, index, item)
            else:
                self._embedder.threads.submit(self._prepare, request, index, item)

    def close(self) -> None:
        """Answer what is inside, then stop."""
        self._large.shutdown()
        self._embedder.threads.shutdown()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._replies.shutdown()

    def _cost(self, item: EmbedInput) -> int:
        return cost(item, self._embedder.config.max_image_pixels)

    def _prepare_large(self, request: Request, index: int, item: EmbedInput, pixels: int) -> None:
        with self._budget.taken(pixels):
            self._room.acquire()
            if request.given_up():  # asked at the last moment: there is much to save
                self._answer([(request, index, Abandoned())])
                return
            with self._changed:
                self._embedder.counts["decoded_pixels"] += pixels
            self._prepare(request, index, item)

    def _prepare(self, request: Request, index: int, item: EmbedInput | EmbedError) -> None:
        prepared = Abandoned() if request.abandoned else self._embedder.preparer.attempt(item)
        if not isinstance(prepared, Prepared):  # refused, or a rendering: there is nothing to compute
            self._answer([(request, index, prepared)])
            return
        with self._changed:
            self._ready.append(Ready(request, index, prepared))
            self._ready_tokens += len(prepared.sequence)
            self._changed.notify()

    def _run(self) -> None:
        try:
            ctypes.CDLL(None).prctl(PR_SET_NAME, BEATING, 0, 0, 0)
            stay(self._embedder.model.device)
            under_way: tuple[list[Ready], UnderWay] | None = None
            while under_way or self._wait():
                following = None
                if (under_way is None or self._enough_beside(*under_way)) and (batch := self._take()):
                    following = batch, self._embedder.start([item.prepared for item in batch])
                if under_way is not None:
                    answers = zip(under_way[0], under_way[1].answers(), strict=True)
                    self._answer([(item.request, item.index, answer) for item, answer in answers])
                under_way = following
        except BaseException:
            logger.exception("the forward thread cannot go on")
            # A lost GPU, or a fault of ours. Callers would wait for ever; a process that is gone is started again.
            os._exit(LOST)

    def _wait(self) -> bool:
        """Whether there is something to compute; False when there never will be again."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closing)
            return bool(self._ready)

    def _enough_beside(self, inputs: list[Ready], under_way: UnderWay) -> bool:
        """Wait for the passes under way, or for as much to be ready as they have: then it is launched before they end.

        Less than that is worth waiting for company, while there is room for any.
        """
        wanted, started = min(under_way.tokens, self._most), perf_counter()
        while not under_way.there():
            if self._ready_tokens >= wanted or len(self._ready) + len(inputs) >= self._capacity:
                return True
            pause(started)  # not until one more is ready: those who prepare would stop for each
        return False

    @property
    def _most(self) -> int:
        """Tokens of one pass."""
        most = self._embedder.batch_tokens  # which shrinks when memory runs out
        return min(self._pass_tokens or most, most)

    def _take(self) -> list[Ready]:
        """What is ready, in the order in which it became so, up to one forward pass; what was given up is left out."""
        batch: list[Ready] = []
        taken, room = 0, self._most
        while self._ready:
            item = self._ready[0]
            tokens = len(item.prepared.sequence)
            if batch and (tokens > room or len(batch) >= self._capacity // 2):
                break
            self._ready.popleft()
            taken += tokens
            if item.request.abandoned:
                self._answer([(item.request, item.index, Abandoned())])
                continue
            room -= tokens
            batch.append(item)
        with self._changed:
            self._ready_tokens -= taken
        return batch

    def _answer(self, answers: list[tuple[Request, int, Answer]]) -> None:
        """Note each, and hand a request its answers once it has all."""
        self._room.release(len(answers))
        complete = []
        with self._changed:
            for request, index, answer in answers:
                request.answers[index] = answer
                if len(request.answers) == len(request.inputs):
                    complete.append(request)
        if complete:
            self._replies.submit(reply, complete)


def reply(requests: list[Request]) -> None:
    """Deliver each request's answers. One that cannot be delivered harms no other."""
    for request in requests:
        try:
            request.reply([request.answers[index] for index in range(len(request.inputs))])
        except Exception:
            logger.exception("an answer could not be handed out")
