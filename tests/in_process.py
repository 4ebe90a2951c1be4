"""For the adapter's tests: the application in the test's own event loop, and a line to Triton that can be cut or held.

What stands behind the line is the real Triton with the real model.
"""

import asyncio
import base64
import io
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
from granian.server.embed import Server
from PIL import Image

from client import server
from client.app import create_app
from client.settings import Settings

DEAD = "127.0.0.1:1"  # nobody listens here
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would read all certificates anew for each client: 30 ms


class Client(httpx.AsyncClient):
    """An HTTP client that also knows the application and, where it listens, its port."""

    app: Any
    port: int


@asynccontextmanager
async def adapter(triton_url: str = DEAD, **settings) -> AsyncIterator[Client]:
    """An HTTP client of a started application; `client.app` is the application."""
    app = create_app(Settings(triton_url=triton_url, **settings))
    async with (
        app.router.lifespan_context(app),
        Client(transport=httpx.ASGITransport(app), base_url="http://adapter", timeout=60) as client,
    ):
        client.app = app
        yield client


class Embedded(Server):
    """granian in the caller's event loop, on the adapter's own socket."""

    listening: socket.socket
    _init_shared_socket = server.Server._init_shared_socket


@asynccontextmanager
async def listening(triton_url: str = DEAD, **settings) -> AsyncIterator[Client]:
    """The same on a real port, in the server that it runs in, told the same; but in this process and event loop."""
    given = Settings(triton_url=triton_url, **settings)
    app = create_app(given)
    running = Embedded(app, **server.options(given))
    running.listening = server.listen("127.0.0.1", 0)
    serving = asyncio.create_task(running.serve())
    port = running.listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(verify=NO_TLS) as once:
            await once.get(f"{url}/health/live", timeout=60)
        running.listening.detach()  # the server closes it
        async with Client(base_url=url, timeout=60, verify=NO_TLS) as client:
            client.app, client.port = app, port
            yield client
    finally:
        running.stop()
        await serving


def png(red: int, green: int, blue: int, size: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


def png64(red: int, green: int, blue: int, size: int = 64) -> str:
    return base64.b64encode(png(red, green, blue, size)).decode()


class Line:
    """A TCP relay to Triton's gRPC port."""

    def __init__(self, target: str, host: str, port: int) -> None:
        self._target = target.rsplit(":", 1)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._host, self._port = host, port

    @property
    def url(self) -> str:
        return f"{self._host}:{self._port}"

    async def connect(self) -> None:
        """Let connections through; the port stays the same when the line was cut before."""
        self._server = await asyncio.start_server(self._relay, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """As if Triton was killed: what is open breaks, and new connections are refused."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)

    def hold(self) -> None:
        """As if Triton hung: nothing comes back any more."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        triton_reader, triton_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, triton_writer}
        up, down = self._pump(reader, triton_writer, False), self._pump(triton_reader, writer, True)
        await asyncio.gather(up, down, return_exceptions=True)
        self._writers -= {writer, triton_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: bool) -> None:
        try:
            while data := await reader.read(65536):
                if held:
                    await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


class Proxy(grpc.GenericRpcHandler):
    """A gRPC proxy, as service meshes have: behind a connection that stays, calls go to wherever `target` says."""

    def __init__(self, target: str) -> None:
        self.target, self.calls, self.under_way, self.cancelled = target, Counter[str](), 0, 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def forward(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.calls[self.target] += 1
            self.under_way += 1
            try:
                async with grpc.aio.insecure_channel(self.target) as channel:
                    return await channel.unary_unary(details.method)(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                return await context.abort(error.code(), error.details() or "")
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.under_way -= 1

        return grpc.unary_unary_rpc_method_handler(forward)


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[tuple[Proxy, str]]:
    """The proxy, and its own address."""
    proxy, server = Proxy(target), grpc.aio.server()
    server.add_generic_rpc_handlers((proxy,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield proxy, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def line_to(target: str, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Line]:
    line = Line(target, host, port)
    await line.connect()
    try:
        yield line
    finally:
        line.release()
        await line.cut()


def refused(response: httpx.Response, status: int) -> dict:
    """The error in a response, which has the one body that all errors have."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]
