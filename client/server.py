"""The application in uvicorn: with our connections, until a signal says stop, then what is in flight is finished.

Knows how it is served; not what, and not how many processes serve it.
"""

import gc
import logging
import resource
import signal
import sys
from socket import socket

import uvicorn

from client.app import create_app
from client.connection import IDLE_SECONDS, limited
from client.settings import Settings

logger = logging.getLogger(__name__)

SPARE_FILES = 64  # beside connections: Triton's channel, listening sockets, the log


def serve(settings: Settings, listening: socket | None = None) -> None:
    """One process's part: on the settings' own address, or on a socket that listens there already."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn repeats the signal to itself when it has stopped for it
        signal.signal(stop, lambda *_: sys.exit(0))
    _allow_files(settings.share(settings.max_connections) + SPARE_FILES)
    running = server(settings)
    gc.freeze()  # what is there by now stays: no collection has to go through it again
    running.run([listening] if listening else None)


def server(settings: Settings) -> uvicorn.Server:
    """Not yet running."""
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=limited(settings.share(settings.max_connections), settings.max_body_bytes),
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.deadline_seconds) + 1,
    )
    return uvicorn.Server(config)


def _allow_files(count: int) -> None:
    """Each connection is an open file, of which a process may have few by default."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, most), most))
    if most < count:
        logger.warning("only %d files may be open: raise `ulimit -n` to %d, or lower MAX_CONNECTIONS", most, count)
