"""The colour benchmark's local provider, as its contract describes it: what a caller of ours knows, and nothing more.

It discovers paths and batch size from /openapi.json, sends one request at a time, and sends a last batch of one as a
plain string. Written from the contract, independent of our own command line.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import numpy as np


@dataclass
class LocalProvider:
    """One entry of models.yaml against a running server."""

    entry: dict[str, Any]
    base_url: str
    options: dict[str, Any] = field(default_factory=dict)  # not in the contract: for tests that must pass by the cache

    def __post_init__(self) -> None:
        self.schema = httpx.get(f"{self.base_url}/openapi.json").raise_for_status().json()
        for endpoint in (self.entry["text_endpoint"], self.entry["image_endpoint"]):
            assert endpoint["method"].lower() in self.schema["paths"][endpoint["path"]], endpoint
        self.max_batch = self._max_batch()
        self.http = httpx.Client(base_url=self.base_url, timeout=300)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.http.close()

    def texts(self, texts: list[str], batch: int) -> np.ndarray:
        return self._embed(self.entry["text_endpoint"], texts, batch)

    def images(self, images: list[bytes], batch: int) -> np.ndarray:
        urls = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
        return self._embed(self.entry["image_endpoint"], urls, batch)

    def _embed(self, endpoint: dict[str, str], items: list[str], batch: int) -> np.ndarray:
        return np.concatenate([self._post(endpoint, chunk) for chunk in chunks(items, min(batch, self.max_batch))])

    def _post(self, endpoint: dict[str, str], chunk: list[str]) -> np.ndarray:
        body = {endpoint["input_field"]: chunk if len(chunk) > 1 else chunk[0]} | self.options
        answer = self.http.request(endpoint["method"], endpoint["path"], json=body)
        assert answer.status_code == 200, answer.text
        rows = np.array(answer.json()[endpoint["output_field"]], dtype=np.float32)
        return rows if len(chunk) > 1 else rows[None]

    def _max_batch(self) -> int:
        """From the text endpoint's request schema alone: an array among `anyOf`/`oneOf`; without maxItems, 1024."""
        endpoint = self.entry["text_endpoint"]
        operation = self.schema["paths"][endpoint["path"]][endpoint["method"].lower()]
        body = self._resolved(operation["requestBody"]["content"]["application/json"]["schema"])
        value = self._resolved(body["properties"][endpoint["input_field"]])
        for option in [value, *value.get("anyOf", []), *value.get("oneOf", [])]:
            option = self._resolved(option)
            if option.get("type") == "array":
                return option.get("maxItems", 1024)
        return 1

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            path = schema["$ref"]
            assert path.startswith("#/"), path
            schema = self.schema
            for part in path[2:].split("/"):
                schema = schema[part]
        return schema


def chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
