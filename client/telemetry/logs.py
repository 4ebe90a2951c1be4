"""How log lines are written: as text, or as one JSON object a line.

What may stand in a line is up to those who log. All keep to one rule: never a text, an image, a key, a query or a
header.
"""

import logging
from datetime import UTC, datetime

import orjson

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure(level: str, format: str) -> None:
    """All loggers of this process, those of libraries too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class JsonLine(logging.Formatter):
    """`time`, `level`, `logger`, `message`, what a message names of its parts; a traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(record.args if isinstance(record.args, dict) else {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
