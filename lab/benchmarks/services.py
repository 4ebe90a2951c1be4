"""The two services that are compared, side by side on free ports: ours (Triton and the adapter) and the plain one."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from rich.console import Console

from lab.benchmarks.checkpoints import ROOT
from lab.ports import free_ports, serve_settings
from qwen3_vl_embed.serving import logs
from qwen3_vl_embed.serving.process import Process
from qwen3_vl_embed.serving.settings import ServingError
from qwen3_vl_embed.serving.stack import Stack

START_SECONDS = 600
# A cache would answer for the model, and a log line for each request is not what is compared: the plan's has neither.
SETTINGS = {"ADAPTER_CACHE_BYTES": "0", "ADAPTER_LOG_LEVEL": "warning"}


@dataclass(frozen=True)
class Services:
    """Where they listen."""

    ours: str  # http://host:port of the adapter
    triton: str  # host:port of Triton's gRPC
    plan: str | None  # http://host:port


@contextmanager
def running(checkpoint: str, device: str, console: Console, with_plan: bool = True) -> Iterator[Services]:
    """Both, until the block ends.

    Raises:
        ServingError: one of them cannot start here; the message says why.
    """
    before = os.environ.copy()
    os.environ.update(SETTINGS, EMBED_DEVICE=device)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Triton would serve on every GPU
    settings, (plan_port,) = serve_settings(), free_ports(1)
    stack = Stack(settings, checkpoint, console)
    plan = _start_plan(checkpoint, device, plan_port, console) if with_plan else None
    try:
        stack.start()
        if plan:
            _await_plan(plan, plan_port)
        triton = f"127.0.0.1:{settings.triton_grpc_port}"
        yield Services(stack.url, triton, f"http://127.0.0.1:{plan_port}" if plan else None)
    finally:
        if plan:
            plan.stop(5)
        stack.stop()
        os.environ.clear()
        os.environ.update(before)


def _start_plan(checkpoint: str, device: str, port: int, console: Console) -> Process:
    """It loads while Triton does."""
    command = [sys.executable, "-m", "lab.benchmarks.plan_service", "--checkpoint", checkpoint]
    command += ["--device", device, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return Process.start("plan", command, environment, console, logs.everything, "magenta")


def _await_plan(plan: Process, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while plan.alive and time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise ServingError(f"the plan's service did not start: {logs.load_failure(list(plan.lines))}")
