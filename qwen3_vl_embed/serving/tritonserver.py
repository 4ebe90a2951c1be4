"""Where the real tritonserver is, and how it is called. Knows flags, libraries and the Python stub; starts nothing.

Without a container it comes from the `nvidia-pytriton` wheel (Triton 2.51 = 24.10), of which only the files are used.
"""

import os
import secrets
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from qwen3_vl_embed.serving.process import keyless
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings, ServingError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MIB = 2**20
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
        if installed and not Path(installed).is_file():
            raise ServingError(f"SERVE_TRITONSERVER: there is no {installed}")
        return cls(Path(installed)) if installed else cls._from_wheel()

    @classmethod
    def _from_wheel(cls) -> Self:
        spec = find_spec("pytriton")
        if spec is None or spec.origin is None:
            raise ServingError("there is no tritonserver: run `make setup`, or set SERVE_TRITONSERVER to one")
        package = Path(spec.origin).parent
        binary = package / "tritonserver" / "bin" / "tritonserver"
        allow_running(binary)
        libraries = (package.parent / "nvidia_pytriton.libs", libpython().parent)
        return cls(binary, backend_directory(package / "tritonserver"), libraries)

    def command(self, settings: ServeSettings, regions: str) -> list[str]:
        """Only flags that Triton 2.51 knows already; `regions` is what its shared memory's names begin with."""
        flags = {
            "model-repository": ROOT / "model_repository",
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
            flags["backend-directory"] = self.backends
        backend = [f"--backend-config=python,{name}={value}" for name, value in memory.items()]
        given = [f"--{name}={value}" for name, value in flags.items()]
        return [str(self.binary), "--disable-auto-complete-config", *given, *backend]

    def environment(self, checkpoint: str) -> dict[str, str]:
        """This process's, without keys; the virtual environment comes first on PATH, which is how the stub finds it."""
        paths = [str(library) for library in self.libraries] + [os.environ.get("LD_LIBRARY_PATH", "")]
        return keyless() | {
            "EMBED_CHECKPOINT": checkpoint,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
            "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
            "TOKENIZERS_PARALLELISM": "false",
            "TRITON_TRACES_URL": os.environ.get("ADAPTER_TRACES_URL", ""),
            "PYTHONUNBUFFERED": "1",
        }


def backend_directory(triton: Path) -> Path:
    """The wheel's Python backend and the stub for this Python side by side, as Triton wants them.

    Raises:
        ServingError: the wheel has no stub for this Python, or there is no place for the links.
    """
    stub = triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServingError(f"this tritonserver has no stub for Python {PYTHON}: use PYTHON=python3.11 or python3.12")
    folder = CACHE / f"tritonserver-python{PYTHON}" / "python"
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


def allow_running(file: Path) -> None:
    """A wheel loses the run bits of its files."""
    if not os.access(file, os.X_OK):
        file.chmod(0o755)


def libpython() -> Path:
    """The shared library of the very Python that runs this (another build's fails on its first extension module).

    Raises:
        ServingError: this Python came without it, as Debian's does.
    """
    name = f"libpython{PYTHON}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", "/usr/lib"]
    architecture = sysconfig.get_config_var("MULTIARCH") or ""
    candidates = [Path(folder) / part / name for folder in folders if folder for part in ("", architecture)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ServingError(f"Triton needs {name}, which this Python came without: apt install libpython{PYTHON}")
