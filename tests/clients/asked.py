"""What each program here is asked and answers. It runs in an environment of its own, where nothing of ours is.

On stdin: {"url", "key", "model", "alias", "texts", "images" (files), "folder"}. On stdout, by the client's name, what
it gave: {"texts": vectors, "images": vectors, …}, or {"failed": a traceback}.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

Given = dict[str, Any]
Got = dict[str, Any]


def main(clients: dict[str, Callable[[Given], Got]]) -> None:
    """Each of them, one after the other."""
    logging.disable(logging.WARNING)
    printed = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    given, got = json.load(sys.stdin), {}
    for name, client in clients.items():
        try:
            got[name] = client(given)
        except Exception:
            got[name] = {"failed": traceback.format_exc()}
    os.write(printed, json.dumps(got).encode())
