"""The logs of a run: one line a request in either format, and nothing of what was sent, at any level."""

import base64
import json
import logging
import subprocess
import sys

import httpx
import pytest

from client.telemetry.logs import JsonLine
from tests.in_process import png
from tests.test_adapter_workers import Running, start  # noqa: F401 (a fixture)
from tests.waits import LIMIT_SECONDS, SLOWER

MARK = "xyzzymarker"
IMAGE = base64.b64encode(png(11, 22, 33)).decode()


def ask(url: str) -> None:
    """Whatever can go right or wrong with a marked text, image, key, query, header or option."""
    with httpx.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {MARK}"}) as http:
        assert http.post("/txt/embed", json={"input": [MARK, f"a {MARK}"]}).status_code == 200
        assert http.post(f"/txt/embed?key={MARK}", json={"input": MARK}, headers={"x-secret": MARK}).status_code == 200
        assert http.post("/img/embed", json={"input": IMAGE, "text": MARK}).status_code == 200
        assert http.post("/debug/render", json={"text": MARK}).status_code == 200
        for body in (
            {"input": [MARK, 7]},
            {"input": MARK, MARK: MARK},
            {"input": MARK, "prompt": f"{MARK} without a slot"},
            {"input": MARK, "pooling": MARK},
            {"input": MARK, "dimensions": 10**6},
            {"content": base64.b64encode(MARK.encode()).decode()},
        ):
            path = "/img/embed" if "content" in body else "/txt/embed"
            assert http.post(path, json=body).status_code == 400
        assert http.post("/txt/embed", content=f'{{"input": {MARK}', headers=JSON).status_code == 400
        assert http.post("/txt/embed", json={"input": MARK}, headers={"x-timeout": MARK}).status_code == 400
        assert http.post("/txt/embed", json={"input": MARK}, headers={"x-request-id": f"{MARK} {MARK}"}).is_success


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_that_was_sent_is_in_the_log_at_debug_level(start, stack, format):  # noqa: F811
    settings = {"LOG_LEVEL": "debug", "LOG_FORMAT": format, "WORKERS": "1", "API_KEY": MARK}
    running: Running = start(stack.triton_grpc, **{f"ADAPTER_{name}": value for name, value in settings.items()})
    ask(running.url)
    running.popen.terminate()
    running.popen.wait(LIMIT_SECONDS)
    log = running.end()
    assert log.count(" 200 ") >= 6
    assert log.count(" 400 ") == 8
    assert MARK not in log
    assert IMAGE[:40] not in log
    assert base64.b64encode(MARK.encode()).decode()[:12] not in log


def test_a_json_line_holds_the_request(start):  # noqa: F811
    running: Running = start(ADAPTER_LOG_FORMAT="json", ADAPTER_WORKERS="1", ADAPTER_LOG_LEVEL="info")
    httpx.get(f"{running.url}/health?x=1", headers={"x-request-id": "abc-1"})
    running.popen.terminate()
    running.popen.wait(LIMIT_SECONDS)
    lines = [json.loads(line) for line in running.end().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "abc-1"]
    assert line.keys() == {"time", "level", "logger", "message", "method", "path", "status", "ms", "request_id"}
    assert (line["method"], line["path"], line["status"], line["level"]) == ("GET", "/health", 503, "info")
    assert 0 <= line["ms"] < 5000 * SLOWER
    assert "abc-1" in line["message"]


def test_a_json_line_is_one_line_whatever_is_in_it():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, 'said "%s"', ("x\ny",), sys.exc_info())
    line = JsonLine().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == 'said "x\ny"'
    assert "ValueError" in json.loads(line)["exception"]


def test_a_misspelt_format_is_refused_by_name():
    done = subprocess.run(
        [sys.executable, "-m", "client"],
        env={"ADAPTER_LOG_FORMAT": "xml"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ADAPTER_LOG_FORMAT: ")
