"""Several processes on one port: started together, replaced one by one when killed, stopped together.

Each listens on a socket of its own under the same address, among which the kernel spreads new connections. This process
answers none, but holds all the sockets: a connection that was meant for a killed worker waits for the next one. Knows
processes and sockets; what they serve is the caller's affair.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess

logger = logging.getLogger(__name__)

STOP = {signal.SIGTERM, signal.SIGINT}
YOUNG_SECONDS = 1.0  # what does not live that long would die of the same cause again, and again
BACKLOG = 2048

_fork = multiprocessing.get_context("fork")  # a worker is there in milliseconds, with everything imported


class PortTaken(OSError):
    """Somebody else listens there."""


@dataclass(frozen=True, slots=True)
class _Worker:
    process: ForkProcess
    started: float

    @property
    def hopeless(self) -> bool:
        """It ended by a failure of its own, or at once: its successor would end in the same way."""
        failed = (self.process.exitcode or 0) > 0  # negative when it was killed, 0 when it was told to stop
        return failed or time.monotonic() - self.started < YOUNG_SECONDS


class Workers:
    """`count` processes that each run `serve` with a listening socket; `bury` is told the id of one that died."""

    def __init__(
        self, host: str, port: int, count: int, serve: Callable[[socket.socket], None], bury: Callable[[int], None]
    ) -> None:
        self._serve = serve
        self._bury = bury
        self._sockets = _listening(host, port, count)
        self._lifeline = os.pipe()  # the end to write to is ours alone: it closes when we die, in whatever way
        self._workers: list[_Worker] = []

    def run(self) -> int:
        """Return when a signal says so, with 0, or when there is no hope, with 1; no worker is left then."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP | {signal.SIGCHLD})  # they are waited for, not handled
        self._workers = [self._start(own) for own in self._sockets]
        hopeful = True
        while hopeful and signal.sigwait(STOP | {signal.SIGCHLD}) == signal.SIGCHLD:
            hopeful = self._replace_the_dead()
        self._stop()
        return 0 if hopeful else 1

    def _replace_the_dead(self) -> bool:
        for index, worker in enumerate(self._workers):
            if worker.process.exitcode is None:
                continue
            if worker.hopeless:
                logger.error("a worker ended with %d, and so would the next: stopping", worker.process.exitcode)
                return False
            logger.warning("a worker ended with %d: starting another", worker.process.exitcode)
            self._bury(worker.process.pid or 0)
            self._workers[index] = self._start(self._sockets[index])
        return True

    def _stop(self) -> None:
        for own in self._sockets:
            own.close()
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def _start(self, own: socket.socket) -> _Worker:
        process = _fork.Process(target=self._work, args=(own,), daemon=True)  # should we fail ourselves, it is stopped
        process.start()
        return _Worker(process, time.monotonic())

    def _work(self, own: socket.socket) -> None:
        """In the worker: leave what is not its own, and serve until a signal comes or the parent is gone."""
        for other in self._sockets:
            if other is not own:
                other.close()
        pipe, writing_end = self._lifeline
        os.close(writing_end)
        threading.Thread(target=_stop_at_end_of, args=(pipe,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP | {signal.SIGCHLD})
        self._serve(own)


def _stop_at_end_of(pipe: int) -> None:
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _listening(host: str, port: int, count: int) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:  # alone, since another adapter's workers would share their port with ours
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        return [
            socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True) for _ in range(count)
        ]
    except OSError as error:
        raise PortTaken(f"{host} port {port} cannot be listened on ({error.strerror}).") from None
