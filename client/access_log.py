"""Around every request: its id, one line in the log, and an answer even when our own code failed.

The line holds method, path, status, duration and id; never a query, a header or anything of a body. Knows ASGI only.
"""

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.errors import InferenceFailed, error_response

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")  # anything else could forge a line in the log


class AccessLog:
    """ASGI middleware; it sets `scope["request_id"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
            took_ms = (time.perf_counter() - started) * 1e3
            path = scope.get("raw_path", b"").decode("latin-1")
            logger.info("%s %s %d %.1fms id=%s", scope["method"], path, status, took_ms, request_id)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return secrets.token_hex(8)


def _failed(request_id: str) -> InferenceFailed:
    return InferenceFailed(f"This server failed. Report incident {request_id} to whoever runs it.")
