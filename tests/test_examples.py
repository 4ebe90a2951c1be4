"""The examples that the README shows run as they stand, and agree with one another."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import orjson
import pytest
import yaml

from qwen3_vl_embed.serving.settings import ServeSettings

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "address"),
    [("adapter.py", "adapter_url"), ("triton_http.py", "triton_http"), ("triton_grpc.py", "triton_grpc")],
)
def test_python(stack, script, address):
    printed = run(sys.executable, str(EXAMPLES / script), getattr(stack, address))
    assert printed.startswith("shapes (")
    assert float(re.search(r"cosine\(red, red\.png\) = (-?[\d.]+)", printed)[1]) > 0


def test_the_load_tools_input_is_embedded(stack):
    """perf_analyzer's file, row by row, as perf_analyzer sends it over HTTP; Model Analyzer reads the same."""
    model, settings = yaml.safe_load((EXAMPLES / "model_analyzer.yaml").read_text()), ServeSettings()
    (about,) = model["profile_models"].values()
    rows = orjson.loads(Path(about["perf_analyzer_flags"]["input-data"]).read_bytes())["data"]
    assert len(rows) == 3
    for row in rows:
        inputs = [{"name": name, "datatype": "BYTES", "shape": [1, 1], "data": data} for name, data in row.items()]
        answer = httpx.post(f"http://{stack.triton_http}/v2/models/qwen3_vl_embed/infer", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
    assert model["triton_http_endpoint"] == f"localhost:{settings.triton_http_port}"
    assert model["triton_grpc_endpoint"] == f"localhost:{settings.triton_grpc_port}"
    assert model["triton_metrics_url"] == f"http://localhost:{settings.triton_metrics_port}/metrics"


def test_curl(stack):
    word, image = run("sh", str(EXAMPLES / "curl.sh"), stack.adapter_url).splitlines()
    assert len(orjson.loads(word)["embedding"]) == len(orjson.loads(image)["embedding"])
