"""Around every request: its id, one line in the log, its place in the metrics, an answer even when our own code failed.

The line holds method, path, status, duration and id; never a query, a header or anything of a body.
"""

import logging
import re
import secrets
import time
from collections.abc import Collection, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.errors import InferenceFailed, error_response
from client.telemetry import metrics

logger = logging.getLogger(__name__)

LONGEST_PATH = 100  # none of ours is longer
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class AccessLog:
    """ASGI middleware; it sets `scope["request_id"]`. What is not among `paths` is counted under one name."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        own_id = scope["request_id"] = request_id(scope["headers"])
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", own_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", own_id)
            if not status:
                failed = InferenceFailed(f"This server failed. Report incident {own_id} to those who run it.")
                await error_response(failed, scope["path"])(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            metrics.answered(scope["path"] if scope["path"] in self._paths else "other", status, seconds)
            if logger.isEnabledFor(logging.INFO):
                line = {
                    "method": scope["method"],
                    "path": scope["raw_path"][:LONGEST_PATH].decode("latin-1"),
                    "status": status,
                    "ms": round(seconds * 1e3, 1),
                    "request_id": own_id,
                }
                logger.info("%(method)s %(path)s %(status)d %(ms)sms id=%(request_id)s", line)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own, if it could not forge a line in the log, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return secrets.token_hex(8)
