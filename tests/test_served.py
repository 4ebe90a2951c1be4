"""Paths and requests that name a model get its vectors or none, whatever checkpoint stands behind the adapter."""

import asyncio
import base64
from pathlib import Path

import numpy as np
import pytest
import yaml

from client.app import contract
from client.http.served import Served
from client.settings import Settings, SettingsError
from tests.benchmark_client import LocalProvider
from tests.conftest import CHECKPOINT
from tests.in_process import adapter, line_to, png64, refused
from tests.waits import eventually

TINY, OTHER = "qwen3-vl-color-tiny", "another-one"
MODELS = yaml.safe_load(Path("models.yaml").read_text())["models"]


def test_the_benchmark_refuses_the_entry_of_another_checkpoint(stack):
    with pytest.raises(KeyError, match="/qwen3-vl-4b-instruct/txt/embed"):
        LocalProvider(MODELS["qwen3-vl-4b"], stack.adapter_url)
    with LocalProvider(MODELS["qwen3-vl-color-tiny-dev"], stack.adapter_url) as provider:
        assert provider.texts(["red"], 1).shape == (1, 128)
        assert provider.images([base64.b64decode(png64(1, 2, 3))] * 2, 64).shape == (2, 128)


async def test_a_path_by_name_is_the_path_without(stack):
    async with adapter(stack.triton_grpc) as http:
        for path, value in (("/txt/embed", ["red", "blue"]), ("/img/embed", png64(3, 2, 1))):
            named, plain = [await http.post(start + path, json={"input": value}) for start in (f"/{TINY}", "")]
            assert np.allclose(named.json()["embedding"], plain.json()["embedding"], atol=1e-6)
            error = refused(await http.post(f"/qwen3-vl-4b-instruct{path}", json={"input": value}), 404)
            assert TINY in error["message"]
            assert error["code"] == "model_not_found"
        assert (await http.get(f"/{TINY}/txt/embed")).status_code == 405
        for path in (f"/{TINY.upper()}/txt/embed", f"/x/{TINY}/txt/embed", "//txt/embed", f"/{TINY}/health"):
            refused(await http.post(path, json={"input": "red"}), 404)
        assert refused(await http.post("//txt/embed", json={"input": "red"}), 404)["code"] == "not_found"  # no name
        assert (await http.get("/info")).json()["served_model_name"] == TINY


@pytest.mark.parametrize("path", ["/txt/embed", f"/{TINY}/txt/embed"])
async def test_the_model_that_a_body_names_must_be_this_one(stack, path):
    async with adapter(stack.triton_grpc) as http:
        for own in (TINY, TINY.upper(), str(CHECKPOINT), None):
            assert (await http.post(path, json={"input": "red", "model": own})).status_code == 200
        error = refused(await http.post(path, json={"input": "red", "model": "qwen3-vl-4b"}), 404)
        assert error["param"] == "model"
        assert TINY in error["message"]


async def test_names_go_with_the_checkpoint_behind_a_running_adapter(stack, other_stack):
    """Another Triton comes back on the same address: its name replaces the old one, in the contract too."""
    async with line_to(stack.triton_grpc) as line, adapter(line.url) as http:

        async def named_paths() -> set[str]:
            paths = (await http.get("/openapi.json")).json()["paths"]
            return {path for path in paths if path.removeprefix("/").partition("/")[0] in (TINY, OTHER)}

        def all_by(name: str) -> set[str]:
            return {
                f"/{name}{path}" for path in ("/txt/embed", "/img/embed", "/v1/embeddings", "/v2/embed", "/vectorize")
            }

        body = {"input": "red"}
        assert (await http.post(f"/{TINY}/txt/embed", json=body)).status_code == 200
        assert await named_paths() == all_by(TINY)
        await line.cut()
        await eventually(lambda: http.app.state.readiness.model is None)
        assert await named_paths() == set()
        waiting = asyncio.create_task(http.post(f"/{TINY}/txt/embed", json={"input": "asked before it changed"}))
        await asyncio.sleep(0.2)
        line._target = other_stack.triton_grpc.rsplit(":", 1)
        await line.connect()
        assert OTHER in refused(await waiting, 404)["message"]  # its vector was made, by the wrong one
        assert await named_paths() == all_by(OTHER)
        assert (await http.post(f"/{OTHER}/txt/embed", json=body)).status_code == 200
        refused(await http.post(f"/{TINY}/txt/embed", json=body), 404)
        assert (await http.post("/txt/embed", json=body)).status_code == 200


async def test_a_name_that_was_set_is_the_name(stack):
    async with adapter(stack.triton_grpc, served_model_name="colours") as http:
        assert "/colours/txt/embed" in (await http.get("/openapi.json")).json()["paths"]
        assert (await http.post("/colours/txt/embed", json={"input": "red", "model": TINY})).status_code == 200
        refused(await http.post(f"/{TINY}/txt/embed", json={"input": "red"}), 404)


async def test_without_a_model_a_path_by_name_waits_like_the_others():
    async with adapter() as http:
        refused(await http.post(f"/{TINY}/txt/embed", json={"input": "red"}), 503)


async def test_a_path_by_name_wants_the_key(stack):
    async with adapter(stack.triton_grpc, api_key="s3cret-Key") as http:
        refused(await http.post(f"/{TINY}/txt/embed", json={"input": "red"}), 401)
        bearer = {"authorization": "Bearer s3cret-Key"}
        body = {"input": "red", "model": TINY}  # as `openai_compatible` asks
        assert (await http.post(f"/{TINY}/txt/embed", json=body, headers=bearer)).status_code == 200
        document = (await http.get("/openapi.json")).json()
        assert document["paths"][f"/{TINY}/txt/embed"]["post"]["security"] == [{"key": []}]


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "qwen3-vl-4b-instruct"),
        ("checkpoints/qwen3-vl-color-tiny/", "qwen3-vl-color-tiny"),
        ("/models/My colours (2)", "my-colours-2"),
        (".", None),
        ("..", None),
    ],
)
def test_names_of_checkpoints(checkpoint, name):
    assert Served(None).name({"checkpoint": checkpoint}) == name
    assert Served("set").name({"checkpoint": checkpoint}) == "set"
    assert Served("set").name(None) is Served(None).name(None) is None


def test_every_operation_has_an_id_of_its_own():
    operations = [each for path in contract(Settings(), "a-name")["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)


@pytest.mark.parametrize("name", ["a/b", "A", "..", "a b", "ä"])
def test_a_name_that_is_no_part_of_a_path_is_refused(monkeypatch, name):
    monkeypatch.setenv("ADAPTER_SERVED_MODEL_NAME", name)
    with pytest.raises(SettingsError, match="SERVED_MODEL_NAME"):
        Settings.from_environment()
