"""Other people's clients, as they come from the package index, against the real server: each gets our own vectors.

Each environment of `requirements/clients-*.txt` runs its program of `tests/clients/` once (`make test-clients`).
"""

import base64
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3_vl_embed.evaluation.colours import png, swatch, xkcd
from tests.conftest import CHECKPOINT, running
from tests.reference import cosine, random_checkpoint
from tests.waits import SLOWER, until

pytestmark = pytest.mark.clients

ENVIRONMENTS = Path(".cache/clients")
PROGRAMS = Path("tests/clients")
TEXTS = ["red", "dark teal", "naïve 🎨"]
ALIAS, KEY = "embed-v4.0", "k-1"
ROWS = [
    *[
        ("sdks", name)
        for name in ("openai", "openai-async", "openai-messages", "langchain", "langchain-images", "cohere")
    ],
    *[("sdks", f"litellm-{name}") for name in ("openai", "hosted_vllm", "jina_ai", "cohere")],
    *[("sdks", f"haystack-{name}") for name in ("openai", "cohere", "jina")],
    ("llama-index", "llama-index openai-like"),
    ("llama-index", "llama-index images"),
    ("llama-index", "llama-index cohere"),
    ("mteb", "mteb"),
]
PROGRAM = {"sdks": "sdks.py", "llama-index": "llama_index_.py", "mteb": "mteb_.py"}
# Clients whose own interface has no images.
TEXTS_ONLY = {"langchain", "litellm-openai", "litellm-hosted_vllm", "haystack-openai", "llama-index openai-like"}


@pytest.fixture(scope="module")
def keyed():
    """A server with a key and an alias."""
    with running(ADAPTER_MODEL_ALIASES=ALIAS, ADAPTER_API_KEY=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def http(keyed):
    with httpx.Client(base_url=keyed.adapter_url, timeout=60, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty colours, a PNG each, named by it; the names have no slash."""
    folder, palette = tmp_path_factory.mktemp("colours"), xkcd()
    for name, rgb in list(zip(palette.names, palette.rgb, strict=True))[::15]:
        (folder / f"{name.replace('/', ' ')}.png").write_bytes(png(swatch(rgb)))
    return folder


@pytest.fixture(scope="module")
def got(keyed, folder):
    """What the clients of an environment gave, which run once."""
    offline = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    tiktoken = next((ENVIRONMENTS / "llama-index").glob("lib/*/site-packages/llama_index/core/_static/tiktoken_cache"))
    examples = {"PYTHONPATH": str(Path("examples").absolute()), "TIKTOKEN_CACHE_DIR": str(tiktoken.absolute())}
    environment = os.environ | offline | examples
    given = {
        "url": keyed.adapter_url,
        "key": KEY,
        "model": CHECKPOINT.name,
        "alias": ALIAS,
        "texts": TEXTS,
        "images": [str(file) for file in sorted(folder.glob("*.png"))[:2]],
        "folder": str(folder),
    }

    @cache
    def run(name: str) -> dict[str, Any]:
        command = [ENVIRONMENTS / name / "bin" / "python", PROGRAMS / PROGRAM[name]]
        done = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, timeout=600, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def ours(http, folder):
    images = [base64.b64encode(file.read_bytes()).decode() for file in sorted(folder.glob("*.png"))[:2]]
    return {
        "texts": http.post("/txt/embed", json={"input": TEXTS}).json()["embedding"],
        "images": http.post("/img/embed", json={"input": images}).json()["embedding"],
    }


def same(found: list, expected: list) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(cosine(np.array(one), np.array(other)) >= 0.999999 for one, other in pairs)


@pytest.mark.parametrize(("environment", "name"), ROWS, ids=[name for _, name in ROWS])
def test_each_client_gets_our_own_vectors(got, ours, environment, name):
    given = got(environment)[name]
    assert "failed" not in given, given["failed"]
    assert ("images" in given) == (name not in TEXTS_ONLY)
    for what, vectors in given.items():
        if what != "refused":
            assert same(vectors, ours["images" if what in ("images", "parts") else "texts"]), what


def test_langchains_token_ids_are_refused_by_the_name_of_what_mends_it(got):
    assert "check_embedding_ctx_length=False" in got("sdks")["langchain"]["refused"]


def test_openais_sdk_comes_back_when_a_busy_server_says(tmp_path):
    """As many texts as it holds are there, of half a second each: each 429 names a time, and the SDK waits for it."""
    slow, texts = random_checkpoint(tmp_path, num_hidden_layers=10), [f"text {number}" for number in range(2 * SLOWER)]
    told = {
        "EMBED_PROMPT": "{content}\n" + "red " * 1900,
        "ADAPTER_ANY_MODEL_NAME": "true",
        "ADAPTER_MAX_ITEMS": str(len(texts)),
        "ADAPTER_MAX_PENDING_ITEMS": str(len(texts)),
    }
    with (
        running(None, str(slow), None, **told) as started,
        httpx.Client(base_url=started.adapter_url, timeout=300) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        command = [ENVIRONMENTS / "sdks" / "bin" / "python", PROGRAMS / "busy.py", started.adapter_url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sdk:
            assert sdk.stdout.readline() == "ready\n"
            before = pool.submit(http.post, "/txt/embed", json={"input": texts})
            until(lambda: f"\nadapter_items_in_flight {len(texts)}.0\n" in http.get("/metrics").text)
            answers, _ = sdk.communicate("go\n", timeout=300)
        assert before.result().status_code == 200
    assert sdk.returncode == 0
    *refused, last = json.loads(answers)
    assert last[1] == 200
    assert [status for _, status, _ in refused] == [429] * len(refused) != []
    for (earlier, _, after), (later, _, _) in pairwise([*refused, last]):
        assert later - earlier >= int(after) >= 1


@pytest.mark.parametrize("task", ["XKCDColoursT2I", "XKCDColoursI2T"])
def test_mteb_evaluates_the_colours_as_we_do(got, http, folder, task):
    scores = got("mteb")["mteb.evaluate"]
    assert "failed" not in scores, scores["failed"]
    files = sorted(folder.glob("*.png"))
    images = [base64.b64encode(file.read_bytes()).decode() for file in files]
    names, swatches = (
        np.array(http.post(path, json={"input": value}).json()["embedding"])
        for path, value in (("/txt/embed", [file.stem for file in files]), ("/img/embed", images))
    )
    cosines = names @ swatches.T if task.endswith("T2I") else swatches @ names.T
    first = cosines.argmax(axis=1) == np.arange(len(files))
    assert scores[task]["recall_at_1"] == pytest.approx(first.mean(), abs=1e-4)
    assert scores[task]["ndcg_at_10"] >= scores[task]["recall_at_1"] > 0.5


@pytest.mark.parametrize("kind", ["embeddings", "chat_embeddings", "nim_embeddings"])
def test_aiperf_gets_our_own_vectors(keyed, http, tmp_path, kind):
    flags = {
        "model": CHECKPOINT.name,
        "url": keyed.adapter_url,
        "api-key": KEY,
        "endpoint-type": kind,
        "tokenizer": CHECKPOINT.absolute(),
        "request-count": 6,
        "concurrency": 2,
        "isl": 6,
        "artifact-dir": tmp_path,
        "export-level": "raw",
        "ui": "none",
    }
    if kind != "embeddings":
        flags |= {"image-batch-size": 1, "image-width-mean": 32, "image-height-mean": 32, "image-format": "png"}
    told = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [ENVIRONMENTS / "aiperf" / "bin" / "aiperf", "profile", *told],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    assert (summary["request_count"]["avg"], summary["error_summary"]) == (6, [])
    sent = {
        each["session_id"]: each["payloads"][0] for each in json.loads((tmp_path / "inputs.json").read_text())["data"]
    }
    for line in (tmp_path / "profile_export_raw.jsonl").read_text().splitlines():
        record = json.loads(line)
        answer = json.loads(record["responses"][0]["text"])
        assert same([answer["data"][0]["embedding"]], [own(http, sent[record["metadata"]["conversation_id"]])])


def own(http, payload: dict) -> list[float]:
    """The vector of what AIPerf asks for, by our own endpoints."""
    if "messages" in payload:
        (turn,) = payload["messages"]
        text, image = turn["content"][0]["text"], turn["content"][1]["image_url"]["url"]
    else:
        text, _, image = payload["input"][0].partition(" data:")
        image = image and f"data:{image}"
    path, body = (
        ("/img/embed", {"input": image, "text": text, "image_at": -1}) if image else ("/txt/embed", {"input": text})
    )
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["embedding"]
