"""`models.yaml` is what the benchmark reads; it has to agree with what the adapter declares and Triton batches.

Knows the benchmark's rules for a local provider; runs no server.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from client.app import contract
from client.settings import Settings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "models.yaml").read_text()
MODELS = yaml.safe_load(TEXT)["models"]
KEYED = yaml.safe_load("\n".join(re.findall(r"^  # ((?:  )*(?:qwen3-vl-4b-keyed|[a-z_]+):.*)$", TEXT, re.M)))
SERVED = {"qwen3-vl-4b": "qwen3-vl-4b-instruct", "qwen3-vl-color-tiny-dev": "qwen3-vl-color-tiny"}
ALLOWED_BATCH_SIZES = {1, *(2**power for power in range(2, 11))}  # 1, 4, 8 … 1024

each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
each_endpoint = pytest.mark.parametrize("endpoint", ["text_endpoint", "image_endpoint"])


@cache
def document(served: str | None) -> dict:
    """Of the adapter while this checkpoint is served."""
    return contract(Settings(), served)


@pytest.fixture
def openapi(model):
    """Of the adapter while the entry's checkpoint is served."""
    return document(SERVED[next(name for name, entry in MODELS.items() if entry == model)])


def schema_of(operation):
    return operation["requestBody"]["content"]["application/json"]["schema"]["properties"]


def test_the_tiny_checkpoint_has_a_name_of_its_own():
    assert list(MODELS) == ["qwen3-vl-4b", "qwen3-vl-color-tiny-dev"]


def test_an_entry_is_refused_while_another_checkpoint_is_served():
    for name, entry in MODELS.items():
        paths = {entry[endpoint]["path"] for endpoint in ("text_endpoint", "image_endpoint")}
        served_by = [other for other, served in SERVED.items() if paths <= document(served)["paths"].keys()]
        assert served_by == [name]
        assert not paths & document(None)["paths"].keys()  # nor while nobody knows what is served
        assert {"/txt/embed", "/img/embed"} <= document(SERVED[name])["paths"].keys()


def test_the_entry_with_a_key_asks_for_the_same():
    (entry,) = KEYED.values()
    assert (entry.pop("provider_type"), entry.pop("api_key_env")) == ("openai_compatible", "QWEN3_VL_EMBED_API_KEY")
    for endpoint in ("text_endpoint", "image_endpoint"):
        assert entry[endpoint].pop("model") == SERVED["qwen3-vl-4b"]
    assert entry | {"provider_type": "local"} == MODELS["qwen3-vl-4b"]


@each_model
def test_only_the_keys_that_the_benchmark_reads(model):
    assert set(model) == {"provider_type", "base_url", "text_endpoint", "image_endpoint", "user_batch_size"}
    assert model["provider_type"] == "local"


@each_model
@each_endpoint
def test_the_adapter_declares_each_endpoint(model, endpoint, openapi):
    entry = model[endpoint]
    assert set(entry) == {"path", "method", "input_field", "output_field"}
    operation = openapi["paths"][entry["path"]][entry["method"].lower()]
    assert entry["input_field"] in schema_of(operation)


@each_model
@each_endpoint
def test_the_adapter_answers_in_the_output_field(model, endpoint, openapi):
    operation = openapi["paths"][model[endpoint]["path"]]["post"]
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    answer = openapi["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert list(answer["properties"]) == [model[endpoint]["output_field"]]


@each_model
@each_endpoint
def test_the_batch_is_allowed_declared_and_one_triton_batch(model, endpoint, openapi):
    entry, size = model[endpoint], model["user_batch_size"]
    choices = schema_of(openapi["paths"][entry["path"]]["post"])[entry["input_field"]]["anyOf"]
    declared = next(choice["maxItems"] for choice in choices if choice["type"] == "array")
    config = (ROOT / "model_repository" / "qwen3_vl_embed" / "config.pbtxt").read_text()
    assert size in ALLOWED_BATCH_SIZES
    assert size <= declared
    assert size == int(re.search(r"^max_batch_size: (\d+)", config, re.MULTILINE)[1])


@each_model
def test_base_url_is_where_the_adapter_listens(model):
    assert model["base_url"] == f"http://localhost:{Settings().port}"
