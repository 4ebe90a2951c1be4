"""GET /docs: Swagger, with nothing from anywhere else. Its files are those of the package fastapi-offline.

Callers type their key into this page. So its Content-Security-Policy lets it run these files' script and the one line
below, and talk to this server. Nothing that a document or an extension of one may bring runs.
"""

import base64
from hashlib import sha256
from pathlib import Path

import fastapi_offline
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

FOLDER = Path(fastapi_offline.__file__).parent / "static"
FILES = {"/docs/swagger-ui-bundle.js": "text/javascript", "/docs/swagger-ui.css": "text/css"}

# All addresses are relative: a gateway may serve this under a prefix.
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true})'
_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>qwen3-vl-embed</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>{_START}</script>
</body>
</html>
"""
_HASH = base64.b64encode(sha256(_START.encode()).digest()).decode()
_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src 'self' 'sha256-{_HASH}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes() -> list[Route]:
    """The page, what leads to it, and its files."""
    return [Route("/", _to_page), Route("/docs", _page), *(Route(path, _file) for path in FILES)]


async def _to_page(_: Request) -> Response:
    return RedirectResponse("docs")


async def _page(_: Request) -> Response:
    return HTMLResponse(_PAGE, headers=_HEADERS)


async def _file(request: Request) -> Response:
    path = request.scope["path"]  # not `request.url`, which is made from the caller's Host
    return FileResponse(FOLDER / Path(path).name, headers=_HEADERS, media_type=FILES[path])
