"""Around every request: its id, one line in the log, its place in the figures, an answer even when our own code failed.

The line holds method, path, status, duration and id; never a query, a header or anything of a body. Knows ASGI only.
"""

import logging
import re
import secrets
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client import metrics
from client.errors import InferenceFailed, error_response

logger = logging.getLogger(__name__)

LONGEST_PATH = 100  # none of ours is longer
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")  # anything else could forge a line in the log


class AccessLog:
    """ASGI middleware; it sets `scope["request_id"]`. What is not among `paths` is counted under one name."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope["request_id"] = _request_id(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not status:
                await error_response(_failed(request_id))(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        metrics.answered(path, status, seconds)
        if logger.isEnabledFor(logging.INFO):
            line = {
                "method": scope["method"],
                "path": scope["raw_path"][:LONGEST_PATH].decode("latin-1"),
                "status": status,
                "ms": round(seconds * 1e3, 1),
                "request_id": scope["request_id"],
            }
            logger.info("%(method)s %(path)s %(status)d %(ms)sms id=%(request_id)s", line)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return secrets.token_hex(8)


def _failed(request_id: str) -> InferenceFailed:
    return InferenceFailed(f"This server failed. Report incident {request_id} to whoever runs it.")
