"""`python -m client`: the adapter, told by `ADAPTER_*`, as one process or as several under one more.

Knows how many processes there are; does not start Triton.
"""

import os
import sys
from functools import partial
from tempfile import TemporaryDirectory

from client import logs
from client.settings import Settings, SettingsError
from client.workers import PortTaken, Workers


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level, settings.log_format)
        if settings.workers > 1:
            sys.exit(_several(settings))
        from client.server import serve

        serve(settings)
    except SettingsError as error:
        sys.exit(str(error))


def _several(settings: Settings) -> int:
    """Their figures are added up by way of files, in a folder that must be known before the first is declared."""
    with TemporaryDirectory(prefix="adapter-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from client import api_key, metrics
        from client.server import serve

        api_key.digests(settings)  # what is wrong with it is said once, and before there is a worker
        metrics.forget(os.getpid())
        try:
            workers = Workers(settings.host, settings.port, settings.workers, partial(serve, settings), metrics.forget)
        except PortTaken as error:
            raise SettingsError(f"ADAPTER_HOST, ADAPTER_PORT: {error} Set another one.") from None
        return workers.run()


if __name__ == "__main__":
    main()
