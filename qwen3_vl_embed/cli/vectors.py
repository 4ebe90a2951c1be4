"""Write files whole or not at all; vectors as .npy, .npz, .parquet or .jsonl.

Knows file formats; does not know where vectors come from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO

import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_vl_embed.cli.sources import Item


class VectorFileError(Exception):
    """The file cannot be written; the message says why and what would work."""


@dataclass(frozen=True)
class Embedded:
    """One item and its vector, float32 (D,)."""

    item: Item
    vector: NDArray[np.float32]


def jsonl(embedded: Sequence[Embedded]) -> bytes:
    """One line for each item: {"item": ..., "kind": "text" | "image", "embedding": [...]}."""
    return b"".join(
        orjson.dumps(
            {"item": each.item.name, "kind": each.item.kind, "embedding": each.vector},
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        for each in embedded
    )


def matrix(embedded: Sequence[Embedded]) -> NDArray[np.float32]:
    """float32 (N, D), one row for each item, in order."""
    return np.stack([each.vector for each in embedded])


def _npy(file: IO[bytes], embedded: Sequence[Embedded]) -> None:
    np.save(file, matrix(embedded), allow_pickle=False)


def _npz(file: IO[bytes], embedded: Sequence[Embedded]) -> None:
    items, kinds = [each.item.name for each in embedded], [each.item.kind for each in embedded]
    np.savez(file, vectors=matrix(embedded), items=np.array(items), kinds=np.array(kinds))


def _jsonl(file: IO[bytes], embedded: Sequence[Embedded]) -> None:
    file.write(jsonl(embedded))


def _parquet(file: IO[bytes], embedded: Sequence[Embedded]) -> None:
    import pyarrow as pa  # not at the top: it would double the time that `--help` takes
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "item": pa.array([each.item.name for each in embedded], pa.string()),
            "kind": pa.array([each.item.kind for each in embedded], pa.string()),
            "embedding": pa.array([each.vector for each in embedded], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, file)


WRITERS: dict[str, Callable[[IO[bytes], Sequence[Embedded]], None]] = {
    ".npy": _npy,  # the matrix alone: the names of its rows are whatever the caller asked for, in that order
    ".npz": _npz,  # vectors (N, D), items (N,), kinds (N,); opens without pickle
    ".parquet": _parquet,
    ".jsonl": _jsonl,
}


def check_writable(path: Path) -> None:
    """Raises VectorFileError before hours of work are done for a file that cannot be written."""
    if path.suffix.lower() not in WRITERS:
        raise VectorFileError(f"{path} must end in one of {', '.join(WRITERS)}.")
    if not path.absolute().parent.is_dir():
        raise VectorFileError(f"{path} cannot be written: there is no folder {path.parent}.")


def write_vectors(path: Path, embedded: Sequence[Embedded]) -> None:
    """All of it, in the format that the name's end asks for. Raises VectorFileError."""
    check_writable(path)
    with replacing(path) as file:
        WRITERS[path.suffix.lower()](file, embedded)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well: an interrupted run leaves the old one.

    It lies beside `path`, is new and has a name that nobody knows before, and a link at `path` is replaced, not
    followed: in a folder where others may write, their link must not lead our bytes to another file of ours.

    Raises:
        VectorFileError: it cannot be written.
    """
    fresh = path.with_name(f".{token_hex(8)}")
    try:
        with fresh.open("xb") as file:
            yield file
        fresh.replace(path)
    except OSError as error:
        raise VectorFileError(f"{path} cannot be written ({error.strerror or error}).") from None
    finally:
        fresh.unlink(missing_ok=True)
