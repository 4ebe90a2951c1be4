"""The adapter's endpoints: one HTTP request in, one answer out.

A request is read within its limits, parsed into items, embedded and written, one line each in `_embed`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
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
from client.http.served import ByName, Served
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

if TYPE_CHECKING:
    from client.telemetry.traces import Traces

# Parsing, base64 and hashing of a body above this would hold up the other requests for more than half a millisecond.
OFF_LOOP_BYTES = 256 * 1024
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


@dataclass
class State:
    """What one process has while it serves."""

    settings: Settings
    served: Served
    readiness: Readiness
    cache: VectorCache
    intake: Intake
    admission: Admission
    dispatcher: Dispatcher
    sampler: Sampler


def state_of(scope: Scope) -> State:
    """Of the application that a request came to, whose type Starlette does not know."""
    state: State = scope["app"].state
    return state


class Adapter(Starlette):
    """The application. FastAPI only documents it: its layers around an endpoint were a third of all work here."""

    state: State  # type: ignore[assignment]  # there while it serves, in place of Starlette's, which takes any name
    settings: Settings
    traces: "Traces | None"
    _documented: tuple[tuple[str | None, int], dict[str, Any]] | None = None

    def openapi(self, served_name: str | None = None, max_items: int | None = None) -> dict[str, Any]:
        """What GET /openapi.json answers while a model of that name is served, which can do that many items in time."""
        most = max_items or self.settings.max_items
        if self._documented is None or self._documented[0] != (served_name, most):
            named = _embedding_routes(most, f"/{served_name}") if served_name else []
            self._documented = (served_name, most), openapi.document([*_routes(most), *named], self.settings.keyed)
        return self._documented[1]


def create_app(settings: Settings) -> Adapter:
    """The application; it connects to Triton when it starts, and starts without it too.

    Raises:
        SettingsError: there should be a key, and is none.
    """
    routes = _routes(settings.max_items)
    paths = [route.path for route in routes if isinstance(route, Route)]
    embedding = [route.path for route in routes if isinstance(route, Endpoint) and "embeddings" in route.tags]
    middleware = [Middleware(ByName, embedding), Middleware(Drained, settings.max_body_bytes)]
    middleware.append(Middleware(AccessLog, paths))
    if settings.origins:  # around all that refuses: a page may read why, and its browser asks first without the key
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=list(openapi.HEADERS),
            )
        )
    middleware.append(Middleware(Shed, embedding))
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
    app.settings, app.traces = settings, traces
    return app


class Shed:
    """ASGI middleware: an embedding that there is no room for gets its 429 before it costs routing or the key."""

    _answer = error_response(Overloaded())

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") in self._paths and scope["method"] == "POST" and state_of(scope).admission.full:
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _embedding_routes(max_items: int, prefix: str = "") -> list[BaseRoute]:
    common = {"methods": ["POST"], "tags": ["embeddings"], "responses": openapi.embed_responses()}
    text, image = (openapi.request_body(model, max_items) for model in (TextRequest, ImageRequest))
    return [
        Endpoint(f"{prefix}/txt/embed", embed_text, **common, openapi_extra=text),
        Endpoint(f"{prefix}/img/embed", embed_images, **common, openapi_extra=image),
    ]


def _routes(max_items: int) -> list[BaseRoute]:
    operation = {"methods": ["GET"], "tags": ["operation"]}
    return [
        *_embedding_routes(max_items),
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
async def _lifespan(app: Adapter) -> AsyncIterator[None]:
    settings, traces = app.settings, app.traces
    client = TritonClient(settings.triton_url, settings.model_name, traces.outgoing if traces else tuple)
    readiness = Readiness(client, settings.probe_seconds, settings.wait_seconds, settings.deadline_seconds)
    cache = VectorCache(settings.share(settings.cache_bytes))
    intake = Intake(settings.share(settings.max_pending_bytes))
    concurrency, most = settings.share(settings.max_concurrency), settings.share(settings.max_pending_items)
    admission = Admission(most, settings.deadline_seconds, concurrency)
    pixels, most_pixels = settings.share(settings.max_concurrent_pixels), settings.share(settings.max_pending_pixels)
    large = Admission(most_pixels, settings.deadline_seconds, pixels, "pixels of large images")
    dispatcher = Dispatcher(client, readiness, cache, admission, large, concurrency, pixels, settings.deadline_seconds)
    sampler = Sampler(readiness, cache, admission, intake)
    served = Served(settings.served_model_name)
    app.state = State(settings, served, readiness, cache, intake, admission, dispatcher, sampler)
    await readiness.probe()  # before the port opens, so that the first request finds a known model
    keeping = (readiness.keep_probing(), readiness.keep_watching(), sampler.keep_sampling())
    background = [asyncio.create_task(each) for each in keeping]
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
    state = state_of(request.scope)
    seconds = _seconds(request, state.settings.deadline_seconds)
    body, arrived = bytearray(), False
    try:
        async with asyncio.timeout(seconds):
            await read_body(request, body, state.settings.max_body_bytes, state.intake)
            arrived = True
            async with cancelled_on_disconnect(request):
                yield body, seconds
    except TimeoutError:
        if arrived:
            raise DeadlinePassed(f"timeout: the request took longer than {seconds:g} s.") from None
        raise TooSlow(f"timeout: the body did not arrive within {seconds:g} s.") from None
    finally:
        state.intake.give_back(len(body))


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
    for name in request.query_params.keys() & model.model_fields.keys():
        raise InvalidInput(f'The query string is not read: send "{name}" in the JSON body.', name)
    state = state_of(request.scope)
    max_items = state.settings.max_items
    media_type = accepted(", ".join(request.headers.getlist("accept")))
    async with _received(request) as (body, seconds):
        if len(body) > OFF_LOOP_BYTES:
            items, form, asked = await asyncio.to_thread(_parsed, body, model, max_items, media_type)
        else:
            items, form, asked = _parsed(body, model, max_items, media_type)
        check = partial(state.served.check, path=request.scope.get("served_name"), field=asked)
        check(state.readiness.model)
        embeddings = await state.dispatcher.embed(items, request.scope["request_id"], seconds)
        check(embeddings[0].model)  # another one may have come meanwhile
    stages = stages_ms(embeddings)
    metrics.embedded(len(items), len(body), stages)
    return answer(items, embeddings, form, stages, started)


def _parsed(
    body: bytearray, model: type[TextRequest] | type[ImageRequest], max_items: int, media_type: str
) -> tuple[list[EmbedInput], Form, str | None]:
    parsed = model.parse(parse_object(body), max_items)
    return parsed.items(), parsed.form(media_type, parsed.is_list()), parsed.model


async def render(request: Request) -> Response:
    """The exact prompt, token ids, positions, grid and pooled tokens of one input."""
    state = state_of(request.scope)
    async with _received(request) as (body, seconds):
        item = RenderRequest.parse(parse_object(body), state.settings.max_items).item()
        try:
            embedding = await state.dispatcher.render(item, request.scope["request_id"], seconds)
        except ApiError as error:
            raise error.at(item.param) from None
    return _json({"recipe": embedding.recipe.id, **(embedding.json or {})})


async def health(request: Request) -> Response:
    """200 when a real embedding came back lately and Triton says that the model is ready; 503 otherwise."""
    await state_of(request.scope).readiness.check()
    return _json({"status": "ready"})


async def live(_: Request) -> Response:
    """200 as long as this process answers, whatever the model does."""
    return _json({"status": "live"})


async def info(request: Request) -> Response:
    """The model's name and description (null while it is not known which would answer), this server, and its cache.

    Limits are of all workers together; the cache is that of the worker which answers.
    """
    state = state_of(request.scope)
    settings = state.settings
    limits = settings.model_dump(include=LIMITS)
    seconds = settings.model_dump(include={"deadline_seconds", "wait_seconds", "probe_seconds"})
    model = state.readiness.model
    return _json(
        {
            "served_model_name": state.served.name(model),
            "model": model,
            "adapter": {"version": __version__, "workers": settings.workers, "limits": limits | seconds},
            "cache": state.cache.stats(),
        }
    )


async def figures(request: Request) -> Response:
    """The adapter's metrics for Prometheus, of all workers together."""
    state_of(request.scope).sampler.sample()
    return Response(metrics.exposition(), media_type=metrics.MEDIA_TYPE)


async def document(request: Request) -> Response:
    """The contract, for programs; its `maxItems` is what this model can answer in time, where that is less."""
    state = state_of(request.scope)
    most = min(state.dispatcher.most(images, state.settings.max_items) for images in (False, True))
    return _json(request.app.openapi(state.served.name(state.readiness.model), most))


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
