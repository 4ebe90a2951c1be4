"""Read an adapter's promises from its /openapi.json the way the colour benchmark reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT_PATH = "/txt/embed"
IMAGE_PATH = "/img/embed"
INPUT_FIELD = "input"
OUTPUT_FIELD = "embedding"
UNDECLARED_MAX_ITEMS = 1024  # what the benchmark sends at once to a server that declares no `maxItems`


class ContractError(Exception):
    """The document does not declare what a client of this project needs; the message says what is missing."""


@dataclass(frozen=True)
class Endpoints:
    """What another server of the local-provider schema may call differently; as ours does, unless it is said."""

    text_path: str = TEXT_PATH
    image_path: str = IMAGE_PATH
    input_field: str = INPUT_FIELD
    output_field: str = OUTPUT_FIELD


@dataclass(frozen=True)
class Contract:
    """The largest list that one request may carry, for each of the two endpoints."""

    text_items: int
    image_items: int

    @property
    def max_items(self) -> int:
        """One limit for both, because the benchmark reads the text endpoint's and uses it for images too."""
        return min(self.text_items, self.image_items)


def read_contract(document: Mapping[str, Any]) -> Contract:
    """Raises ContractError when a path, its POST method, its list form or its `maxItems` is not declared."""
    return Contract(_max_items(document, TEXT_PATH), _max_items(document, IMAGE_PATH))


def list_limit(document: Mapping[str, Any], endpoints: Endpoints) -> int:
    """The largest list that the benchmark would send to any server of its schema; 1 where lists are not declared.

    Raises ContractError when one of the two paths does not take a POST with a JSON body.
    """
    _lists(document, endpoints.image_path, endpoints.input_field)
    lists = _lists(document, endpoints.text_path, endpoints.input_field)
    return lists[0].get("maxItems", UNDECLARED_MAX_ITEMS) if lists else 1


def _max_items(document: Mapping[str, Any], path: str) -> int:
    field = f"the field `{INPUT_FIELD}` of POST {path}"
    lists = _lists(document, path, INPUT_FIELD)
    if not lists:
        raise ContractError(f"/openapi.json does not say that {field} may be a list.")
    if not isinstance(lists[0].get("maxItems"), int):
        raise ContractError(f"/openapi.json declares no `maxItems` for {field}: the benchmark would send 1024 at once.")
    return int(lists[0]["maxItems"])


def _lists(document: Mapping[str, Any], path: str, input_field: str) -> list[Mapping[str, Any]]:
    """The list forms that the schema allows for the field."""
    try:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    except (KeyError, TypeError):
        raise ContractError(f"/openapi.json does not declare POST {path} with a JSON body.") from None
    schema = _resolve(document, _resolve(document, body).get("properties", {}).get(input_field, {}))
    choices = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
    return [found for choice in choices if (found := _resolve(document, choice)).get("type") == "array"]


def _resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a local reference (`#/components/schemas/…`); the benchmark follows no other kind."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target: Any = document
    for key in reference.removeprefix("#/").split("/"):
        target = target.get(key) if isinstance(target, Mapping) else None
    if not isinstance(target, Mapping):
        raise ContractError(f"/openapi.json refers to {reference}, which is not in it.")
    return target
