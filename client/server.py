"""The application in granian: HTTP/1.1 by hyper, in worker processes that are replaced when they die."""

import asyncio
import faulthandler
import gc
import logging
import multiprocessing
import os
import resource
import signal
import socket
from functools import partial
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server import MPServer
from starlette.types import ASGIApp

from client.http import api_key
from client.settings import LONGEST_SECONDS, PREFIX, Settings, SettingsError

logger = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024  # of the read buffer: a head that fills it is refused
# Longer than usual HTTP clients keep an idle connection: they close it, and no request meets one that is just closing.
# As long may a head take to arrive, and an answer wait for its reader to take some of it.
IDLE_SECONDS = 75.0
BACKLOG = 2048
# New objects until the collector looks for cycles. With Python's 700 it went through the thousand requests that wait in
# a full adapter again and again: a sixth of all its CPU time, and pauses of 0.1 s.
COLLECT_AFTER = 50_000
HANG_SECONDS = 20.0  # no work of ours holds the event loop for a second
STOPS = (signal.SIGTERM, signal.SIGINT)
SPARE_FILES = 64  # beside connections: Triton's channel, listening sockets, the log


def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; then what is in flight is finished.

    Raises:
        SettingsError: somebody else listens there, or the key cannot be used.
        SystemExit: 1, when a worker ended and its successor did within seconds: the next would, too.
    """
    api_key.digests(settings)  # what is wrong with it is said once, and before there is a worker
    _allow_files(settings.share(settings.max_connections) + SPARE_FILES)
    server = Server(
        "the adapter",
        **options(settings),
        workers=settings.workers,
        respawn_failed_workers=True,
        workers_kill_timeout=int(settings.deadline_seconds or LONGEST_SECONDS) + 1,
        loop=Loops.uvloop,
        log_level=LogLevels(settings.log_level),
    )
    server.listening = listen(settings.host, settings.port)
    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOPS),
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOPS),
        after_in_child=_forget_the_parents_handlers,
    )
    try:
        server.serve(target_loader=partial(_application, settings), wrap_loader=False)
    except SystemExit:
        if not server.interrupt_signal:  # a worker that heard the signal too, and stopped for it, has not failed
            raise


def options(settings: Settings) -> dict[str, Any]:
    """What one worker's HTTP server is told."""
    return {
        "address": settings.host,
        "port": settings.port,
        "interface": Interfaces.ASGI,
        "http": HTTPModes.http1,
        "websockets": False,
        "http1_settings": HTTP1Settings(header_read_timeout=int(IDLE_SECONDS * 1000), max_buffer_size=HEAD_BYTES),
        "backlog": BACKLOG,
        "backpressure": settings.share(settings.max_connections),
        "log_dictconfig": {"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}},  # ours stays as it is
    }


def listen(host: str, port: int) -> socket.socket:
    """One socket for all workers: a connection that a killed one did not take is another's.

    `::` is every address, of IPv4 too; on a machine without IPv6 it is IPv4's alone.
    hyper would wait for ever for a caller who takes nothing of an answer. The kernel does not (RFC 5482, and tcp(7)).

    Raises:
        SettingsError: somebody else listens there.
    """
    both = host == "::" and socket.has_dualstack_ipv6()
    address = "0.0.0.0" if host == "::" and not both else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (OSError, TypeError) as error:  # a TypeError: it cannot be written as a name of the Internet
        why = getattr(error, "strerror", None) or "no name of a machine"
        where = f"{host} port {port} cannot be listened on ({why})"
        raise SettingsError(f"{PREFIX}HOST, {PREFIX}PORT: {where}. Set another one.") from None
    # Linux hands both on to the connections.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(IDLE_SECONDS * 1000))
    return listening


class Server(MPServer):
    """granian's, but on a socket that listens already."""

    listening: socket.socket

    def _init_shared_socket(self) -> None:
        self._ssp = self._sso = None
        self._shd = SocketHolder(self.listening.fileno(), False, BACKLOG)  # type: ignore

    def _drop_shared_socket(self) -> None:
        self.listening.close()  # or connections would wait for workers that take no more


def _forget_the_parents_handlers() -> None:
    """In a worker, which gets no signal before: a SIGTERM would only be noted for the parent, and lost."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _application(settings: Settings) -> ASGIApp:
    """In a worker, before its event loop runs. The parent imports nothing of this: it only watches."""
    from client.app import create_app
    from client.telemetry import metrics

    metrics.forget_the_dead()
    app = create_app(settings)
    loop = asyncio.get_event_loop()
    loop.call_soon(_ignore_ctrl_c, loop)  # once granian has set its own handlers
    # uvloop hands on a SIGTERM that came between two runs of the loop, as granian starts, only with the next signal.
    loop.add_signal_handler(signal.SIGCONT, int)
    _end_if_it_hangs(loop)
    if parent := multiprocessing.parent_process():
        loop.add_reader(parent.sentinel, _stop_without, parent.sentinel, loop)
    gc.freeze()  # what is there by now stays: no collection has to go through it again
    gc.set_threshold(COLLECT_AFTER)
    return app


def _end_if_it_hangs(loop: asyncio.AbstractEventLoop) -> None:
    """With every thread's traceback, by a timer that needs neither the loop nor the GIL, which the loop sets back."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    signal.raise_signal(signal.SIGCONT)
    loop.call_later(1, _end_if_it_hangs, loop)


def _ignore_ctrl_c(loop: asyncio.AbstractEventLoop) -> None:
    """A terminal sends it to all; the parent stops its workers, and a second signal may block granian's handler."""
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop_without(parent: int, loop: asyncio.AbstractEventLoop) -> None:
    """It was killed: nobody would stop this worker, or replace it."""
    loop.remove_reader(parent)
    os.kill(os.getpid(), signal.SIGTERM)


def _allow_files(count: int) -> None:
    """Each connection is an open file, of which a process may have few by default."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, most), most))
    if most < count:
        words = "only %d files may be open: raise `ulimit -n` to %d, or lower ADAPTER_MAX_CONNECTIONS"
        logger.warning(words, most, count)
