"""Which Python can serve: a version that the dependencies know, with its shared library, where Triton's stub finds it.

`python interpreter.py` exits with a sentence when the Python that runs it cannot. Needs nothing but that Python.
"""

from __future__ import annotations  # an older Python must come as far as saying that it is too old

import os
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

VERSIONS = ("3.11", "3.12")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def libpython() -> Path | None:
    """The shared library of the very Python that runs this (another build's fails on its first extension module).

    Debian's comes without it; pyenv's and uv's bring it. What the build noted of its place counts last: it may have
    been moved since.
    """
    own, architecture = Path(sys.base_prefix) / "lib", sysconfig.get_config_var("MULTIARCH") or ""
    folders = own, own / architecture, Path(sysconfig.get_config_var("LIBDIR") or own)
    libraries = (folder / f"libpython{VERSION}.so.1.0" for folder in folders)
    return next((library for library in libraries if library.is_file()), None)


def misfit() -> str | None:
    """Why Triton's stub cannot run this Python; None where it can."""
    if VERSION not in VERSIONS:
        return f"{sys.executable} is Python {VERSION}; {' or '.join(VERSIONS)} is needed"
    if not libpython():
        return f"Triton needs libpython{VERSION}.so.1.0, which this Python came without: apt install libpython{VERSION}"
    if not os.path.realpath(sys.executable).isascii():  # where it looks for its modules, with a locale of ASCII alone
        where = os.path.realpath(sys.executable)
        return f"Triton cannot start {where}: a Python must lie in a path of ASCII, so move it, or make PYTHON=another"
    return None


if __name__ == "__main__":
    no_venv = f"{sys.executable} has no venv: apt install python{VERSION}-venv"
    sys.exit(misfit() or (None if find_spec("ensurepip") else no_venv))
