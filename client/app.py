"""The adapter's endpoints: one HTTP request in, one answer out.

A request is read within its limits, parsed into items, embedded and written, one line each in `_embed`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel
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
    COHERE_PATH,
    TOO_MANY,
    WEAVIATE_PATH,
    ApiError,
    InvalidInput,
    Overloaded,
    TooSlow,
    Unavailable,
    error_response,
    shaped,
)
from client.http import api_key, docs, openapi
from client.http.answers import JSON, MEDIA_TYPES, Done, accepted, stages_ms
from client.http.api_key import ApiKey
from client.http.body import cancelled_on_disconnect, parse_object, read_body
from client.http.cohere import CohereRequest
from client.http.framing import Drained, Unambiguous
from client.http.openai import OpenAIRequest
from client.http.openapi import Endpoint
from client.http.schemas import Asked, Context, ImageRequest, RenderRequest, TextRequest
from client.http.served import ByName
from client.http.weaviate import WeaviateRequest
from client.items import EmbedInput
from client.settings import Settings
from client.state import State
from client.telemetry import metrics
from client.telemetry.access_log import AccessLog

Schema = TextRequest | ImageRequest | OpenAIRequest | CohereRequest | WeaviateRequest

if TYPE_CHECKING:
    from client.telemetry.traces import Traces

# Parsing, base64 and hashing of a body above this would hold up the other requests for more than half a millisecond.
OFF_LOOP_BYTES = 256 * 1024
OFF_LOOP_SHORT = 8 * 1024  # the same of schemas whose lists may hold thousands of short texts
OFF_LOOP_NUMBERS = 256 * 2560  # of an answer; longer lists are written in pieces, between which others get their turn
LIMITS = {name for name in Settings.model_fields if name.startswith("max_")}  # that /info tells


def state_of(scope: Scope) -> State:
    """Of the application that a request came to, whose type Starlette does not know."""
    state: State = scope["app"].state
    return state


class Adapter(Starlette):
    """The application. FastAPI only documents it: its layers around an endpoint were a third of all work here."""

    state: State  # type: ignore[assignment]  # there while it serves, in place of Starlette's, which takes any name
    settings: Settings
    traces: "Traces | None"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Middleware sees requests alone: start and end are the router's."""
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)
        else:
            await self.router({**scope, "app": self}, receive, send)


def create_app(settings: Settings) -> Adapter:
    """The application; it connects to Triton when it starts, and starts without it too.

    Raises:
        SettingsError: there should be a key, and is none.
    """
    routes = _routes(settings)
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

        traces = Traces(settings.traces_url)
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
    app.router.redirect_slashes = False  # to an address of http behind a gateway of https, with the body
    app.settings, app.traces = settings, traces
    return app


class Shed:
    """ASGI middleware: an embedding that there is no room for gets its 429 before it costs routing or the key."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._answers = {path: error_response(Overloaded(TOO_MANY.format("items")), path) for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answers.get(scope["path"])
        if answer and scope["method"] == "POST" and state_of(scope).admission.full:
            answer.headers["retry-after"] = str(state_of(scope).dispatcher.after)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@lru_cache(maxsize=1)
def contract(settings: Settings, served_name: str | None = None, most: int | None = None) -> dict[str, Any]:
    """What GET /openapi.json answers while a model of that name is served, which can do `most` items in time."""
    named = _embedding_routes(settings, most, f"/{served_name}") if served_name else []
    return openapi.document([*_routes(settings, most), *named], settings.keyed)


def _embedding_routes(settings: Settings, most: int | None, prefix: str = "") -> list[BaseRoute]:
    """What is tagged `embeddings` is shed while there is no room, and is there by the model's name too."""
    ours, others = (min(limit, most or limit) for limit in (settings.max_items, settings.list_items))
    endpoints: dict[str, tuple[Callable[[Request], Awaitable[Response]], type[BaseModel], int]] = {
        "/txt/embed": (embed_text, TextRequest, ours),  # where the benchmark reads its batch size
        "/img/embed": (embed_images, ImageRequest, ours),
        "/v1/embeddings": (embed_openai, OpenAIRequest, others),
        COHERE_PATH: (embed_cohere, CohereRequest, others),
        WEAVIATE_PATH: (embed_weaviate, WeaviateRequest, others),
    }
    return [
        Endpoint(
            prefix + path,
            endpoint,
            methods=["POST"],
            tags=["embeddings"],
            responses=openapi.embed_responses(model),
            openapi_extra=openapi.request_body(model, items),
        )
        for path, (endpoint, model, items) in endpoints.items()
    ]


def _routes(settings: Settings, most: int | None = None) -> list[BaseRoute]:
    operation = {"methods": ["GET"], "tags": ["operation"]}
    healthy = {**operation, "responses": openapi.responses(Unavailable)}
    ready = ["/health", "/health/ready", "/v1/health/ready", "/.well-known/ready"]
    alive = ["/health/live", "/v1/health/live", "/.well-known/live"]
    return [
        *_embedding_routes(settings, most),
        Endpoint(
            "/debug/render",
            render,
            methods=["POST"],
            tags=["debug"],
            responses=openapi.render_responses(),
            openapi_extra=openapi.request_body(RenderRequest, settings.max_items),
        ),
        *(Endpoint(path, health, **healthy) for path in ready),
        *(Endpoint(path, live, **operation) for path in alive),
        *(Route(path, health, methods=["HEAD"]) for path in ready),
        *(Route(path, live, methods=["HEAD"]) for path in alive),
        Endpoint("/info", info, **operation),
        Endpoint("/v1/models", models, **operation),
        Endpoint("/v1/metadata", metadata, **operation),
        Endpoint("/meta", metadata, **operation),
        Endpoint("/metrics", figures, **operation, response_class=PlainTextResponse),
        Route("/metrics", figures, methods=["HEAD"]),
        Route("/openapi.json", document),
        *docs.routes(),
    ]


@asynccontextmanager
async def _lifespan(app: Adapter) -> AsyncIterator[None]:
    app.state = state = State.of(app.settings, app.traces.outgoing if app.traces else tuple)
    await state.readiness.probe()  # before the port opens, so that the first request finds a known model
    keeping = (state.readiness.keep_probing(), state.readiness.keep_watching(), state.keep_sampling())
    background = [asyncio.create_task(each) for each in keeping]
    yield
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await state.client.close()
    if app.traces:
        await asyncio.to_thread(app.traces.close)


@asynccontextmanager
async def _received(
    request: Request, untyped: bool = False
) -> AsyncIterator[tuple[bytearray, Callable[[list[EmbedInput]], float]]]:
    """The body, and whom to tell which items it holds: of him one has how many seconds they may take.

    What runs inside is ended after these, and when the client leaves.
    """
    state = state_of(request.scope)
    asked = _asked_seconds(request)
    seconds, started = min(asked, state.readiness.deadline()), asyncio.get_running_loop().time()
    body, arrived = bytearray(), False

    def within(items: list[EmbedInput]) -> float:
        nonlocal seconds
        seconds = min(asked, state.readiness.deadline(items))
        timer.reschedule(started + seconds)
        return seconds

    try:
        async with asyncio.timeout(seconds) as timer:
            await read_body(request, body, state.settings.max_body_bytes, state.intake, untyped)
            arrived = True
            async with cancelled_on_disconnect(request):
                yield body, within
    except TimeoutError:
        if arrived:
            raise state.readiness.timeout(seconds) from None
        raise TooSlow(f"timeout: the body did not arrive within {seconds:g} s.") from None
    finally:
        state.intake.give_back(len(body))


def _asked_seconds(request: Request) -> float:
    try:
        seconds = next((float(value) for name, value in request.scope["headers"] if name == b"x-timeout"), math.inf)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidInput("x-timeout must be a number of seconds, such as 2.5.", "x-timeout")
    return seconds


async def embed_text(request: Request) -> Response:
    """Embed one text or a list of texts."""
    return await _embed(request, TextRequest)


async def embed_images(request: Request) -> Response:
    """Embed one image or a list of images; `input` and `content` are two names for the same field."""
    return await _embed(request, ImageRequest)


async def embed_openai(request: Request) -> Response:
    """OpenAI's schema: texts, images, both in one vector, and conversations."""
    return await _embed(request, OpenAIRequest)


async def embed_cohere(request: Request) -> Response:
    """Cohere's schema."""
    return await _embed(request, CohereRequest)


async def embed_weaviate(request: Request) -> Response:
    """What Weaviate's multi2vec-clip asks; it sends no Content-Type."""
    return await _embed(request, WeaviateRequest, untyped=True)


async def _embed(request: Request, model: type[Schema], untyped: bool = False) -> Response:
    started = time.perf_counter()
    for name in request.query_params.keys() & model.model_fields.keys():
        raise InvalidInput(f'The query string is not read: send "{name}" in the JSON body.', name)
    state = state_of(request.scope)
    ours = issubclass(model, TextRequest | ImageRequest)
    max_items = state.settings.max_items if ours else state.settings.list_items
    media_type = accepted(", ".join(request.headers.getlist("accept")), MEDIA_TYPES if ours else (JSON,))
    context = Context(max_items, media_type, state.readiness.model)
    async with _received(request, untyped) as (body, within):
        if len(body) > (OFF_LOOP_BYTES if ours else OFF_LOOP_SHORT):
            asked = await asyncio.to_thread(_parsed, body, model, context)
        else:
            asked = _parsed(body, model, context)
        check = partial(state.served.check, path=request.scope.get("served_name"), field=asked.model)
        check(state.readiness.model)
        embeddings = await state.dispatcher.embed(asked.items, request.scope["request_id"], within(asked.items))
        check(embeddings[0].model)  # another one may have come meanwhile
    stages = stages_ms(embeddings)
    metrics.embedded(len(asked.items), len(body), stages)
    name = state.served.name(embeddings[0].model) or embeddings[0].model["checkpoint"]
    done = Done(embeddings, name, request.scope["request_id"], stages, started)
    if sum(len(embedding.vector) for embedding in embeddings) > OFF_LOOP_NUMBERS:
        return await asyncio.to_thread(asked.answer, done)
    return asked.answer(done)


def _parsed(body: bytearray, model: type[Schema], context: Context) -> Asked:
    return model.parse(parse_object(body), context.max_items).asked(context)


async def render(request: Request) -> Response:
    """The exact prompt, token ids, positions, grid and pooled tokens of one input."""
    state = state_of(request.scope)
    async with _received(request) as (body, within):
        item = RenderRequest.parse(parse_object(body), state.settings.max_items).item()
        try:
            embedding = await state.dispatcher.render(item, request.scope["request_id"], within([item]))
        except ApiError as error:
            raise error.at(item.param) from None
    return _json({"recipe": embedding.recipe.id, **(embedding.json or {})})


async def health(request: Request) -> Response:
    """200 when a real embedding came back lately and Triton says that the model is ready; 503 otherwise.

    Of several Tritons one whose vectors are refused is told in `refused`.
    """
    readiness = state_of(request.scope).readiness
    await readiness.check()
    return _json({"status": "ready"} | ({"refused": readiness.refusal} if readiness.refusal else {}))


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
    seconds = {"deadline_seconds": state.readiness.deadline(), "probe_seconds": settings.probe_seconds}
    model = state.readiness.model
    return _json(
        {
            "served_model_name": state.served.name(model),
            "model": model,
            "adapter": {"version": __version__, "workers": settings.workers, "limits": limits | seconds},
            "cache": state.cache.stats(),
        }
    )


async def models(request: Request) -> Response:
    """The model by the names that a request may have for it, as OpenAI lists them; none while it is not known."""
    state = state_of(request.scope)
    name = state.served.name(state.readiness.model)
    about = {"object": "model", "created": 0, "owned_by": "qwen3-vl-embed"}
    names = [name, *state.served.aliases] if name else []
    return _json({"object": "list", "data": [{"id": each, **about} for each in names]})


async def metadata(request: Request) -> Response:
    """Who answers, as NIM and Weaviate ask."""
    state = state_of(request.scope)
    known = state.readiness.model
    about = {"modelUrl": known["checkpoint"], "shortName": state.served.name(known)} if known else None
    return _json({"version": __version__, "modelInfo": [about] if about else []})


async def figures(request: Request) -> Response:
    """The adapter's metrics for Prometheus, of all workers together."""
    state_of(request.scope).sample()
    return Response(metrics.exposition(), media_type=metrics.MEDIA_TYPE)


async def document(request: Request) -> Response:
    """The contract, for programs; its `maxItems` is what this model can answer in time, where that is less."""
    state = state_of(request.scope)
    limit = max(state.settings.max_items, state.settings.list_items)
    most = min(state.dispatcher.most(images, limit) for images in (False, True))
    return _json(contract(state.settings, state.served.name(state.readiness.model), most))


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    if isinstance(error, ApiError):
        return error_response(error, path)
    if isinstance(error, HTTPException):  # what the router refuses: 404 and 405
        status = HTTPStatus(error.status_code)
        message = f"{status.phrase}: GET /docs lists the endpoints and their methods."
        name = status.name.lower()
        return shaped(status, message, "invalid_request_error", name, headers=error.headers, path=path)
    return Response(status_code=499)  # the client is gone: nobody reads it, but the log shows it
