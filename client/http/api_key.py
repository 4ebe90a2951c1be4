"""The key that a caller must know, where the settings have one.

Open without it are the health checks, which orchestrators make, the contract, and the list of models, which mteb reads
so. The contract is /openapi.json, which the benchmark reads without credentials, and /docs, which only shows it and to
which / leads. The values at /metrics are not open: they tell who asks how much, and Prometheus can send a key. A key in
a query string is no key, since addresses get logged.
"""

import hmac
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from client.errors import Unauthorized, error_response
from client.http import docs
from client.settings import PREFIX, Settings, SettingsError

HEALTH = {f"{start}/{name}" for start in ("/health", "/v1/health", "/.well-known") for name in ("ready", "live")}
OPEN = {"/health", *HEALTH, "/v1/models", "/openapi.json", "/", "/docs", *docs.FILES}
_MESSAGE = "This server wants its key: send it in the header Authorization: Bearer <key>."


class ApiKey:
    """ASGI middleware: nothing of a request without a good key is kept or run."""

    def __init__(self, app: ASGIApp, digests: list[bytes]) -> None:
        self._app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["path"] in OPEN and scope["method"] in ("GET", "HEAD")
        if is_open or self._knows(_sent(scope)):
            await self._app(scope, receive, send)
        else:
            await error_response(Unauthorized(_MESSAGE), scope["path"])(scope, receive, send)

    def _knows(self, key: bytes) -> bool:
        """In the same time for any wrong key, of whatever length: digests are compared, and all of them."""
        sent = sha256(key).digest()
        return any(hmac.compare_digest(sent, digest) for digest in self._digests)


def digests(settings: Settings) -> list[bytes]:
    """Of each key there is; none where anybody may ask. Several, so that a key can be changed without a gap.

    Raises:
        SettingsError: the file cannot be read, or there is no usable key where one was meant to be.
    """
    if settings.api_key is not None:
        return [_digest(settings.api_key.get_secret_value(), f"{PREFIX}API_KEY")]
    if settings.api_key_file is None:
        return []
    name = f"{PREFIX}API_KEY_FILE"
    try:
        lines = settings.api_key_file.read_text("ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise SettingsError(f"{name}: {settings.api_key_file} cannot be read ({reason}).") from None
    if not (keys := [line.strip() for line in lines if line.strip()]):
        raise SettingsError(f"{name}: {settings.api_key_file} holds no key. Write one a line.")
    return [_digest(key, name) for key in keys]


def _digest(key: str, name: str) -> bytes:
    if not (key.isascii() and key.isprintable() and " " not in key):  # it would never arrive like that in a header
        raise SettingsError(f"{name}: a key is made of visible ASCII characters, without spaces.")
    return sha256(key.encode()).digest()


def _sent(scope: Scope) -> bytes:
    scheme, _, key = Headers(scope=scope).get("authorization", "").encode("latin-1").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""
