"""One process that we run: started in a group of its own, its lines passed on with its name, stopped for sure."""

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.text import Text

Filter = Callable[[str], str | None]  # a line -> what to show of it, or None
KEYS = ("ADAPTER_", "QWEN3_VL_EMBED_")  # what variables begin with that may hold a caller's key


class Process:
    """A running child whose output is shown line by line as `name │ line`; the last lines are kept for post-mortems."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], console: Console, show: Filter, colour: str
    ) -> None:
        """It gets a group of its own: Ctrl-C reaches only us, and we stop the children in order."""
        self.popen = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        self.name, self.lines = name, deque[str](maxlen=2000)
        self.said = "starting"  # the last line that was shown
        self._reader = threading.Thread(target=self._read, args=(console, show, colour), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def stop(self, seconds: float) -> None:
        """SIGTERM and, after `seconds`, SIGKILL for the whole group; returns when all of it is gone."""
        if self.alive:
            self.popen.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the whole group: children of a dead leader too."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._reader.join(timeout=2)
        if self.popen.stdout and not self._reader.is_alive():
            self.popen.stdout.close()

    def _read(self, console: Console, show: Filter, colour: str) -> None:
        assert self.popen.stdout
        for whole in self.popen.stdout:
            line = whole.rstrip("\n").rsplit("\r", 1)[-1]  # of a progress bar what a terminal would leave
            self.lines.append(line)
            if shown := show(line):
                self.said = shown
                console.print(Text(f"{self.name:>7} │ ", style=colour) + Text(shown), soft_wrap=True)


def keyless() -> dict[str, str]:
    """This process's environment without what holds a key: for everything that is not the adapter."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(KEYS)}
