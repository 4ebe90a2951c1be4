"""Triton and the adapter as one thing: started in order, watched, restarted when something died, stopped in order."""

import errno
import os
import secrets
import socket
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.text import Text

from qwen3_vl_embed.serving import logs
from qwen3_vl_embed.serving.process import Filter, Process, keyless
from qwen3_vl_embed.serving.reaper import Reaper, remove_regions
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings, ServingError
from qwen3_vl_embed.serving.tritonserver import Tritonserver

WATCHDOG = Path(__file__).with_name("watchdog.py")  # as in the container: it ends a Triton that does not embed
TELL_SECONDS = 10
STEADY_SECONDS = 60  # what ran that long has recovered; the next restart is quick again


class Stack:
    """What `make serve` runs. `start` returns when embeddings are served; `watch` until it is told to stop."""

    def __init__(self, settings: ServeSettings, checkpoint: str, console: Console) -> None:
        self.settings, self.checkpoint, self.console = settings, checkpoint, console
        self.server = Tritonserver.find(settings)
        # What its shared memory's names begin with.
        self.regions = f"qwen3_vl_embed_{os.getpid()}_{secrets.token_hex(4)}"
        self._reaper = Reaper(self.regions, keyless())
        self._processes: dict[str, Process] = {}
        self.stopping = False  # a signal's handler may set it: an Event's lock could be held just then

    @property
    def triton(self) -> Process:
        return self._processes["triton"]

    @property
    def adapter(self) -> Process:
        return self._processes["adapter"]

    @property
    def url(self) -> str:
        return self.settings.url

    def start(self) -> None:
        """Start both and wait until they answer, or until `stopping` is set.

        Raises:
            ServingError: a port is taken, or one of them did not come up; the message says why.
        """
        check_ports(self.settings)
        self._start_adapter("/health/live")  # what is wrong with its settings is said before the model is read
        if not self.stopping:
            self._start_triton()
        if not self.stopping:
            self.await_answer(self.adapter, f"{self.url}/health")

    def watch(self, poll_seconds: float = 1.0) -> None:
        """Restart whatever died, with growing pauses; returns when `stopping` is set."""
        failures, since = 0, time.monotonic()
        while not self._stops_within(poll_seconds):
            # Triton's watchdog ends with it, and ends it when it does not embed.
            lost = next((name for name in ("triton", "adapter") if not self._processes[name].alive), None)
            if lost is None:
                failures = 0 if time.monotonic() - since > STEADY_SECONDS else failures
                continue
            self.console.print(f"{lost} died; restarting", style="bold red")
            if self._stops_within(min(30, 2**failures - 1)):
                break
            failures, since = failures + 1, time.monotonic()
            try:
                self._restart(lost)
            except ServingError as error:
                self.console.print(Text(str(error), "red"))

    def stop(self) -> None:
        """The adapter first, so that nothing new reaches Triton; then Triton, with what was under way."""
        self.stopping = True
        for name in ("adapter", "triton"):
            if process := self._processes.get(name):
                process.stop(self.settings.stop_seconds + 2)
        self._reaper.close()
        remove_regions(self.regions)

    def _stops_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.1)
        return self.stopping

    def _restart(self, lost: str) -> None:
        process = self._processes[lost]
        process.kill()  # what a dead leader left behind
        self._reaper.release(process.popen.pid)
        if lost == "adapter":
            self._start_adapter()
        else:
            remove_regions(self.regions)
            self._start_triton()

    def _run(self, name: str, command: list[str], environment: dict[str, str], show: Filter, colour: str) -> Process:
        process = Process(name, command, environment, self.console, show, colour)
        self._processes[name] = process
        self._reaper.watch(process.popen.pid)
        return process

    def _start_triton(self) -> None:
        show = logs.everything if self.settings.verbose else logs.quiet
        command = [sys.executable, str(WATCHDOG), *self.server.command(self.settings, self.regions)]
        environment = self.server.environment(self.checkpoint, self.regions, self.settings.triton_open_apis or "")
        triton = self._run("triton", command, environment, show, "green")
        with self.console.status(Text(f"loading {self.checkpoint} …")):
            self.await_answer(triton, f"http://{self.settings.triton_http}/v2/health/ready")

    def _start_adapter(self, awaited: str = "/health") -> None:
        environment = os.environ | {
            "ADAPTER_HOST": self.settings.host,
            "ADAPTER_PORT": str(self.settings.port),
            "ADAPTER_TRITON_URL": self.settings.triton_grpc,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "client"]
        adapter = self._run("adapter", command, environment, logs.everything, "cyan")
        self.await_answer(adapter, self.url + awaited)

    def await_answer(self, process: Process, url: str) -> None:
        """Until it answers, or `stopping`; what it said last is repeated now and then, with the seconds so far.

        Raises:
            ServingError: it ended, or took too long; the message says why.
        """
        started = told = time.monotonic()
        seconds = self.settings.start_seconds
        with httpx.Client(timeout=5, trust_env=False) as client:  # one: each reads all certificates
            while (now := time.monotonic()) < started + seconds:
                if now - told >= TELL_SECONDS:
                    told = now
                    self.console.print(
                        Text(f"{process.name}: {now - started:.0f} s so far ({process.said})"), soft_wrap=True
                    )
                if not process.alive:
                    process.kill()  # what it left behind, and the rest of its log
                    raise ServingError(f"{process.name} did not start: {logs.load_failure(list(process.lines))}")
                try:
                    if client.get(url).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                if self._stops_within(0.1):
                    return
        raise ServingError(
            f"{process.name} did not answer within {seconds:g} s; see its log above, or set SERVE_START_SECONDS to more"
        )


def check_ports(settings: ServeSettings) -> None:
    """Raises ServingError when two are the same, or one cannot be listened on."""
    names: dict[int, str] = {}
    for name, port in settings.ports.items():
        if (first := names.setdefault(port, name)) != name:
            raise ServingError(f"{first} and {name} are both {port}: give each a port of its own")
        check_port(settings.triton_host if "TRITON" in name else settings.host, port, name)


def check_port(host: str, port: int, name: str) -> None:
    """Raises ServingError when `port` cannot be listened on, naming the variable that changes it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                variable = "SERVE_TRITON_HOST" if "TRITON" in name else "SERVE_HOST"
                raise ServingError(f"{host} is no address of this machine; set {variable} to another one") from None
            raise ServingError(f"port {port} cannot be used ({error.strerror}); set {name} to another one") from None
