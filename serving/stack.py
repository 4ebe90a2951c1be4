"""Triton and the adapter as one thing: started in order, watched, restarted when something died, stopped in order."""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
from rich.console import Console

from serving import logs
from serving.process import Process
from serving.settings import ROOT, ServeSettings, ServingError
from serving.tritonserver import Tritonserver

STUB = "triton_python_b"  # as the kernel shortens it: triton_python_backend_stub
REGION = "/dev/shm/triton_python_backend_shm_region"
STEADY_SECONDS = 60  # what ran that long has recovered; the next restart is quick again


class Stack:
    """What `make serve` runs. `start` returns when embeddings are served; `watch` until it is told to stop."""

    def __init__(self, settings: ServeSettings, checkpoint: str, console: Console) -> None:
        self.settings, self.checkpoint, self.console = settings, checkpoint, console
        self.server = Tritonserver.find(settings)
        self._processes: dict[str, Process] = {}
        self._regions: set[str] = set()
        self.stopping = threading.Event()

    @property
    def triton(self) -> Process:
        return self._processes["triton"]

    @property
    def adapter(self) -> Process:
        return self._processes["adapter"]

    @property
    def url(self) -> str:
        return f"http://{self._address}:{self.settings.port}"

    @property
    def _address(self) -> str:
        return "localhost" if self.settings.host in ("127.0.0.1", "0.0.0.0") else self.settings.host

    def start(self) -> None:
        """Start both and wait until they answer.

        Raises:
            ServingError: a port is taken, or one of them did not come up; the message says why.
        """
        for name, port in self.settings.ports.items():
            check_port(self.settings.host, port, name)
        self._start_triton()
        self._start_adapter()

    def watch(self, poll_seconds: float = 1.0) -> None:
        """Restart whatever died, with growing pauses; returns when `stopping` is set."""
        failures, since = 0, time.monotonic()
        while not self.stopping.wait(poll_seconds):
            lost = self._what_died()
            if lost is None:
                failures = 0 if time.monotonic() - since > STEADY_SECONDS else failures
                continue
            self.console.print(f"[bold red]{lost} died; restarting")
            self.stopping.wait(min(30, 2**failures - 1))
            failures, since = failures + 1, time.monotonic()
            try:
                self._restart(lost)
            except ServingError as error:
                self.console.print(f"[red]{error}")

    def stop(self) -> None:
        """The adapter first, so that nothing new reaches Triton; then Triton, with what was under way."""
        self.stopping.set()
        for name in ("adapter", "triton"):
            if process := self._processes.get(name):
                process.stop(self.settings.stop_seconds + 2)
        self._remove_regions()

    def _what_died(self) -> str | None:
        """Triton, its Python stub (which Triton never restarts, and calls ready all the same), or the adapter."""
        if not self.triton.alive or self._stub() is None:
            return "triton"
        return None if self.adapter.alive else "adapter"

    def _restart(self, lost: str) -> None:
        if lost == "adapter":
            self.adapter.kill()
            self._start_adapter()
        else:
            self.triton.kill()
            self._remove_regions()
            self._start_triton()

    def _stub(self) -> psutil.Process | None:
        try:
            children = psutil.Process(self.triton.popen.pid).children()
            return next((c for c in children if c.name() in (STUB, "triton_python_backend_stub") and alive(c)), None)
        except psutil.NoSuchProcess:
            return None

    def _start_triton(self) -> None:
        show = logs.everything if self.settings.verbose else logs.quiet
        command, environment = self.server.command(self.settings), self.server.environment(self.checkpoint)
        self._processes["triton"] = Process.start("triton", command, environment, self.console, show, "green")
        with self.console.status(f"loading {self.checkpoint} …"):
            port = self.settings.triton_http_port
            self._await(self.triton, f"http://{self._address}:{port}/v2/health/ready", self.settings.start_seconds)
        self._regions = shared_memory(self.triton.popen.pid)

    def _start_adapter(self) -> None:
        environment = os.environ | {
            "ADAPTER_HOST": self.settings.host,
            "ADAPTER_PORT": str(self.settings.port),
            "ADAPTER_TRITON_URL": f"{self._address}:{self.settings.triton_grpc_port}",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "client"]
        started = Process.start("adapter", command, environment, self.console, logs.everything, "cyan")
        self._processes["adapter"] = started
        self._await(self.adapter, f"{self.url}/health", 60)

    def _await(self, process: Process, url: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not process.alive:
                process.kill()  # what it left behind, and the rest of its log
                raise ServingError(f"{process.name} did not start: {logs.load_failure(list(process.lines))}")
            try:
                if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise ServingError(f"{process.name} did not answer within {seconds:g} s; see its log above")

    def _remove_regions(self) -> None:
        """A killed Triton leaves its shared memory behind; only what our own had mapped is removed."""
        for region in self._regions:
            Path(region).unlink(missing_ok=True)
        self._regions = set()


def check_port(host: str, port: int, name: str) -> None:
    """Raises ServingError when `port` cannot be listened on, naming the variable that changes it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(f"port {port} cannot be used ({error.strerror}); set {name} to another one") from None


def alive(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE


def shared_memory(pid: int) -> set[str]:
    """The shared-memory files of Triton's Python backend that this process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in maps if REGION in line}
