"""Run Triton, and end when it does not embed any more, so that its parent starts it again.

Triton does not restart a model process that died (before 26.04 it even calls itself ready), and no container engine
restarts what is unhealthy. So this looks every second. Are the model processes there? Has Triton answered somebody
since? If not, does a tiny text of our own come back? A container's restart policy or `serving` does the rest.

No answer is not yet a hang: the probe waits its turn behind everybody's photos. A model process that computes uses CPU
time. One that waits for its GPU looks at it hundreds of times a second, in its thread `forward`: the kernel counts
how often that wakes. One that is frozen or deadlocked does neither. So an idle silence ends Triton within 10 s.
A busy one ends it after `BUSY_SECONDS`, or ten times the longest pass that the model showed at its warm-up. A livelock
cannot be told from a very long pass.

A model whose CUDA graph could not be captured is of no use any more. It leaves a note (an empty file, whose name is in
its environment) and ends; then Triton is started once more, with EMBED_GRAPHS=false.

Triton makes a process for each GPU that it sees. With EMBED_DEVICE=cpu it sees none: one process has all cores.

A model may need half a minute for a text. So the probe of each second passes by the model's layers, which takes any
model a moment. One through all of them follows beside it, so seldom that it takes a hundredth of the time.

Uses Triton's HTTP endpoint, the model's three inputs and Linux's /proc; needs nothing but Python.

    watchdog.py check           exit status 0 when an embedding comes back: the container's health check
    watchdog.py COMMAND ...     run tritonserver, watch it, pass SIGTERM on, end with it; with TRITON_TRACES_URL set, to
                                an OTLP/HTTP receiver's address, Triton sends its spans there; with TRITON_OPEN_APIS
                                (model-repository, shared-memory, …) those are not closed
"""
# ruff: noqa: E402

import signal

STOP = {signal.SIGTERM, signal.SIGINT}
if __name__ == "__main__":  # they wait until `run` is ready for them: the first process of a container would lose them
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from glob import glob
from http.client import HTTPConnection, HTTPException
from secrets import token_hex
from tempfile import gettempdir
from threading import Thread
from time import monotonic, sleep

NOTE = "WATCHDOG_NOTE"  # the variable that names the file
MODEL = "/v2/models/qwen3_vl_embed"
PATH = f"{MODEL}/infer"
UNUSED = ("shared-memory", "model-repository", "logging", "trace")  # of Triton's APIs
FULL = b"Exceeds maximum queue size"  # too busy even for the probe, which is no reason to stop it

# The longest that a silence lasts before it is seen: STRIKES * (PAUSE + COUNT + PROBE) = 9 s.
PAUSE_SECONDS = 1.0
COUNT_SECONDS = 1.0
PROBE_SECONDS = 2.5
STRIKES = 2  # a process that was frozen for a moment fails once
WORKING = 0.02  # of one core; an idle model process uses a tenth of that
STUB = b"triton_python_b"  # a model process' name, of which the kernel keeps 15 bytes
BEATING, BEAT = b"forward", 1e-3  # the thread that waits for a GPU; what one look of it is worth, in seconds of CPU
STILLBORN_SECONDS = 20  # Triton ends by itself within a few of a death, but where the process had said nothing before
BUSY_SECONDS = 300  # at least; a batch of 64 photos on a slow CPU takes a minute or two
BUSY_PASSES = 10  # times the longest pass of short inputs: others may be long
RARE = 100  # a text through all layers is sent after so many times what one takes
CHECK_SECONDS = 60  # the health check's patience: it waits its turn like everybody, and ends nothing
TICKS = os.sysconf("SC_CLK_TCK")
FCHMOD = {"x86_64": (0xC000003E, 91), "aarch64": (0xC00000B7, 52)}  # machine: linux/audit.h's name of it, the call


def probe(options: str, output: str = "tokens") -> str:
    """The request that has a tiny text embedded, and asks for one small output."""
    content = (("text", "ready"), ("image", ""), ("options", options))
    inputs = [{"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [value]} for name, value in content]
    return json.dumps({"inputs": inputs, "outputs": [{"name": output}]})


WHOLE = probe("")
LIGHT = probe('{"layer": 0, "center": false}')  # the input layer, for which no calibration is
DESCRIBE = probe('{"describe": true}', "json")


class Triton:
    """One tritonserver as it is seen from outside."""

    def __init__(self, pid: int, host: str, port: int) -> None:
        self.pid, self._address = pid, (host, port)
        # Seconds of a text's pass, and of the longest of short inputs, as the model says.
        self.lone = self.longest = 0.0

    def embeds(self, seconds: float, body: str = LIGHT) -> bool | None:
        """Whether an embedding comes back, or would if there were fewer requests; None when nothing came in time."""
        try:
            status, answer = self._ask("POST", PATH, seconds, body)
        except TimeoutError:
            return None
        except (OSError, HTTPException):
            return False
        if status == 200 and not self.longest:
            self._learn(seconds)
        return status == 200 or FULL in answer

    def answered(self) -> int:
        """Requests that got their vectors so far; -1 where nobody says."""
        try:
            _, body = self._ask("GET", f"{MODEL}/stats", COUNT_SECONDS)
            return int(json.loads(body)["model_stats"][0]["inference_stats"]["success"]["count"])
        except (OSError, HTTPException, ValueError, LookupError):
            return -1

    def workers(self) -> dict[int, float]:
        """What each living model process has done: the CPU seconds that it used, and its beats at a thousandth each."""
        return {
            process: (int(fields[9]) + int(fields[10])) / TICKS + BEAT * beats(process)  # utime and stime
            for process, _, state, fields in self._children()
            if state not in b"ZX"
        }

    def stillborn(self) -> bool:
        """Whether a model process has died and Triton has not noticed."""
        return any(state == b"Z" and name.startswith(STUB) for _, name, state, _ in self._children())

    def _children(self) -> Iterator[tuple[int, bytes, bytes, list[bytes]]]:
        """Its processes: pid, name, state, and what follows in proc(5)'s stat after the parent's pid."""
        for path in glob("/proc/[0-9]*/stat"):
            try:
                with open(path, "rb") as file:  # anybody's process may have any name
                    head, _, rest = file.read().rpartition(b")")
            except OSError:
                continue  # it ended just now
            state, parent, *fields = rest.split()
            if int(parent) == self.pid:
                process, _, name = head.partition(b"(")
                yield int(process), name, state, fields

    def _learn(self, seconds: float) -> None:
        """What the model says of itself, once: in one tritonserver it stays the same."""
        try:
            _, answer = self._ask("POST", PATH, seconds, DESCRIBE)
            shown = json.loads(bytes(json.loads(answer)["outputs"][0]["data"]))["warm_up"]
            self.lone = shown["pass"] + shown["text"]
            self.longest = shown["pass"] + shown["batch"] * max(shown["text"], shown["image"])
        except (OSError, HTTPException, ValueError, LookupError, TypeError):
            pass  # asked again after the next probe; a model of another version says nothing

    def _ask(self, method: str, path: str, seconds: float, body: str | None = None) -> tuple[int, bytes]:
        with closing(HTTPConnection(*self._address, timeout=seconds)) as connection:
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()


def beats(process: int) -> int:
    """How often its threads named `forward` have woken."""
    woken = 0
    for folder in glob(f"/proc/{process}/task/[0-9]*"):
        try:
            with open(f"{folder}/comm", "rb") as name, open(f"{folder}/status", "rb") as status:
                if name.read().strip() == BEATING:
                    woken += int(status.read().partition(b"\nvoluntary_ctxt_switches:")[2].split()[0])
        except (OSError, LookupError, ValueError):
            continue  # it ended just now
    return woken


class Whole(Thread):
    """Texts through all layers, seldom, beside the looks. Only errors count: nobody knows how long one may take."""

    def __init__(self, triton: Triton) -> None:
        super().__init__(daemon=True)
        self._triton = triton
        self.failed = 0  # times in a row

    def run(self) -> None:
        took = self._triton.lone  # the warm-up's was the first
        while True:
            sleep(max(PAUSE_SECONDS, (RARE - 1) * took))
            sent = monotonic()
            answer = self._triton.embeds(busy_seconds(self._triton), WHOLE)
            self.failed = self.failed + 1 if answer is False else 0
            took = monotonic() - sent


class Watch:
    """What has been seen of it so far. Before the first answer only deaths count: loading may take any time."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._whole = Whole(triton)
        self._up = False
        self._workers: set[int] = set()
        self._count = -1
        self._strikes = 0
        self._answered_at = self._alive_at = monotonic()

    def look(self) -> str | None:
        """Why Triton must end, or None."""
        before = self._triton.workers()
        if self._up and self._workers - before.keys():
            return "a model process died"
        if self._up or not self._triton.stillborn():
            self._alive_at = monotonic()
        elif monotonic() - self._alive_at > STILLBORN_SECONDS:
            return "a model process died as it started, and the log says why"
        count = self._triton.answered()
        # One that hangs right after its first vector, before a look of ours, has been up.
        others = count > self._count >= 0 if self._up else count > 0
        answer: bool | None = True
        if len(before) > 1 or not others:  # of several instances all may answer but one: each gets a probe, in turn
            in_turn = (self._triton.embeds(PROBE_SECONDS) for _ in range(max(1, len(before))))
            answer = next((one for one in in_turn if not one), True)
            answer = others or answer if answer is None else answer
        self._count = max(self._triton.answered(), count + 1) if answer else count  # it may not have counted ours yet
        if answer:
            if not self._up:
                self._whole.start()
            self._up, self._workers, self._strikes, self._answered_at = True, set(before), 0, monotonic()
        elif self._up:
            after = self._triton.workers()
            used = max((after.get(each, 0.0) - seconds for each, seconds in before.items()), default=0.0)
            works = answer is None and used > WORKING * PROBE_SECONDS  # one of them: what many idle ones use is none
            self._strikes = 0 if works else self._strikes + 1
        return self._verdict()

    def _verdict(self) -> str | None:
        if max(self._strikes, self._whole.failed) >= STRIKES:
            return f"{STRIKES} times in a row no embedding came back"
        busy = busy_seconds(self._triton)
        if self._up and monotonic() - self._answered_at > busy:
            return f"it has computed for {busy:.0f} s without an answer"
        return None


def busy_seconds(triton: Triton) -> float:
    """How long it may compute without an answer to anybody."""
    return max(BUSY_SECONDS, BUSY_PASSES * triton.longest)


def run(command: list[str]) -> int:
    """The command's exit status, as a shell would say it, or 1 when it had to be killed."""
    process, stopping = None, False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True  # from now on no answer is no news: what is under way may finish
        if process:
            process.terminate()

    for sign in STOP:
        signal.signal(sign, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    keep_private()
    note = os.path.join(gettempdir(), f"watchdog-{token_hex(8)}")
    status = 0
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if os.environ.get("EMBED_DEVICE") == "cpu" else {})
    for setting in ({NOTE: note}, {"EMBED_GRAPHS": "false"}):
        process = subprocess.Popen(command, env=environment | setting)
        if stopping:  # a signal came before there was a process to pass it on to
            process.terminate()
        triton = Triton(process.pid, *address(command))
        watch = Watch(triton)
        while (ended := wait(process, PAUSE_SECONDS)) is None:
            reason = None if stopping else watch.look()
            if os.path.exists(note) and not stopping:
                for each in triton.workers():  # of several GPUs each would leave a note, and one come too late
                    with suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)
                process.kill()  # a Triton without its model may take its time
            elif reason and not stopping:
                print(f"watchdog: {reason}: ending Triton", file=sys.stderr, flush=True)
                process.kill()  # nothing of what is under way can be answered
                return 1
        status = ended if ended >= 0 else 128 - ended
        if stopping or not os.path.exists(note):
            break
        os.unlink(note)
        print("watchdog: no CUDA graph could be captured: Triton starts again without", file=sys.stderr, flush=True)
    return status


def address(command: list[str]) -> tuple[str, int]:
    """Where this command's HTTP endpoint is asked; every address of its own includes the local one."""
    flags = dict(word.split("=", 1) for word in command if word.startswith("--http-") and "=" in word)
    host = flags.get("--http-address", "0.0.0.0")
    return "127.0.0.1" if host in ("0.0.0.0", "localhost") else host, int(flags.get("--http-port", 8000))


def traced(url: str) -> list[str]:
    """The flags that make Triton send a span for each request, below the caller's span where it names one."""
    settings = ("mode=opentelemetry", f"opentelemetry,url={url}", "opentelemetry,resource=service.name=triton")
    return [f"--trace-config={each}" for each in (*settings, "level=TIMESTAMPS", "rate=1")] if url else []


def keep_private() -> None:
    """From here on no file that this process or a child of its makes can be read by other users.

    Triton's shared memory holds everybody's texts and images, and boost sets its mode to 0644 after it was made, by
    `fchmod`. Who opens it then reads on for ever, whatever its mode becomes. So besides the umask there is a filter
    (seccomp(2)): an `fchmod` to a mode for others is skipped. Where no filter can be set, `model.py` is what is left.
    """
    os.umask(0o077)
    architecture, fchmod = FCHMOD.get(os.uname().machine, (0, 0))
    program = struct.pack(
        "HBBI" * 8,
        *(0x20, 0, 0, 4),  # what architecture is it?
        *(0x15, 0, 5, architecture),
        *(0x20, 0, 0, 0),  # which call?
        *(0x15, 0, 3, fchmod),
        *(0x20, 0, 0, 24),  # its second argument, the mode
        *(0x45, 0, 1, 0o077),  # any bit for others?
        *(0x06, 0, 0, 0x00050000),  # SECCOMP_RET_ERRNO with 0: it did nothing, successfully
        *(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
    filters = ctypes.create_string_buffer(program)
    library = ctypes.CDLL(None)
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which only root may set a filter
    library.prctl(22, 2, struct.pack("HP", 8, ctypes.addressof(filters)))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def closed(but: list[str]) -> list[str]:
    """The flags that refuse the APIs which nobody here needs and a stranger could use: 403, or UNAVAILABLE over gRPC.

    Triton lets in a caller who sends a secret header, and any local user reads that on this command line. So its name
    and its value hold a line break, which neither HTTP/1.1 nor gRPC carries: nobody can send it, and nobody needs to.
    """
    header = f"x-nobody\n=\n{token_hex(16)}"
    apis = ",".join(api for api in UNUSED if api not in but)
    return [f"--{flag}={apis}:{header}" for flag in ("http-restricted-api", "grpc-restricted-protocol") if apis]


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit status, or None when it is still running after `seconds`."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        sys.exit(not Triton(0, "127.0.0.1", 8000).embeds(CHECK_SECONDS))
    open_apis, traces_url = (os.environ.get(f"TRITON_{name}", "") for name in ("OPEN_APIS", "TRACES_URL"))
    sys.exit(run([*sys.argv[1:], *closed(open_apis.split(",")), *traced(traces_url)]))
