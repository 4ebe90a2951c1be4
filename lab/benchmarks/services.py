"""The two services that are compared, side by side on free ports: ours (Triton and the adapter) and the plain one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.benchmarks.checkpoints import ROOT
from lab.benchmarks.results import console, fail
from lab.ports import free_ports, serve_settings
from qwen3_vl_embed.serving import logs
from qwen3_vl_embed.serving.process import Process
from qwen3_vl_embed.serving.settings import ServingError
from qwen3_vl_embed.serving.stack import Stack

# A cache would answer for the model, and a log line for each request is not what is compared: the plan's has neither.
SETTINGS = {"ADAPTER_CACHE_BYTES": "0", "ADAPTER_LOG_LEVEL": "warning"}


@dataclass(frozen=True)
class Services:
    """Where they listen."""

    ours: str  # http://host:port of the adapter
    triton: str  # host:port of Triton's gRPC
    plan: str | None  # http://host:port


@contextmanager
def running(checkpoint: str, device: str, with_plan: bool = False, apart: bool = False) -> Iterator[Services]:
    """Ours, or both, until the block ends. Where one cannot start here, this program ends and says why.

    `apart`: this program has the machine's last core for itself, and they have the others.
    """
    before, cores = os.environ.copy(), sorted(os.sched_getaffinity(0))
    os.environ.update(SETTINGS, EMBED_DEVICE=device)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Triton would serve on every GPU
    stack = plan = None
    try:
        os.sched_setaffinity(0, cores[:-1] or cores if apart else cores)  # inherited by all that is started
        stack, (plan_port,) = Stack(serve_settings(), checkpoint, console), free_ports(1)
        plan_url = f"http://127.0.0.1:{plan_port}"
        if with_plan:  # it loads while Triton does
            command = [sys.executable, "-m", "lab.benchmarks.plan_service", "--checkpoint", checkpoint]
            command += ["--device", device, "--port", str(plan_port)]
            path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            plan = Process("plan", command, os.environ | path, console, logs.everything, "magenta")
        stack.start()
        if plan:
            stack.await_answer(plan, f"{plan_url}/health")
        os.sched_setaffinity(0, cores[-1:] if apart else cores)
        yield Services(stack.url, stack.settings.triton_grpc, plan_url if plan else None)
    except ServingError as error:
        fail(f"cannot serve here: {error}")
    finally:
        if plan:
            plan.stop(5)
        if stack:
            stack.stop()
        os.sched_setaffinity(0, cores)
        os.environ.clear()
        os.environ.update(before)
