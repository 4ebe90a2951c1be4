"""OpenAI's SDK at a server that is busy: how often it asks, what it is told, and how long it waits before the next try.

`python busy.py URL`; run by `tests/test_clients.py`. Says that it is ready, waits for a line, and prints a
JSON list of [seconds, status, Retry-After].
"""

import json
import sys
import time

import httpx
from openai import OpenAI

[url] = sys.argv[1:]
told: list[tuple[float, int, str | None]] = []


def note(response: httpx.Response) -> None:
    told.append((time.monotonic(), response.status_code, response.headers.get("retry-after")))


http = httpx.Client(event_hooks={"response": [note]})
with OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=99, http_client=http) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    client.embeddings.create(model="x", input="unheard by anybody")
print(json.dumps(told))
