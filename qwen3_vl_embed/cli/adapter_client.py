"""Talk to a running adapter over HTTP: texts and images in, numpy vectors out.

Knows the adapter's HTTP contract; does not know Triton, files, batches or terminals.
"""

import base64
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import count
from threading import Event
from time import monotonic
from typing import Any, Self, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_vl_embed.cli.contract import ContractError, Endpoints, list_limit, read_contract

API_KEY = "QWEN3_VL_EMBED_API_KEY"  # an environment variable: on a command line anybody on the machine could read it
RETRY_FOR_S = 120.0  # as long as a restart takes
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0
UNAUTHORIZED, TOO_BUSY = 401, 429
RESTARTING = {502, 503, 504}  # the adapter's own, and a gateway's in front of it
IMAGE_STARTS = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}
Answer = TypeVar("Answer")


class AdapterError(Exception):
    """The adapter refused, failed or is not there. `str(error)` is a sentence for the person at the terminal.

    `status` is the HTTP status, None when no answer came; `param` is what the adapter blames: an item (`input[7]`), an
    option (`pooling`), or nothing.
    """

    def __init__(self, message: str, status: int | None = None, param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.param = param

    @property
    def index(self) -> int | None:
        """The position of the item at fault: 7 for `input[7]`."""
        number = self.param.rpartition("[")[2].removesuffix("]")
        return int(number) if number.isdigit() else None


class NotNow(AdapterError):
    """The same request may succeed later; `after` is how many seconds the adapter wants us to wait."""

    def __init__(self, message: str, status: int | None = None, after: float = 0.0) -> None:
        super().__init__(message, status)
        self.after = after


class AdapterClient:
    """A connection to one adapter, which threads may share.

    A server that is too busy, restarting or lost is asked again for `retry_for_s` seconds, and `notify` is told once;
    one that never answered is not. Its model must stay the same: vectors of two models cannot be compared.

    Raises:
        AdapterError: the URL, or a proxy that the environment names, cannot be used.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 300.0,
        retry_for_s: float = RETRY_FOR_S,
        endpoints: Endpoints | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.url = url.rstrip("/")
        self.retry_for_s = retry_for_s
        self.endpoints = endpoints or Endpoints()
        self._notify = notify
        self._met = False  # it has answered once
        self._waits = 0  # for a server that was restarting or lost
        self._told = False  # of the present one
        self._closed = Event()
        self._model_id: str | None = None
        self._recipes: dict[tuple[str, bytes], str | None] = {}  # by path and options
        self._detour = ""  # a sentence about the proxy on the way
        self._http = self._connection(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._http.close()

    def info(self) -> dict[str, Any]:
        """What GET /info says about the model behind the adapter."""
        return self._patiently(lambda: self._json(self._once("GET", "/info")))

    def model(self) -> dict[str, Any]:
        """The `model` of GET /info: id, checkpoint, dimension, recipe, … Waits for one that is starting.

        Raises AdapterError when there is none, or another than before.
        """

        def ask() -> dict[str, Any]:
            model: dict[str, Any] | None = self._json(self._once("GET", "/info")).get("model")
            if model is None:
                raise NotNow(f"{self.url} has no model yet: it is starting, or restarting. Try again in a moment.")
            return model

        model = self._patiently(ask)
        self._model_id = self._model_id or model.get("id")
        if model.get("id") != self._model_id:
            raise AdapterError(f"{self.url} serves another model than before: start again, with one model for all.")
        return model

    def openapi(self) -> dict[str, Any]:
        return self._patiently(lambda: self._json(self._once("GET", "/openapi.json")))

    def max_items(self) -> int:
        """The largest list that one request may carry, as /openapi.json declares it."""
        try:
            return read_contract(self.openapi()).max_items
        except ContractError as error:
            raise AdapterError(f"{self.url} is not an adapter of this project: {error}") from None

    def list_limit(self) -> int:
        """The same for any server of the benchmark's local-provider schema; 1 where it takes no lists."""
        try:
            return list_limit(self.openapi(), self.endpoints)
        except ContractError as error:
            raise AdapterError(f"{self.url} is no server of the local-provider schema: {error}") from None

    def embed_text(self, text: str | Sequence[str], **options: Any) -> NDArray[np.float32]:
        """float32 (D,) for a string, (N, D) for a list of N, in order. Raises AdapterError."""
        return self._embed(self.endpoints.text_path, text if isinstance(text, str) else list(text), options)

    def embed_image(self, image: bytes | Sequence[bytes], **options: Any) -> NDArray[np.float32]:
        """The same for encoded image files (PNG, JPEG, ...), which travel as data: URLs."""
        content = _data_url(image) if isinstance(image, bytes) else [_data_url(each) for each in image]
        return self._embed(self.endpoints.image_path, content, options)

    def recipe(self, kind: str, options: dict[str, Any]) -> str | None:
        """The id of the recipe (`x-recipe`) by which a "text" or an "image" was embedded with these options."""
        path = self.endpoints.image_path if kind == "image" else self.endpoints.text_path
        return self._recipes[path, _key(options)]

    def _embed(self, path: str, content: str | list[str], options: dict[str, Any]) -> NDArray[np.float32]:
        body = orjson.dumps({self.endpoints.input_field: content, **options})
        waits = self._waits
        response = self._patiently(lambda: self._once("POST", path, body))
        if self._waits != waits and self._model_id:
            self.model()  # what came back may have been started with another checkpoint
        field = self.endpoints.output_field
        try:
            vectors = np.asarray(self._json(response)[field], dtype=np.float32)  # (D,) | (N, D)
        except (KeyError, TypeError, ValueError):
            raise AdapterError(f"{self.url}{path} answered without a list of numbers in `{field}`.") from None
        if vectors.shape[:-1] != (() if isinstance(content, str) else (len(content),)):
            raise AdapterError(f"{self.url}{path} answered with the shape {vectors.shape}, not what was asked.")
        recipe = response.headers.get("x-recipe")
        if self._recipes.setdefault((path, _key(options)), recipe) != recipe:
            raise AdapterError(f"{self.url} serves another recipe than before: start again, with one recipe for all.")
        return vectors

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """`ask`, again and again while it raises NotNow, for `retry_for_s` seconds after the first time."""
        give_up = 0.0
        for attempt in count():
            try:
                answer = ask()
            except NotNow as error:
                now = monotonic()
                give_up = give_up or now + self.retry_for_s
                # longer each time, because whoever is before us needs longer too
                wait = min(FIRST_WAIT_S * 2.0 ** min(attempt, 9), LONGEST_WAIT_S, give_up - now)
                if wait <= 0 or now + error.after > give_up:
                    raise
                self._tell(error, attempt)
                if self._closed.wait(max(wait, error.after)):
                    raise
            else:
                self._told = False
                return answer
        raise AssertionError("count() has no end")

    def _tell(self, error: NotNow, attempt: int) -> None:
        """A short wait is not worth a word."""
        if error.status == TOO_BUSY:
            return
        self._waits += 1
        if attempt and not self._told:
            self._told = True
            self._notify(f"{error} Asking again for up to {self.retry_for_s:.0f} s.")

    def _once(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        """One request. The one seam for httpx's exceptions."""
        try:
            response = self._http.request(method, path, content=content)
        except httpx.UnsupportedProtocol:
            raise _not_a_url(self.url) from None
        except httpx.ReadTimeout:
            raise AdapterError(f"{self.url} did not answer in {self._http.timeout.read:.0f} seconds.") from None
        except httpx.HTTPError as error:
            if self._met:
                raise NotNow(f"The connection to {self.url} broke ({error or type(error).__name__}).") from None
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise AdapterError(
                    f"Nothing answers at {self.url}. Start a server with `qwen3-vl-embed serve`, or name a running one "
                    f"with --url or the environment variable QWEN3_VL_EMBED_URL.{self._detour}"
                ) from None
            reason = error or type(error).__name__
            raise AdapterError(f"The connection to {self.url} broke: {reason}.{self._detour}") from None
        if response.is_error:
            raise self._error_in(response)
        self._met = True
        return response

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise AdapterError(f"{response.url} did not answer with a JSON object: is it the adapter?{self._detour}")
        return answer

    def _error_in(self, response: httpx.Response) -> AdapterError:
        """The adapter's own sentence, from {"error": {"message", "type", "param", "code"}}."""
        status = response.status_code
        if status == UNAUTHORIZED:
            refused = "refuses the key in" if API_KEY in os.environ else "wants a key: put it into"
            return AdapterError(f"{response.url} {refused} the environment variable {API_KEY}.", status)
        try:
            error = orjson.loads(response.content)["error"]
            message, param = str(error["message"]), str(error.get("param") or "")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            told = f"answered {status} {response.reason_phrase} and no message"
            message, param = f"{response.url} {told}: is it the adapter?{self._detour}", ""
        if status == TOO_BUSY or (status in RESTARTING and self._met):
            return NotNow(message, status, _seconds(response.headers.get("Retry-After", "")))
        return AdapterError(message, status, param)

    def _connection(self, timeout_s: float) -> httpx.Client:
        """Proxies are the environment's, but never for this machine itself."""
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise _not_a_url(self.url) from None
        local = _is_local(url.host)
        proxies = getproxies()
        if not local and (url.scheme in proxies or "all" in proxies) and not proxy_bypass(url.host):
            self._detour = f" It was asked through the environment's proxy; NO_PROXY={url.host} goes around that."
        try:
            return httpx.Client(
                base_url=url, headers=_headers(), timeout=httpx.Timeout(timeout_s, connect=10.0), trust_env=not local
            )
        except ImportError:
            raise AdapterError(
                f"The environment names a SOCKS proxy, which needs a package: pip install 'httpx[socks]'. "
                f"NO_PROXY={url.host} goes around it."
            ) from None
        except (ValueError, httpx.InvalidURL) as error:
            raise AdapterError(f"A proxy that the environment names cannot be used: {error}.") from None


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _headers() -> dict[str, str]:
    key = os.environ.get(API_KEY)
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _not_a_url(url: str) -> AdapterError:
    return AdapterError(f"{url} is not the URL of a server. Write it like http://localhost:8001.")


def _data_url(image: bytes) -> str:
    """As the benchmark sends images: another server of its schema may want the prefix."""
    kind = next((kind for start, kind in IMAGE_STARTS.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _key(options: dict[str, Any]) -> bytes:
    return orjson.dumps(options, option=orjson.OPT_SORT_KEYS)


def _seconds(retry_after: str) -> float:
    """`Retry-After` is a number of seconds, or a date (RFC 9110, 10.2.3); 0 for anything else."""
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # the former for a date without a zone
        return 0.0
