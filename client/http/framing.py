"""What the HTTP server leaves to the application: heads that it lets pass, and bodies that nobody has read.

hyper ends each request where RFC 9112 says, but answers some that a server should refuse. Another in front of it may
read them otherwise. Two servers that do not agree give one caller another's answer.
"""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.errors import InvalidInput, error_response

LINGER_SECONDS = 30.0  # for the rest of a body behind its answer


class Unambiguous:
    """ASGI middleware: a head with more than one meaning is told a 400, and its connection closed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if fault := _fault(scope):
            response = error_response(InvalidInput(fault), scope["path"])
            response.headers["connection"] = "close"
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _fault(scope: Scope) -> str | None:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    codings = [value.lower() for name, value in scope["headers"] if name == b"transfer-encoding"]
    if scope["http_version"] == "1.1" and (len(hosts) != 1 or not hosts[0]):  # granian puts in an empty one for none
        return "An HTTP/1.1 request has the header Host, once: send it."
    if codings and codings != [b"chunked"]:
        return "Transfer-Encoding may be chunked and nothing else: send the body uncompressed."
    return None


class Drained:
    """ASGI middleware: the rest of a body is thrown away behind its answer, as it comes, up to twice `max_bytes`.

    A caller who sends all of it before he reads would meet a reset instead of the answer, and his connection can go on.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0" if b"transfer-encoding" not in headers else b"")
        came, ended = 0, length == b"0" or b"expect" in headers

        async def received() -> Message:
            nonlocal came, ended
            message = await receive()
            came += len(message.get("body", b""))
            if b"%d" % came == length:  # that it was all would be another message, and another turn between two threads
                message["more_body"] = False
            ended = not message.get("more_body", False)
            return message

        await self._app(scope, received, send)
        if ended:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not ended and came <= 2 * self._max_bytes:
                    await received()
