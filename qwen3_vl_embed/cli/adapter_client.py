"""Talk to a running adapter over HTTP: texts and images in, numpy vectors out.

Knows the adapter's HTTP contract; does not know Triton, files, batches or terminals.
"""

import base64
import os
import time
from collections.abc import Sequence
from typing import Any, Self

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_vl_embed.cli.contract import ContractError, Endpoints, list_limit, read_contract

API_KEY = "QWEN3_VL_EMBED_API_KEY"  # an environment variable: on a command line anybody on the machine could read it
LOCAL = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))  # no proxy, whatever the environment says
UNAUTHORIZED, TOO_BUSY = 401, 429
LONGEST_WAIT_S = 30.0
IMAGE_STARTS = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}


class AdapterError(Exception):
    """The adapter refused, failed or is not there. `str(error)` is a sentence for the person at the terminal.

    `status` is the HTTP status, None when no answer came; `index` is the position of the item at fault, when the
    adapter named one (`param: "input[7]"`).
    """

    def __init__(self, message: str, status: int | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.index = index


class AdapterClient:
    """A connection to one adapter. Waits and asks again when the adapter is too busy (`Retry-After`)."""

    def __init__(self, url: str, timeout_s: float = 300.0, waits: int = 8, endpoints: Endpoints | None = None) -> None:
        self.url = url.rstrip("/")
        self.waits = waits
        self.endpoints = endpoints or Endpoints()
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=_headers(), timeout=httpx.Timeout(timeout_s, connect=10.0), mounts=LOCAL
            )
        except httpx.InvalidURL:
            raise _not_a_url(url) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def info(self) -> dict[str, Any]:
        """What GET /info says about the model behind the adapter."""
        return self._json(self._request("GET", "/info"))

    def model(self) -> dict[str, Any]:
        """The `model` of GET /info: id, checkpoint, dimension, recipe, ... Raises AdapterError while there is none."""
        model: dict[str, Any] | None = self.info().get("model")
        if model is None:
            raise AdapterError(f"{self.url} has no model yet: it is starting, or restarting. Try again in a moment.")
        return model

    def openapi(self) -> dict[str, Any]:
        return self._json(self._request("GET", "/openapi.json"))

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

    def _embed(self, path: str, content: str | list[str], options: dict[str, Any]) -> NDArray[np.float32]:
        field = self.endpoints.output_field
        answer = self._json(self._request("POST", path, {self.endpoints.input_field: content, **options}))
        try:
            vectors = np.asarray(answer[field], dtype=np.float32)  # (D,) | (N, D)
        except (KeyError, TypeError, ValueError):
            raise AdapterError(f"{self.url}{path} answered without a list of numbers in `{field}`.") from None
        if vectors.shape[:-1] != (() if isinstance(content, str) else (len(content),)):
            raise AdapterError(f"{self.url}{path} answered with the shape {vectors.shape}, not what was asked.")
        return vectors

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        content = None if body is None else orjson.dumps(body)
        response = self._send(method, path, content)
        for wait in range(self.waits):
            if response.status_code != TOO_BUSY:
                break
            time.sleep(_wait_s(response, wait))
            response = self._send(method, path, content)
        if response.is_error:
            raise _error_in(response)
        return response

    def _send(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        """One seam for httpx's exceptions."""
        try:
            return self._http.request(method, path, content=content)
        except httpx.UnsupportedProtocol:
            raise _not_a_url(self.url) from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise AdapterError(
                f"Nothing answers at {self.url}. Start a server with `qwen3-vl-embed serve`, or name a running one "
                "with --url or the environment variable QWEN3_VL_EMBED_URL."
            ) from None
        except httpx.TimeoutException:
            raise AdapterError(f"{self.url} did not answer in {self._http.timeout.read:.0f} seconds.") from None
        except httpx.HTTPError as error:
            raise AdapterError(f"The connection to {self.url} broke: {error or type(error).__name__}.") from None

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise AdapterError(f"{response.url} did not answer with a JSON object: is it the adapter?")
        return answer


def _headers() -> dict[str, str]:
    key = os.environ.get(API_KEY)
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _not_a_url(url: str) -> AdapterError:
    return AdapterError(f"{url} is not the URL of a server. Write it like http://localhost:8001.")


def _data_url(image: bytes) -> str:
    """As the benchmark sends images: another server of its schema may want the prefix."""
    kind = next((kind for start, kind in IMAGE_STARTS.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _wait_s(response: httpx.Response, wait: int) -> float:
    """Seconds: what `Retry-After` asks for, and longer each time, because whoever is before us needs longer too."""
    asked = response.headers.get("Retry-After", "")
    return min(max(float(asked) if asked.isdigit() else 0.0, 0.5 * 2.0**wait), LONGEST_WAIT_S)


def _error_in(response: httpx.Response) -> AdapterError:
    """The adapter's own sentence, from {"error": {"message", "type", "param", "code"}}."""
    status = response.status_code
    if status == UNAUTHORIZED:
        return AdapterError(f"{response.url} wants a key: put it into the environment variable {API_KEY}.", status)
    try:
        error = orjson.loads(response.content)["error"]
        return AdapterError(error["message"], status, _index(error.get("param")))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        reason = f"{response.url} answered {status} {response.reason_phrase} and no message: is it the adapter?"
        return AdapterError(reason, status)


def _index(param: str | None) -> int | None:
    """`input[7]` -> 7."""
    number = (param or "").rpartition("[")[2].removesuffix("]")
    return int(number) if number.isdigit() else None
