"""The adapter's endpoints: one HTTP request in, one answer out.

A request is read within its limits, parsed into items, embedded and written, one line each in `_embed`. Knows HTTP;
what it takes to get a vector is the dispatcher's affair, and what a field may hold is in the schemas.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from client import __version__, openapi
from client.access_log import AccessLog
from client.body import cancelled_on_disconnect, parse_object, read_body
from client.cache import VectorCache
from client.dispatcher import Call, Dispatcher
from client.errors import ApiError, DeadlinePassed, Unavailable, error_response, shaped
from client.items import Embedding, EmbedInput
from client.readiness import Readiness
from client.schemas import ImageRequest, RenderRequest, TextRequest
from client.settings import Settings
from client.triton_client import TritonClient

# Parsing, base64 and hashing of a body above this would hold up the other requests for more than half a millisecond.
OFF_LOOP_BYTES = 256 * 1024


def create_app(settings: Settings) -> FastAPI:
    """The application; it connects to Triton when it starts, and starts without it too."""
    app = FastAPI(title="qwen3-vl-embed", version=__version__, description=openapi.DESCRIPTION, lifespan=_lifespan)
    app.state.settings = settings
    app.add_middleware(AccessLog)
    for kind in (ApiError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _on_error)
    _add_routes(app, settings.max_items)
    return app


def _add_routes(app: FastAPI, max_items: int) -> None:
    for path, endpoint, model in (("/txt/embed", embed_text, TextRequest), ("/img/embed", embed_images, ImageRequest)):
        app.post(
            path,
            tags=["embeddings"],
            responses=openapi.embed_responses(),
            openapi_extra=openapi.request_body(model, max_items),
        )(endpoint)
    app.post(
        "/debug/render",
        tags=["debug"],
        responses=openapi.render_responses(),
        openapi_extra=openapi.request_body(RenderRequest, max_items),
    )(render)
    app.get("/health", tags=["operation"], responses=openapi.responses(Unavailable))(health)
    app.get("/health/live", tags=["operation"])(live)
    app.get("/info", tags=["operation"])(info)
    app.head("/health", include_in_schema=False)(health)
    app.head("/health/live", include_in_schema=False)(live)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    client = TritonClient(settings.triton_url, settings.model_name)
    app.state.readiness = Readiness(client, settings.probe_seconds, settings.wait_seconds)
    app.state.cache = VectorCache(settings.cache_bytes)
    app.state.dispatcher = Dispatcher(
        client, app.state.readiness, app.state.cache, settings.max_concurrency, settings.max_pending_items
    )
    await app.state.readiness.probe()  # before the port opens, so that the first request finds a known model
    background = [asyncio.create_task(app.state.readiness.keep_probing())]
    background.append(asyncio.create_task(app.state.readiness.keep_watching()))
    yield
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await client.close()


async def embed_text(request: Request) -> Response:
    """Embed one text or a list of texts."""
    return await _embed(request, TextRequest)


async def embed_images(request: Request) -> Response:
    """Embed one image or a list of images; `input` and `content` are two names for the same field."""
    return await _embed(request, ImageRequest)


async def _embed(request: Request, model: type[TextRequest] | type[ImageRequest]) -> Response:
    started = time.perf_counter()
    settings: Settings = request.app.state.settings
    deadline = asyncio.get_running_loop().time() + settings.deadline_seconds
    try:
        async with asyncio.timeout_at(deadline):
            body = await read_body(request, settings.max_body_bytes)
            if len(body) > OFF_LOOP_BYTES:
                items, is_list = await asyncio.to_thread(_items, body, model, settings.max_items)
            else:
                items, is_list = _items(body, model, settings.max_items)
            async with cancelled_on_disconnect(request):
                call = Call(deadline, request.scope["request_id"])
                embeddings = await request.app.state.dispatcher.embed(items, call)
    except TimeoutError:
        raise DeadlinePassed(f"timeout: the request took longer than {settings.deadline_seconds:g} s.") from None
    return _answer(embeddings, is_list, started)


def _items(
    body: bytearray, model: type[TextRequest] | type[ImageRequest], max_items: int
) -> tuple[list[EmbedInput], bool]:
    parsed = model.parse(parse_object(body), max_items)
    return parsed.items(), parsed.is_list()


def _answer(embeddings: list[Embedding], is_list: bool, started: float) -> Response:
    vectors = [embedding.vector for embedding in embeddings]
    content = orjson.dumps({"embedding": vectors if is_list else vectors[0]}, option=orjson.OPT_SERIALIZE_NUMPY)
    stages = {
        stage: max(getattr(embedding, f"{stage}_ms") for embedding in embeddings)
        for stage in ("queue", "preprocess", "forward")
    }
    stages["total"] = (time.perf_counter() - started) * 1e3
    headers = {f"x-{stage}-ms": f"{took:.3f}" for stage, took in stages.items()}
    recipe = embeddings[0].recipe  # all items of a request have the same options
    headers["x-recipe"] = recipe.id
    if recipe.warnings:
        headers["x-warning"] = "; ".join(recipe.warnings)
    headers["x-tokens"] = str(sum(embedding.tokens for embedding in embeddings))
    headers["x-cache-hits"] = str(sum(not embedding.computed for embedding in embeddings))
    headers["server-timing"] = ", ".join(f"{stage};dur={took:.3f}" for stage, took in stages.items())
    return Response(content, headers=headers, media_type="application/json")


async def render(request: Request) -> Response:
    """The exact prompt, token ids, positions, grid and pooled tokens of one input."""
    settings: Settings = request.app.state.settings
    body = await read_body(request, settings.max_body_bytes)
    item = RenderRequest.parse(parse_object(body), settings.max_items).item()
    deadline = asyncio.get_running_loop().time() + settings.deadline_seconds
    try:
        embedding = await request.app.state.dispatcher.render(item, Call(deadline, request.scope["request_id"]))
    except ApiError as error:
        raise error.at(item.param) from None
    return _json({"recipe": embedding.recipe.id, **(embedding.render or {})})


async def health(request: Request) -> Response:
    """200 when a real embedding came back lately and Triton says that the model is ready; 503 otherwise."""
    await request.app.state.readiness.check()
    return _json({"status": "ready"})


async def live() -> Response:
    """200 as long as this process answers, whatever the model does."""
    return _json({"status": "live"})


async def info(request: Request) -> Response:
    """The model as it describes itself (null while it is not known which would answer), this server, and its cache."""
    settings: Settings = request.app.state.settings
    limits = settings.model_dump(include={"max_items", "max_body_bytes", "max_concurrency", "max_pending_items"})
    seconds = settings.model_dump(include={"deadline_seconds", "wait_seconds", "probe_seconds"})
    return _json(
        {
            "model": request.app.state.readiness.model,
            "adapter": {"version": __version__, "limits": limits | seconds},
            "cache": request.app.state.cache.stats(),
        }
    )


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
