"""Run Triton, and end when it does not embed any more, so that the container's restart policy brings it back.

Triton does not restart a model process that died (before 26.04 it even calls itself ready), and no engine restarts a
container for being unhealthy. So this asks for a real embedding every few seconds. Knows Triton's HTTP endpoint in this
container and the model's three inputs; needs nothing but Python.

    watchdog.py check           exit status 0 when an embedding comes back: the container's health check
    watchdog.py COMMAND ...     run it, watch it, pass SIGTERM on, end with it
"""

import json
import signal
import subprocess
import sys
from http.client import HTTPConnection, HTTPException

PATH = "/v2/models/qwen3_vl_embed/infer"
PROBE = {
    "inputs": [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [value]}
        for name, value in (("text", "ready"), ("image", ""), ("options", ""))
    ],
    "outputs": [{"name": "tokens"}],  # the smallest one
}
FULL = b"Exceeds maximum queue size"  # too busy even for the probe, which is no reason to stop it

PROBE_SECONDS = 4
ANSWER_SECONDS = 60  # the probe waits its turn behind everybody's images; no answer for that long is a hang
STRIKES = 2  # a process that was frozen for a moment fails once


def embeds() -> bool | None:
    """Whether an embedding comes back, or would if there were fewer requests; None where nobody listens."""
    connection = HTTPConnection("127.0.0.1", 8000, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", PATH, json.dumps(PROBE), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status == 200 or FULL in response.read()
    except ConnectionRefusedError:
        return None
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def run(command: list[str]) -> int:
    """The command's exit status, as a shell would say it, or 1 when it had to be killed."""
    triton = subprocess.Popen(command)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True  # from now on no answer is no news: what is under way may finish
        triton.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    up, strikes = False, 0  # it listens when the model is loaded and warm, however long the download took
    while (status := wait(triton, PROBE_SECONDS)) is None:
        answer = embeds()
        up = up or answer is not None
        strikes = 0 if answer or stopping or not up else strikes + 1
        if strikes == STRIKES:
            print(f"watchdog: {STRIKES} times in a row no embedding came back: ending Triton", file=sys.stderr)
            triton.kill()  # nothing of what is under way can be answered
            return 1
    return status if status >= 0 else 128 - status


def wait(process: subprocess.Popen, seconds: float) -> int | None:
    """Its exit status, or None when it is still running after `seconds`."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(not embeds() if sys.argv[1:] == ["check"] else run(sys.argv[1:]))
