"""`python -m client`: the adapter, told by `ADAPTER_*`; it does not start Triton."""

import os
import sys
from tempfile import TemporaryDirectory

from client import server
from client.settings import Settings, SettingsError
from client.telemetry import logs


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level, settings.log_format)
        if settings.workers == 1:
            server.serve(settings)
            return
        with TemporaryDirectory(prefix="adapter-metrics-") as folder:  # through which workers add up their metrics
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            server.serve(settings)
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
