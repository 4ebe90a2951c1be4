"""The application in uvicorn: with our connections, until a signal says stop, then what is in flight is finished.

Knows how it is served; not what, and not how many processes serve it.
"""

import faulthandler
import gc
import logging
import resource
import signal
import sys
from socket import socket

import uvicorn

from client.app import create_app
from client.connection import IDLE_SECONDS, Limits, limited
from client.settings import Settings

logger = logging.getLogger(__name__)

# New objects until the collector looks for cycles. With Python's 700 it went through the thousand requests that wait in
# a full adapter again and again: a sixth of all its CPU time, and pauses of 0.1 s.
COLLECT_AFTER = 50_000
EMBEDDING = {b"/txt/embed", b"/img/embed"}
HANG_SECONDS = 20.0  # no work of ours holds the event loop for a second
TICKS_PER_SECOND = 10  # of uvicorn
SPARE_FILES = 64  # beside connections: Triton's channel, listening sockets, the log


def serve(settings: Settings, listening: socket | None = None) -> None:
    """One process's part: on the settings' own address, or on a socket that listens there already."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn repeats the signal to itself when it has stopped for it
        signal.signal(stop, lambda *_: sys.exit(0))
    _allow_files(settings.share(settings.max_connections) + SPARE_FILES)
    running = server(settings)
    gc.freeze()  # what is there by now stays: no collection has to go through it again
    gc.set_threshold(COLLECT_AFTER)
    running.run([listening] if listening else None)


class Server(uvicorn.Server):
    """Ends, with every thread's traceback, when its event loop hangs: whoever started it starts another."""

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        faulthandler.cancel_dump_traceback_later()  # from here on nobody counts the ticks
        await super().shutdown(sockets)


def server(settings: Settings) -> Server:
    """Not yet running."""
    app = create_app(settings)

    def is_full(path: bytes) -> bool:
        return path in EMBEDDING and app.state.admission.full

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=limited(Limits(settings.share(settings.max_connections), settings.max_body_bytes, is_full)),
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.deadline_seconds) + 1,
    )
    return Server(config)


def _allow_files(count: int) -> None:
    """Each connection is an open file, of which a process may have few by default."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, most), most))
    if most < count:
        words = "only %d files may be open: raise `ulimit -n` to %d, or lower ADAPTER_MAX_CONNECTIONS"
        logger.warning(words, most, count)
