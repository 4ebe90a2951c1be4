"""What a client says to a server and makes of its answers: the contract, errors, patience, one model for all.

Sends nothing itself. Its steps are generators that yield what is to be done (`Request`, `Wait`, `Call`) and are sent
what came of it. The two clients differ in nothing but how they do that.
"""

import base64
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import count
from time import monotonic
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_vl_embed.contract import Endpoints
from qwen3_vl_embed.errors import AdapterError, ItemError, NotNow
from qwen3_vl_embed.items import MOST_BYTES, Embedded, Item
from qwen3_vl_embed.settings import API_KEY, BATCH, DEFAULT_URL, URL

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0
UNAUTHORIZED, TOO_LARGE, TOO_BUSY, TIMEOUT = 401, 413, 429, 504
RESTARTING = {502, 503, 504}  # the adapter's own, and a gateway's in front of it
ITEM_STATUSES = {400, 413, 500}  # may be one item's fault; with any other the next item would fare no better
OPTIONS = ("options.", "options:")  # what is said of one comes with an item's name, but is of all items
IMAGE_STARTS = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}


@dataclass(frozen=True)
class Request:
    """To be sent; its answer is an `httpx.Response`."""

    method: str
    path: str
    content: bytes | None = None


@dataclass(frozen=True)
class Wait:
    """To be slept; its answer is whether the client was closed meanwhile."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """To be called, where it may block: it reads files."""

    function: Callable[[], Any]


Answer = TypeVar("Answer")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Steps = Generator[Request | Wait | Call, Any, Answer]  # an error of a step is thrown in


class Conversation:
    """With one server, which threads and tasks may share. Its model and its recipes must stay the same."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout_s: float,
        retry_for_s: float,
        endpoints: Endpoints | None,
        notify: Callable[[str], None],
    ) -> None:
        self.url = (url or os.environ.get(URL) or DEFAULT_URL).rstrip("/")
        self.most_items, self.most_bytes = BATCH, MOST_BYTES
        self._key, self._key_is_given = api_key or os.environ.get(API_KEY), api_key is not None
        self._timeout_s, self._retry_for_s, self._notify = timeout_s, retry_for_s, notify
        self._endpoints = endpoints or Endpoints()
        self._unknown = endpoints is None  # an adapter of ours that was not asked yet for its model and its limits
        self._answered = False  # once, whatever was asked
        self._told = False  # of the present one
        self._model_id: str | None = None
        self._recipes: dict[tuple[str, bytes], str | None] = {}  # by path and options
        self._detour = ""  # a sentence about the proxy on the way

    def connected(self, http: type[Http]) -> Http:
        """Proxies are the environment's, but never for this machine itself. Raises AdapterError."""
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise _not_a_url(self.url) from None
        local = is_local(url.host)
        proxies = getproxies()
        if not local and (url.scheme in proxies or "all" in proxies) and not proxy_bypass(url.host):
            self._detour = f" It was asked through the environment's proxy; NO_PROXY={url.host} goes around that."
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            timeout = httpx.Timeout(self._timeout_s, connect=10.0)
            return http(base_url=url, headers=headers, timeout=timeout, trust_env=not local)
        except ImportError:
            raise AdapterError(
                f"The environment names a SOCKS proxy, which needs a package: pip install 'httpx[socks]'. "
                f"NO_PROXY={url.host} goes around it."
            ) from None
        except (ValueError, httpx.InvalidURL) as error:
            raise AdapterError(f"A proxy that the environment names cannot be used: {error}.") from None

    def get(self, path: str) -> Steps[dict[str, Any]]:
        """The JSON object at `path`."""
        return (yield from self._patiently(lambda: self._got(path)))

    def model(self) -> Steps[dict[str, Any]]:
        """The `model` of GET /info. Waits for one that is starting; raises AdapterError for another than before."""

        def ask() -> Steps[dict[str, Any]]:
            info = yield from self._got("/info")
            if not isinstance(info.get("adapter"), dict) or "model" not in info:
                raise AdapterError(f"{self.url} is not an adapter of this project: /info tells of none.")
            if info["model"] is None:
                raise NotNow(f"{self.url} has no model yet: it is starting, or restarting. Try again in a moment.")
            return info

        info = yield from self._patiently(ask)
        model: dict[str, Any] = info["model"]
        self._check_model(model.get("id"))
        self.most_items = info["adapter"]["limits"]["max_items"]
        self.most_bytes = model["limits"]["max_image_bytes"]
        self._unknown = False
        return model

    def met(self) -> Steps[None]:
        """Before the first vectors: whose they are, and how many may be asked for at once."""
        if self._unknown:
            yield from self.model()

    def one(self, item: Item, options: Mapping[str, Any]) -> Steps[NDArray[np.float32]]:
        """float32 (D,). Raises AdapterError; ItemError when the item cannot be read."""
        yield from self.met()
        vectors, _, _ = yield from self._embed([item], options, as_list=False)
        return vectors

    def batch(
        self, items: Sequence[Item], options: Mapping[str, Mapping[str, Any]], as_list: bool = True
    ) -> Steps[list[Embedded | ItemError]]:
        """What became of each item: all are of one kind, for which `options` holds the options.

        A bad item fails alone; AdapterError is raised for what is no item's fault. `as_list` false: a server of the
        benchmark's schema need not take lists, so one item goes as a string.
        """
        results: dict[int, Embedded | ItemError] = {}
        left = list(range(len(items)))
        while left:
            answers: list[Embedded | ItemError] = []
            try:
                answers += yield from self._list([items[i] for i in left], options[items[0].kind], as_list)
            except AdapterError as error:
                alone = len(left) == 1
                if isinstance(error, ItemError) and (alone or error.index is not None):
                    results[left.pop(error.index or 0)] = error  # the others are asked for together once more
                    continue
                if alone or not (isinstance(error, ItemError) or error.status == TOO_LARGE):
                    raise
                for i in left:
                    answers += yield from self.batch([items[i]], options, as_list)
            results |= zip(left, answers, strict=True)
            left = []
        return [results[i] for i in range(len(items))]

    def _list(self, items: Sequence[Item], options: Mapping[str, Any], as_list: bool) -> Steps[list[Embedded]]:
        try:
            vectors, recipe, tokens = yield from self._embed(items, options, as_list)  # (N, D) | (D,)
        except ItemError:
            raise
        except AdapterError as error:
            raise blamed(error, items) from None
        rows = zip(items, np.atleast_2d(vectors), tokens, strict=True)
        return [Embedded(item, vector, recipe, cost) for item, vector, cost in rows]

    def _embed(
        self, items: Sequence[Item], options: Mapping[str, Any], as_list: bool
    ) -> Steps[tuple[NDArray[np.float32], str | None, list[int | None]]]:
        """Vectors, float32 (N, D) or (D,), the id of their recipe, and the tokens of each."""
        ours = self._endpoints
        path = ours.text_path if items[0].kind == "text" else ours.image_path
        body = yield Call(lambda: self._body(items, options, as_list))
        response = yield from self._patiently(lambda: self._once(Request("POST", path, body)))
        self._check_model(response.headers.get("x-model"))
        try:
            vectors = np.asarray(self._json(response)[ours.output_field], dtype=np.float32)
        except (KeyError, TypeError, ValueError):
            raise AdapterError(
                f"{self.url}{path} answered without a list of numbers in `{ours.output_field}`."
            ) from None
        if vectors.shape[:-1] != ((len(items),) if as_list else ()) or vectors.ndim == 0:
            raise AdapterError(f"{self.url}{path} answered with the shape {vectors.shape}, not what was asked.")
        recipe = response.headers.get("x-recipe")
        key = orjson.dumps(options, option=orjson.OPT_SORT_KEYS)
        if self._recipes.setdefault((path, key), recipe) != recipe:
            raise AdapterError(f"{self.url} serves another recipe than before: start again, with one recipe for all.")
        tokens: list[int | None] = [
            int(each) for each in response.headers.get("x-item-tokens", "").split(",") if each.isdigit()
        ]
        return vectors, recipe, tokens if len(tokens) == len(items) else [None] * len(items)

    def _body(self, items: Sequence[Item], options: Mapping[str, Any], as_list: bool) -> bytes:
        read = [_read(item, position, self.most_bytes) for position, item in enumerate(items)]
        content = [each if isinstance(each, str) else data_url(each) for each in read]
        if (field := self._endpoints.input_field) in options:
            raise AdapterError(f'"{field}" is what is embedded, and no option: leave it out.')
        return orjson.dumps({field: content if as_list else content[0], **options})

    def _check_model(self, id: str | None) -> None:
        """Behind one address another may answer at any time: a Triton that was restarted, or one of several servers.

        Raises AdapterError.
        """
        self._model_id = self._model_id or id
        if id is None and self._model_id:
            raise AdapterError(f"{self.url} does not say which model made a vector: a gateway takes x-model away.")
        if id != self._model_id:
            raise AdapterError(f"{self.url} serves another model than before: start again, with one model for all.")

    def _patiently(self, ask: Callable[[], Steps[Answer]]) -> Steps[Answer]:
        """`ask`, again and again while it raises NotNow, for `retry_for_s` seconds after the first time."""
        give_up = 0.0
        for attempt in count():
            try:
                answer = yield from ask()
            except NotNow as error:
                now = monotonic()
                give_up = give_up or now + self._retry_for_s
                # longer each time, because callers before us need longer too
                wait = min(FIRST_WAIT_S * 2.0 ** min(attempt, 9), LONGEST_WAIT_S, give_up - now)
                if wait <= 0 or now + error.after > give_up:
                    raise
                self._tell(error, attempt)
                closed = yield Wait(max(wait, error.after))
                if closed:
                    raise
            else:
                self._told = False
                return answer
        raise AssertionError("count() has no end")

    def _tell(self, error: NotNow, attempt: int) -> None:
        """A short wait is not worth a word."""
        if error.status == TOO_BUSY:
            return
        if attempt and not self._told:
            self._told = True
            self._notify(f"{error} Asking again for up to {self._retry_for_s:.0f} s.")

    def _once(self, request: Request) -> Steps[httpx.Response]:
        """One request. The one seam for httpx's exceptions."""
        response: httpx.Response
        try:
            response = yield request
        except httpx.UnsupportedProtocol:
            raise _not_a_url(self.url) from None
        except httpx.ReadTimeout:
            raise AdapterError(f"{self.url} did not answer in {self._timeout_s:.0f} seconds.") from None
        except httpx.HTTPError as error:
            if self._answered:
                raise NotNow(f"The connection to {self.url} broke ({error or type(error).__name__}).") from None
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise AdapterError(
                    f"Nothing answers at {self.url}. Start a server there, or name a running one by its URL or in the "
                    f"environment variable {URL}.{self._detour}"
                ) from None
            reason = error or type(error).__name__
            raise AdapterError(f"The connection to {self.url} broke: {reason}.{self._detour}") from None
        if response.is_error:
            raise self._error_in(response)
        self._answered = True
        return response

    def _got(self, path: str) -> Steps[dict[str, Any]]:
        return self._json((yield from self._once(Request("GET", path))))

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
            if self._key_is_given:
                return AdapterError(f"{response.url} refuses the key that it was given.", status)
            refused = "refuses the key in" if self._key else "wants a key: put it into"
            return AdapterError(f"{response.url} {refused} the environment variable {API_KEY}.", status)
        try:
            error = orjson.loads(response.content)["error"]
            message, param = str(error["message"]), str(error.get("param") or "")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            told = f"answered {status} {response.reason_phrase} and no message"
            message, param = f"{response.url} {told}: is it the adapter?{self._detour}", ""
        if status == TOO_BUSY or (status in RESTARTING and self._answered):
            return NotNow(message, status, retry_after(response))
        return AdapterError(message, status, param)


def blamed(error: AdapterError, items: Sequence[Item]) -> AdapterError:
    """The same error with the name of the item at fault (ItemError), or with what to try."""
    if str(error).startswith(OPTIONS):
        return AdapterError(str(error), error.status)
    if error.status in ITEM_STATUSES and error.index is not None and error.index < len(items):
        return ItemError(f"{items[error.index].origin}: {error}", error.status, error.param)
    if error.status == TIMEOUT and len(items) > 1:
        return AdapterError(f"{error} Try a batch size below {len(items)}.", error.status)
    alone = len(items) == 1 and (error.status == TOO_LARGE or (error.status == 400 and error.param in ("", "input")))
    return ItemError(f"{items[0].origin}: {error}", error.status, error.param) if alone else error


def _read(item: Item, position: int, most: int) -> str | bytes:
    """Raises ItemError; its `index` is the position."""
    try:
        return item.read(most)
    except ItemError as error:
        error.param = f"input[{position}]"
        raise


def is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _not_a_url(url: str) -> AdapterError:
    return AdapterError(f"{url} is not the URL of a server. Write it like http://localhost:8001.")


def data_url(image: bytes) -> str:
    """As the benchmark sends images: another server of its schema may want the prefix."""
    kind = next((kind for start, kind in IMAGE_STARTS.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def retry_after(response: httpx.Response) -> float:
    """Seconds: the header is a number of these, or a date (RFC 9110, 10.2.3); 0 for none and for anything else."""
    told = response.headers.get("Retry-After", "")
    if told.isdigit():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # the former for a date without a zone
        return 0.0
