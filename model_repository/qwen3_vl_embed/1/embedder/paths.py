"""Paths that all can open who have to."""

import os
import sys
from pathlib import Path


def openable(path: str | Path) -> Path:
    """The same file or folder under a name that Python and libraries in Rust (safetensors, tokenizers) open alike.

    Rust takes UTF-8. Python takes the file system's encoding, and in Triton's stub that is ASCII whatever the locale
    says (it is embedded with PyConfig_InitIsolatedConfig). So there another name than ASCII becomes the number of an
    open file, kept for as long as the process lives. Where there is nothing, the path is returned as it is.
    """
    raw = utf8(str(path)).encode()
    if raw.isascii() or sys.getfilesystemencoding() == "utf-8":
        return Path(path)
    try:
        return Path(f"/proc/self/fd/{os.open(raw, os.O_PATH)}")
    except OSError:
        return Path(path)


def utf8(text: str) -> str:
    """What a Python that takes ASCII read from the environment or a folder, as the UTF-8 that it was.

    Raises:
        UnicodeDecodeError: it was not UTF-8.
    """
    return text.encode("utf-8", "surrogateescape").decode()
