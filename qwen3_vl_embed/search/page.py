"""The search page, served to this machine: one HTML file, a script and a style sheet, and the questions that they ask.

Nothing is loaded from elsewhere, and the browser is told so. A picture is named by its row, never by a path, and shown
only where it lies below the folder that was embedded.
"""

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Semaphore
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from qwen3_vl_embed.errors import AdapterError
from qwen3_vl_embed.files.sources import FORMATS
from qwen3_vl_embed.search.queries import Query, Searcher, swatch

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MOST_BYTES = 64 * 2**20  # of a picture that is dropped
MOST_PIXELS = 100_000_000  # of one that is shown
THUMBNAIL = 320  # pixels, the longer side
HITS, MOST_HITS = 60, 600
DUPLICATES_FROM, WORK = 0.99, 2e12  # multiplications that are done while somebody waits
NAME = re.compile("[0-9a-f]{64}")


class Refused(Exception):
    """A status and a sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Page:
    """What the page asks: each method answers one path."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher, self.index = searcher, searcher.index
        self._pictures = self.index.folder / "queries"
        self._drawing = Semaphore(2)
        self.thumbnail = lru_cache(maxsize=2000)(self._thumbnail)

    def about(self) -> dict[str, Any]:
        """What is searched."""
        kinds = {kind: int((self.index.kinds == kind).sum()) for kind in ("text", "image")}
        told = {name: self.index.model.get(name) for name in ("checkpoint", "revision", "dtype")}
        return {
            "rows": len(self.index),
            "dimension": self.index.dimension,
            "kinds": kinds,
            "ann": self.index.ann,
            **told,
        }

    def search(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Hits for `text`, `picture`, `colour`, `like`, `without`, `words`, `centred`, `kind`, `count`."""
        started = time.perf_counter()
        picture, colour, like = asked.get("picture"), asked.get("colour"), asked.get("like")
        image = self.picture(picture) if picture else swatch(colour) if colour else None
        row = None if like in (None, "") else self._row(like)
        kind = asked.get("kind") if asked.get("kind") in ("text", "image") else None
        words = min(1.0, max(0.0, float(asked.get("words", 0.5))))
        text, without = str(asked.get("text") or ""), str(asked.get("without") or "")
        query = Query(text, image, row, without, words, bool(asked.get("centred")), kind)
        count = min(MOST_HITS, max(1, int(asked.get("count") or HITS)))
        found = self.searcher.search(query, count)
        hits = [
            self._shown(hit.row) | {"cosine": round(hit.cosine, 4), "percentile": percentile}
            for hit, percentile in zip(found.hits, found.percentiles, strict=True)
        ]
        told = None if row is None else self._shown(row)
        return {"hits": hits, "like": told, "ms": round(1e3 * (time.perf_counter() - started))}

    def duplicates(self, least: float) -> dict[str, Any]:
        """Groups of rows whose cosines are at least this."""
        if len(self.index) ** 2 * self.index.dimension > WORK:
            told = "There are too many rows to compare all pairs while you wait: qwen3-vl-embed search --duplicates."
            raise Refused(HTTPStatus.BAD_REQUEST, told)
        groups = self.index.duplicates(least, 200)
        return {"groups": [[self._shown(row) for row in rows[:60]] for rows in groups], "sizes": list(map(len, groups))}

    def export(self, rows: list[Any], form: str) -> bytes:
        """The rows as CSV or Parquet, with all columns that the index has, and in Parquet their vectors."""
        chosen = sorted(self._row(row) for row in rows)
        table = self.index.rows.take(chosen).drop_columns(["root"])
        if form == "csv":
            text = io.StringIO()
            csv.writer(text).writerows([table.column_names, *(list(row.values()) for row in table.to_pylist())])
            return text.getvalue().encode()
        vectors = pa.array(self.index.vectors[chosen].ravel())
        lists = pa.FixedSizeListArray.from_arrays(vectors, self.index.dimension)
        file = io.BytesIO()
        pq.write_table(table.append_column("embedding", lists), file)
        return file.getvalue()

    def keep(self, content: bytes) -> str:
        """A picture that somebody drops, for the links to it. Returns its name."""
        name = hashlib.sha256(content).hexdigest()
        self._pictures.mkdir(mode=0o700, exist_ok=True)
        (self._pictures / name).write_bytes(content)
        return name

    def picture(self, name: Any) -> bytes:
        """One that was dropped before."""
        if not isinstance(name, str) or not NAME.fullmatch(name) or not (self._pictures / name).is_file():
            raise Refused(HTTPStatus.NOT_FOUND, "That picture is not here any more: drop it again.")
        return (self._pictures / name).read_bytes()

    def _thumbnail(self, row: int) -> bytes:
        if (path := self.index.place(self._row(row))) is None:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no picture of this row below the folder that was embedded.")
        return self.drawn(path)

    def drawn(self, file: Path | io.BytesIO) -> bytes:
        """A WebP of at most THUMBNAIL pixels, with the colour profile of the file."""
        small = io.BytesIO()
        try:
            with self._drawing, Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError("too many pixels")
                image.draft("RGB", (THUMBNAIL, THUMBNAIL))
                profile = image.info.get("icc_profile")
                turned = ImageOps.exif_transpose(image)
                shown = turned.convert("RGBA" if "A" in turned.getbands() or "transparency" in turned.info else "RGB")
                shown.thumbnail((THUMBNAIL, THUMBNAIL))
                shown.save(small, "WEBP", quality=85, icc_profile=None if image.mode == "CMYK" else profile)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"The picture cannot be shown ({error}).") from None
        return small.getvalue()

    def _row(self, row: Any) -> int:
        if not re.fullmatch("[0-9]{1,12}", str(row)) or not int(row) < len(self.index):
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such row in the index.")
        return int(row)

    def _shown(self, row: int) -> dict[str, Any]:
        told = {name: self.index.rows[name][row].as_py() for name in ("id", "kind", "item")}
        return told | {"row": row, "picture": self.index.place(row) is not None}


class Handler(BaseHTTPRequestHandler):
    """HTTP for one `Page`. A browser of this machine is believed only when it means this page by its own name."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _get(self) -> tuple[bytes, str, dict[str, str]]:
        url = urlsplit(self.path)
        if url.path in FILES:
            name, kind = FILES[url.path]
            return (files(__package__) / "page" / name).read_bytes(), kind, {"Cache-Control": "no-cache"}
        start, _, name = url.path[1:].partition("/")
        page = self.server.page
        if start == "about":
            return _json(page.about())
        if start == "duplicates":
            asked = parse_qs(url.query).get("least", [str(DUPLICATES_FROM)])[0]
            return _json(page.duplicates(min(1.0, max(0.5, float(asked)))))
        if start == "thumbnail":
            return page.thumbnail(name), "image/webp", {"Cache-Control": "private, max-age=3600"}
        if start == "picture":
            return page.drawn(io.BytesIO(page.picture(name))), "image/webp", {}
        raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _post(self) -> tuple[bytes, str, dict[str, str]]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A picture may have {MOST_BYTES:,} bytes.")
        body, page = self.rfile.read(int(length)), self.server.page
        self.close_connection = False
        if self.path == "/picture":
            return _json({"picture": page.keep(body)})
        asked = json.loads(body)
        if self.path == "/search":
            return _json(page.search(asked))
        if self.path == "/export":
            form = "csv" if asked.get("form") == "csv" else "parquet"
            kind = "text/csv; charset=utf-8" if form == "csv" else "application/vnd.apache.parquet"
            return page.export(list(asked["rows"]), form), kind, {}
        raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _answer(self, how: Callable[[], tuple[bytes, str, dict[str, str]]]) -> None:
        status = HTTPStatus.OK
        again, self.close_connection = self.close_connection, self.command == "POST"  # until its body is read
        try:
            self._check()
            content, kind, more = how()
        except Refused as error:
            status, (content, kind, more) = error.status, _json({"error": str(error)})
        except AdapterError as error:
            ours = error.status is not None and error.status < 500
            status = HTTPStatus.BAD_REQUEST if ours else HTTPStatus.BAD_GATEWAY
            content, kind, more = _json({"error": str(error)})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            status, (content, kind, more) = HTTPStatus.BAD_REQUEST, _json({"error": str(error)})
        if self.close_connection:
            more = more | {"Connection": "close"}
        self.close_connection = self.close_connection or again
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _check(self) -> None:
        """Raises Refused: the page has this name alone (DNS rebinding), and no other page may ask in its name."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.hosts and host not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, "This page is for its own machine alone.")
        if origin is not None and origin != f"http://{host}":
            raise Refused(HTTPStatus.FORBIDDEN, "Another page asked.")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what somebody looks for is nobody's business."""


class Server(ThreadingHTTPServer):
    """Listens on `address`. On loopback it answers to its own names alone."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: Page) -> None:
        super().__init__(address, Handler)
        self.page = page
        port = self.server_address[1]
        local = address[0] in ("127.0.0.1", "localhost", "::1")
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")} if local else set()

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody who left is no error of ours."""


def _json(told: Any) -> tuple[bytes, str, dict[str, str]]:
    return json.dumps(told, default=str).encode(), "application/json", {}
