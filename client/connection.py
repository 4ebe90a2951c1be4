"""One HTTP/1.1 connection: uvicorn's, with limits where it has none, and our error body where it answers by itself.

By itself uvicorn waits for ever for a head that does not end, keeps as many headers as are sent, answers what is not
HTTP in plain text, too many connections with a 503, and holds an answer for as long as nobody takes it. And what is
turned away, because there is no room, must cost little, or nothing is left for those who are served: so that is done
here, at the end of the head. Knows bytes and timers; any other request whose head is complete is the application's.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from client import access_log, metrics
from client.body import declared
from client.errors import TOLD, ApiError, HeadTooLarge, InvalidInput, Overloaded, error_response

HEAD_BYTES = 64 * 1024
# Longer than usual HTTP clients keep an idle connection: they close it, and no request meets one that is just closing.
# As long may a head take to arrive, and an answer to be taken.
IDLE_SECONDS = 75

_MALFORMED = InvalidInput("This is not an HTTP/1.1 request: check its first line, its headers and Content-Length.")
_HEAD_TOO_LARGE = HeadTooLarge(f"Path and headers are larger than {HEAD_BYTES} bytes: send less of them.")
_TOO_MANY = Overloaded("Too many connections are open (rate limit): send the request again in a second.")


@dataclass(frozen=True)
class Limits:
    """What one process takes."""

    max_connections: int
    max_body_bytes: int
    is_full: Callable[[bytes], bool]  # whether there is no room now for a request to this path


class Connection(HttpToolsProtocol):
    """The protocol class that uvicorn is given; `limited` makes one."""

    limits: ClassVar[Limits]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._partial = 0  # bytes since the last complete request
        self._in_body = False
        self._turned_away = False  # answered already; its body is not kept
        self._late: asyncio.TimerHandle | None = None  # runs while nobody waits for what is arriving
        self._untaken: asyncio.TimerHandle | None = None  # runs while an answer is not being taken

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        metrics.CONNECTIONS.inc()
        if len(self.connections) > self.limits.max_connections:
            self._refuse(_TOO_MANY)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        metrics.CONNECTIONS.dec()
        self._unset_keepalive_if_required()
        self._in_time()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._untaken = self.loop.call_later(IDLE_SECONDS, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._partial += len(data)
        super().data_received(data)
        if not self._partial or self.transport.is_closing():
            return
        if self._in_body:
            if self._partial > HEAD_BYTES:  # without a byte of body: chunk extensions, or trailers
                self.transport.abort()
        elif self._partial > HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._late is None:
            self._late = self.loop.call_later(IDLE_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._in_time()
        self._unset_keepalive_if_required()
        if self._partial > HEAD_BYTES and self._head_bytes() > HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
            raise ValueError("the head is too large")  # uvicorn parses no further
        self._in_body = True
        self._turned_away = self.limits.is_full(self.url) and self._may_turn_away()
        if self._turned_away:
            self._turn_away()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._partial = 0
        if not self._turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._partial = False, 0
        self._in_time()
        if self._turned_away or self.cycle.response_complete:  # the answer was there first
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The rest of a body that was refused is thrown away as it comes, unless it would be too long.

        Whoever sends all of it before he reads would meet a reset instead of the answer.
        """
        if not self.pipeline and self.cycle.more_body:
            if self._ends_soon():
                self._throw_away()
            else:
                self.transport.close()
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(IDLE_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # to close it would be to wait for whoever does not read
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._refuse(_MALFORMED)

    def _may_turn_away(self) -> bool:
        """Whether nobody else is to be answered first, and the connection goes on after the answer."""
        usual = self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1"
        goes_on = self.parser.should_keep_alive() and self._ends_soon() and not self.flow.write_paused
        return self._nobody_waits() and usual and goes_on

    def _nobody_waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_in_its_own_body(self) -> bool:
        return self._in_body and not self.pipeline and not self.cycle.response_started

    def _turn_away(self) -> None:
        own_id = access_log.request_id(self.headers)
        self.transport.write(_FULL.replace(b"\r\n\r\n", b"\r\nx-request-id: %b\r\n\r\n" % own_id.encode(), 1))
        self._throw_away()
        path, method = self.url, self.parser.get_method()
        access_log.note(path.decode(), method.decode(), path, TOLD[Overloaded].status, 0.0, own_id)

    def _throw_away(self) -> None:
        """The rest of the body, as it comes."""
        self._late = self.loop.call_later(IDLE_SECONDS, self.transport.abort)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _ends_soon(self) -> bool:
        """Whether the body is surely coming (not after a "100 Continue" that was never sent), and is not too long."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return not self.expect_100_continue and declared(length) <= self.limits.max_body_bytes

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self, error: ApiError) -> None:
        """Answer and hang up: no application has seen anything of this request."""
        metrics.answered("other", TOLD[type(error)].status, 0)
        if self._nobody_waits() or self._is_in_its_own_body():  # or it would be taken for an earlier request's answer
            self.transport.write(_plainly(error, connection="close"))
        self.transport.close()


def limited(limits: Limits) -> type[Connection]:
    """The class of a process's connections."""
    return type("Connection", (Connection,), {"limits": limits})


def _plainly(error: ApiError, **headers: str) -> bytes:
    response = error_response(error)
    response.headers.update(headers)
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


_FULL = _plainly(Overloaded())
