"""The adapter's endpoints: one HTTP request in, one answer out.

A request is read within its limits, parsed into items, embedded and written, one line each in `_embed`. Knows HTTP;
what it takes to get a vector is the dispatcher's affair, and what a field may hold is in the schemas.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from http import HTTPStatus
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from client import __version__
from client.errors import (
    ApiError,
    DeadlinePassed,
    InvalidInput,
    Overloaded,
    TooSlow,
    Unavailable,
    error_response,
    shaped,
)
from client.http import api_key, docs, openapi
from client.http.answers import Form, accepted, answer, stages_ms
from client.http.api_key import ApiKey
from client.http.body import Intake, cancelled_on_disconnect, parse_object, read_body
from client.http.framing import Drained, Unambiguous
from client.http.openapi import Endpoint
from client.http.schemas import ImageRequest, RenderRequest, TextRequest
from client.items import EmbedInput
from client.sampler import Sampler
from client.settings import Settings
from client.telemetry import metrics
from client.telemetry.access_log import AccessLog
from client.triton.admission import Admission
from client.triton.cache import VectorCache
from client.triton.dispatcher import Dispatcher
from client.triton.readiness import Readiness
from client.triton.triton_client import TritonClient

# Parsing, base64 and hashing of a body above this would hold up the other requests for more than half a millisecond.
OFF_LOOP_BYTES = 256 * 1024
EMBEDDING = {"/txt/embed", "/img/embed"}
LIMITS = {
    "max_items",
    "max_body_bytes",
    "max_concurrency",
    "max_concurrent_pixels",
    "max_connections",
    "max_pending_items",
    "max_pending_bytes",
    "max_pending_pixels",
}


class Adapter(Starlette):
    """The application. FastAPI only documents it: its layers around an endpoint were a third of all work here."""

    def openapi(self) -> dict[str, Any]:
        """What GET /openapi.json answers."""
        return self._document

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi.document(self.routes, keyed=self.state.settings.keyed)


def create_app(settings: Settings) -> Adapter:
    """The application; it connects to Triton when it starts, and starts without it too.

    Raises:
        SettingsError: there should be a key, and is none.
    """
    routes = _routes(settings.max_items)
    paths = [route.path for route in routes if isinstance(route, Route)]
    middleware = [Middleware(Drained, settings.max_body_bytes), Middleware(AccessLog, paths), Middleware(Shed)]
    traces = None
    if settings.traces_url:
        from client.telemetry.traces import Traced, Traces  # imports that nobody else needs

        traces = Traces.to(settings.traces_url)
        middleware.append(Middleware(Traced, traces, paths))
    middleware.append(Middleware(Unambiguous))
    if digests := api_key.digests(settings):
        middleware.append(Middleware(ApiKey, digests))
    app = Adapter(
        routes=routes,
        middleware=middleware,
        exception_handlers=dict.fromkeys((ApiError, HTTPException, ClientDisconnect), _on_error),
        lifespan=_lifespan,
    )
    app.state.settings, app.state.traces = settings, traces
    return app


class Shed:
    """ASGI middleware: an embedding that there is no room for gets its 429 before it costs routing or the key."""

    _answer = error_response(Overloaded())

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") in EMBEDDING and scope["method"] == "POST" and scope["app"].state.admission.full:
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _routes(max_items: int) -> list[BaseRoute]:
    embedding = {"methods": ["POST"], "tags": ["embeddings"], "responses": openapi.embed_responses()}
    operation = {"methods": ["GET"], "tags": ["operation"]}
    return [
        Endpoint("/txt/embed", embed_text, **embedding, openapi_extra=openapi.request_body(TextRequest, max_items)),
        Endpoint("/img/embed", embed_images, **embedding, openapi_extra=openapi.request_body(ImageRequest, max_items)),
        Endpoint(
            "/debug/render",
            render,
            methods=["POST"],
            tags=["debug"],
            responses=openapi.render_responses(),
            openapi_extra=openapi.request_body(RenderRequest, max_items),
        ),
        Endpoint("/health", health, **operation, responses=openapi.responses(Unavailable)),
        Endpoint("/health/ready", health, **operation, responses=openapi.responses(Unavailable)),
        Endpoint("/health/live", live, **operation),
        Endpoint("/info", info, **operation),
        Route("/health", health, methods=["HEAD"]),
        Route("/health/ready", health, methods=["HEAD"]),
        Route("/health/live", live, methods=["HEAD"]),
        Endpoint("/metrics", figures, **operation, response_class=PlainTextResponse),
        Route("/openapi.json", document),
        *docs.routes(),
    ]


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    traces = app.state.traces
    client = TritonClient(settings.triton_url, settings.model_name, traces.outgoing if traces else tuple)
    app.state.readiness = Readiness(client, settings.probe_seconds, settings.wait_seconds, settings.deadline_seconds)
    app.state.cache = VectorCache(settings.share(settings.cache_bytes))
    app.state.intake = Intake(settings.share(settings.max_pending_bytes))
    concurrency, most = settings.share(settings.max_concurrency), settings.share(settings.max_pending_items)
    app.state.admission = Admission(most, settings.deadline_seconds, concurrency)
    pixels, most_pixels = settings.share(settings.max_concurrent_pixels), settings.share(settings.max_pending_pixels)
    app.state.dispatcher = Dispatcher(
        client,
        app.state.readiness,
        app.state.cache,
        app.state.admission,
        Admission(most_pixels, settings.deadline_seconds, pixels, "pixels of large images"),
        concurrency,
        pixels,
        settings.deadline_seconds,
    )
    app.state.sampler = Sampler(app.state.readiness, app.state.cache, app.state.admission, app.state.intake)
    await app.state.readiness.probe()  # before the port opens, so that the first request finds a known model
    background = [asyncio.create_task(app.state.readiness.keep_probing())]
    background.append(asyncio.create_task(app.state.readiness.keep_watching()))
    background.append(asyncio.create_task(app.state.sampler.keep_sampling()))
    yield
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await client.close()
    if traces:
        await asyncio.to_thread(traces.close)


@asynccontextmanager
async def _received(request: Request) -> AsyncIterator[tuple[bytearray, float]]:
    """The body, and in how many seconds what runs inside will be ended; so it is, too, when the client leaves."""
    settings, intake = request.app.state.settings, request.app.state.intake
    seconds = _seconds(request, settings.deadline_seconds)
    body, arrived = bytearray(), False
    try:
        async with asyncio.timeout(seconds):
            await read_body(request, body, settings.max_body_bytes, intake)
            arrived = True
            async with cancelled_on_disconnect(request):
                yield body, seconds
    except TimeoutError:
        if arrived:
            raise DeadlinePassed(f"timeout: the request took longer than {seconds:g} s.") from None
        raise TooSlow(f"timeout: the body did not arrive within {seconds:g} s.") from None
    finally:
        intake.give_back(len(body))


def _seconds(request: Request, most: float) -> float:
    try:
        seconds = next((float(value) for name, value in request.scope["headers"] if name == b"x-timeout"), most)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidInput("x-timeout must be a number of seconds, such as 2.5.", "x-timeout")
    return min(seconds, most)


async def embed_text(request: Request) -> Response:
    """Embed one text or a list of texts."""
    return await _embed(request, TextRequest)


async def embed_images(request: Request) -> Response:
    """Embed one image or a list of images; `input` and `content` are two names for the same field."""
    return await _embed(request, ImageRequest)


async def _embed(request: Request, model: type[TextRequest] | type[ImageRequest]) -> Response:
    started = time.perf_counter()
    max_items = request.app.state.settings.max_items
    media_type = accepted(", ".join(request.headers.getlist("accept")))
    async with _received(request) as (body, seconds):
        if len(body) > OFF_LOOP_BYTES:
            items, form = await asyncio.to_thread(_parsed, body, model, max_items, media_type)
        else:
            items, form = _parsed(body, model, max_items, media_type)
        embeddings = await request.app.state.dispatcher.embed(items, request.scope["request_id"], seconds)
    stages = stages_ms(embeddings)
    metrics.embedded(len(items), len(body), stages)
    return answer(items, embeddings, form, stages, started)


def _parsed(
    body: bytearray, model: type[TextRequest] | type[ImageRequest], max_items: int, media_type: str
) -> tuple[list[EmbedInput], Form]:
    parsed = model.parse(parse_object(body), max_items)
    return parsed.items(), parsed.form(media_type, parsed.is_list())


async def render(request: Request) -> Response:
    """The exact prompt, token ids, positions, grid and pooled tokens of one input."""
    async with _received(request) as (body, seconds):
        item = RenderRequest.parse(parse_object(body), request.app.state.settings.max_items).item()
        try:
            embedding = await request.app.state.dispatcher.render(item, request.scope["request_id"], seconds)
        except ApiError as error:
            raise error.at(item.param) from None
    return _json({"recipe": embedding.recipe.id, **(embedding.render or {})})


async def health(request: Request) -> Response:
    """200 when a real embedding came back lately and Triton says that the model is ready; 503 otherwise."""
    await request.app.state.readiness.check()
    return _json({"status": "ready"})


async def live(_: Request) -> Response:
    """200 as long as this process answers, whatever the model does."""
    return _json({"status": "live"})


async def info(request: Request) -> Response:
    """The model as it describes itself (null while it is not known which would answer), this server, and its cache.

    Limits are of all workers together; the cache is that of the worker which answers.
    """
    settings: Settings = request.app.state.settings
    limits = settings.model_dump(include=LIMITS)
    seconds = settings.model_dump(include={"deadline_seconds", "wait_seconds", "probe_seconds"})
    return _json(
        {
            "model": request.app.state.readiness.model,
            "adapter": {"version": __version__, "workers": settings.workers, "limits": limits | seconds},
            "cache": request.app.state.cache.stats(),
        }
    )


async def figures(request: Request) -> Response:
    """The adapter's figures for Prometheus, of all workers together."""
    request.app.state.sampler.sample()
    return Response(metrics.exposition(), media_type=metrics.MEDIA_TYPE)


async def document(request: Request) -> Response:
    """The contract, for programs; its `maxItems` is what this model can answer in time, where that is less."""
    app, settings = request.app, request.app.state.settings
    most = min(app.state.dispatcher.most(images, settings.max_items) for images in (False, True))
    if most < settings.max_items:
        return _json(openapi.document(_routes(most), keyed=settings.keyed))
    return _json(app.openapi())


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _on_error(_: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error_response(error)
    if isinstance(error, HTTPException):  # what the router refuses: 404 and 405
        status = HTTPStatus(error.status_code)
        message = f"{status.phrase}: GET /docs lists the endpoints and their methods."
        return shaped(status, message, "invalid_request_error", status.name.lower(), headers=error.headers)
    return Response(status_code=499)  # the client is gone: nobody reads it, but the log shows it
