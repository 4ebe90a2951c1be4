"""The real stack, started once: tritonserver with the tiny checkpoint and the adapter in front, on free ports."""

import errno
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.ports import serve_settings
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings
from qwen3_vl_embed.serving.stack import Stack

CHECKPOINT = ROOT / "checkpoints" / "qwen3-vl-color-tiny"


@dataclass(frozen=True)
class RunningStack:
    """Where the stack that the tests share is listening."""

    adapter_url: str  # http://host:port
    triton_http: str  # host:port
    triton_grpc: str
    triton_metrics: str
    stack: Stack


@contextmanager
def running(
    settings: ServeSettings | None = None,
    checkpoint: str = str(CHECKPOINT),
    console: Console | None = None,
    /,
    **environment: str,
) -> Iterator[RunningStack]:
    """A stack of its own, with these variables set while it starts."""
    settings = settings or serve_settings()
    stack = Stack(settings, str(checkpoint), console or Console(stderr=True))
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            stack.start()
        yield RunningStack(
            stack.url,
            f"localhost:{settings.triton_http_port}",
            f"localhost:{settings.triton_grpc_port}",
            f"localhost:{settings.triton_metrics_port}",
            stack,
        )
    finally:
        stack.stop()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """torch in this process: models as small as the tests' are slower on two, much slower where cores are busy."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    os.environ.setdefault("ADAPTER_LOG_LEVEL", "warning")
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def pipelined_stack(stack: RunningStack) -> Iterator[RunningStack]:
    """The same model as on a GPU: inputs prepared beside the forward pass, each request answered by itself."""
    with running(EMBED_PIPELINE="true") as started:
        yield started


@pytest.fixture(scope="session")
def other_stack(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The same weights under another name, which is another checkpoint to whoever publishes; and another recipe."""
    folder = tmp_path_factory.mktemp("checkpoints") / "Another-One"
    folder.symlink_to(CHECKPOINT)
    with running(None, str(folder), EMBED_POOLING="mean") as started:
        yield started


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are closed after most of a second, and nothing else is waited for longer."""
    monkeypatch.setattr("client.server.IDLE_SECONDS", 0.8)
    monkeypatch.setattr("client.http.framing.LINGER_SECONDS", 0.8)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors. Not in pyproject.toml: without pytest-asyncio its own settings there are a warning.

    What the collector finds (an unclosed socket) is shown only: it comes with whichever test runs by then.
    """
    if config.pluginmanager.has_plugin("asyncio"):
        config.addinivalue_line("filterwarnings", "error")
        config.addinivalue_line("filterwarnings", "default::pytest.PytestUnraisableExceptionWarning")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: no collection of garbage has to go through its million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Files of fast tests first: those that need the stack after those that do not, the containers last.

    `make test` hands whole files to its two processes (`both_ends.py`), so that a file's fixtures are made once.
    """
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker("stack")
    yield  # what `-m` leaves: a test of another target makes no file a slow one
    served = {item.path for item in items if item.get_closest_marker("stack")}
    items.sort(key=lambda item: (bool(item.get_closest_marker("containers")), item.path in served))


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As if its rights kept us out, which those of a folder never do with root."""
    scandir = os.scandir

    def denied(path: str | Path = ".") -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
