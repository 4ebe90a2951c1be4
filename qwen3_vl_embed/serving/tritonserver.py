"""Where the real tritonserver is, and how it is called.

Without a container it comes from the `nvidia-pytriton` wheel (Triton 2.51 = 24.10), of which only the files are used.
"""

import os
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from qwen3_vl_embed.serving.interpreter import VERSION, libpython, misfit
from qwen3_vl_embed.serving.process import keyless
from qwen3_vl_embed.serving.reaper import SHARED_MEMORY
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings, ServingError

MIB = 2**20
PLAIN = re.compile(r"[A-Za-z0-9/._+-]*")  # of a path that means the same to a shell, the linker and any Python
CACHE = ROOT / ".cache"


@dataclass(frozen=True)
class Tritonserver:
    """A binary, and what it needs beside itself (nothing, where it was installed properly)."""

    binary: Path
    backends: Path | None = None
    libraries: tuple[Path, ...] = ()

    @classmethod
    def find(cls, settings: ServeSettings) -> Self:
        """`SERVE_TRITONSERVER`, else the one on PATH, else the wheel's.

        Raises:
            ServingError: there is none, or its Python stub could not start here.
        """
        installed = settings.tritonserver or shutil.which("tritonserver")
        if installed and not Path(installed).exists():
            raise ServingError(f"SERVE_TRITONSERVER: there is no {installed}")
        if installed and not (Path(installed).is_file() and os.access(installed, os.X_OK)):
            raise ServingError(f"SERVE_TRITONSERVER: {installed} is no program that can be run")
        return cls(Path(installed)) if installed else cls._from_wheel()

    @classmethod
    def _from_wheel(cls) -> Self:
        spec = find_spec("pytriton")
        if spec is None or spec.origin is None:
            raise ServingError("there is no tritonserver: run `make setup`, or set SERVE_TRITONSERVER to one")
        package = Path(spec.origin).parent
        binary = package / "tritonserver" / "bin" / "tritonserver"
        allow_running(binary)
        if problem := misfit():
            raise ServingError(problem)
        library = libpython()
        assert library
        libraries = (package.parent / "nvidia_pytriton.libs", library.parent)
        return cls(binary, backend_directory(package / "tritonserver"), libraries)

    def command(self, settings: ServeSettings, regions: str) -> list[str]:
        """Only flags that Triton 2.51 knows already; `regions` is what its shared memory's names begin with."""
        flags = {
            "model-repository": plain(ROOT / "model_repository", regions),
            "model-control-mode": "none",  # loading models over the network would be running code over the network
            "exit-timeout-secs": settings.stop_seconds,
            "http-address": settings.triton_host,  # the metrics port's too
            "http-port": settings.triton_http_port,
            "grpc-address": settings.triton_host,
            "grpc-port": settings.triton_grpc_port,
            "metrics-port": settings.triton_metrics_port,
        }
        memory = {
            "shm-region-prefix-name": regions,
            "shm-default-byte-size": 64 * MIB,
            "shm-growth-byte-size": 16 * MIB,  # it grows and never shrinks
        }
        if self.backends:
            flags["backend-directory"] = plain(self.backends, regions)
        backend = [f"--backend-config=python,{name}={value}" for name, value in memory.items()]
        given = [f"--{name}={value}" for name, value in flags.items()]
        return [str(self.binary), "--disable-auto-complete-config", *given, *backend]

    def environment(self, checkpoint: str, regions: str, open_apis: str = "") -> dict[str, str]:
        """This process's, without keys; the virtual environment comes first on PATH, which is how the stub finds it."""
        paths = [str(plain(library, regions)) for library in self.libraries] + [os.environ.get("LD_LIBRARY_PATH", "")]
        return keyless() | {
            "EMBED_CHECKPOINT": checkpoint,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
            "PATH": os.pathsep.join([str(plain(Path(sys.prefix), regions) / "bin"), os.environ["PATH"]]),
            "TOKENIZERS_PARALLELISM": "false",
            "TRITON_OPEN_APIS": open_apis,
            "TRITON_TRACES_URL": os.environ.get("ADAPTER_TRACES_URL", ""),
            "PYTHONUNBUFFERED": "1",
        }


def backend_directory(triton: Path) -> Path:
    """The wheel's Python backend and the stub for this Python side by side, as Triton wants them.

    Raises:
        ServingError: the wheel has no stub for this Python, or there is no place for the links.
    """
    stub = triton / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServingError(f"this tritonserver has no stub for Python {VERSION}: use PYTHON=python3.11 or python3.12")
    folder = CACHE / f"tritonserver-python{VERSION}" / "python"
    try:
        allow_running(stub)
        folder.mkdir(parents=True, exist_ok=True)
        for file in [*(triton / "backends" / "python").iterdir(), stub]:
            link(folder / file.name, file)
    except OSError as error:
        raise ServingError(
            f"{error.filename} cannot be written ({error.strerror}): run `make setup` where it can"
        ) from None
    return folder.parent


def link(path: Path, target: Path) -> None:
    """Make `path` lead to `target`, in one step: somebody else may be starting from this checkout just now."""
    if path.is_symlink() and path.readlink() == target:
        return  # nothing to write: a checkout that was set up may be read-only
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.symlink_to(target)
    fresh.replace(path)


def plain(path: Path, regions: str) -> Path:
    """The path, or a link to it, whose name holds nothing that anybody on its way reads as something else.

    Triton's backend has `bash` run its stub without quotes, LD_LIBRARY_PATH ends at a semicolon, and the stub's Python
    takes ASCII. The links lie beside the shared memory, in a folder where nobody can replace them, and go with it.
    """
    if PLAIN.fullmatch(str(path)):
        return path
    short = SHARED_MEMORY / f"{regions}_{sha256(os.fsencode(path)).hexdigest()[:16]}"
    link(short, path)
    return short


def allow_running(file: Path) -> None:
    """A wheel loses the run bits of its files."""
    if not os.access(file, os.X_OK):
        file.chmod(0o755)
