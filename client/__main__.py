"""`python -m client`: the adapter, told by `ADAPTER_*`, as one process or as several under one more.

Knows how to run it; does not start Triton.
"""

import gc
import logging
import signal
import sys
from functools import partial
from socket import socket

import uvicorn

from client.app import create_app
from client.settings import Settings, SettingsError
from client.workers import PortTaken, Workers

# Longer than usual HTTP clients keep an idle connection: they close it, and no request meets one that is just closing.
KEEP_ALIVE_SECONDS = 75


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        sys.exit(str(error))
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if settings.workers == 1:
        serve(settings)
        return
    try:
        workers = Workers(settings.host, settings.port, settings.workers, partial(serve, settings))
    except PortTaken as error:
        sys.exit(f"ADAPTER_HOST, ADAPTER_PORT: {error} Set another one.")
    sys.exit(workers.run())


def serve(settings: Settings, listening: socket | None = None) -> None:
    """One process's part: on the settings' own address, or on a socket that listens there already."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn repeats the signal to itself when it has stopped for it
        signal.signal(stop, lambda *_: sys.exit(0))
    app = create_app(settings)
    gc.freeze()  # what is there by now stays: no collection has to go through it again
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.deadline_seconds) + 1,
    )
    uvicorn.Server(config).run([listening] if listening else None)


if __name__ == "__main__":
    main()
