"""`python -m client`: the adapter as one process, told by `ADAPTER_*`.

Knows how to run it; does not start Triton.
"""

import logging
import signal
import sys

import uvicorn

from client.app import create_app
from client.settings import Settings, SettingsError

# Longer than usual HTTP clients keep an idle connection: they close it, and no request meets one that is just closing.
KEEP_ALIVE_SECONDS = 75


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        sys.exit(str(error))
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # uvicorn repeats the signal to itself after a graceful stop, which would end the process with an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.deadline_seconds) + 1,
    )


if __name__ == "__main__":
    main()
