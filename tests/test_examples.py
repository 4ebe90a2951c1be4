"""The examples that the README shows run as they stand, and agree with one another."""

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

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


def test_curl(stack):
    word, image = run("sh", str(EXAMPLES / "curl.sh"), stack.adapter_url).splitlines()
    assert len(orjson.loads(word)["embedding"]) == len(orjson.loads(image)["embedding"])
