"""Vectors come back from every file format as they went in, with what made them, whatever ends the run."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from qwen3_vl_embed.files import vectors
from qwen3_vl_embed.files.errors import VectorFileError
from qwen3_vl_embed.files.vectors import Origin, VectorFile, check_writable, differences, replacing
from qwen3_vl_embed.items import Embedded, Item

VECTORS = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
ITEMS = [Item.text("red"), Item.image(Path("photos/b.png")), Item.text('色 "quoted"\n')]
NAMES = ["red", "photos/b.png", '色 "quoted"\n']
KINDS = ["text", "image", "text"]
EMBEDDED = [Embedded(item, vector, "9836692bfdcc") for item, vector in zip(ITEMS, VECTORS, strict=True)]
ORIGIN = Origin("http://localhost:1", {"checkpoint": "some/tiny", "dtype": "bfloat16", "dimension": 5}, {"layer": -2})
SUFFIXES = [".npy", ".npz", ".parquet", ".jsonl"]


def write_vectors(path: Path, embedded: list[Embedded]) -> None:
    with VectorFile(path, ORIGIN, len(embedded)) as file:
        for each in embedded:
            file.write([each])
    assert file.kept == path


def test_npy_holds_the_matrix(tmp_path):
    write_vectors(tmp_path / "v.npy", EMBEDDED)
    loaded = np.load(tmp_path / "v.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, VECTORS)


def test_npz_holds_names_too_and_needs_no_pickle(tmp_path):
    write_vectors(tmp_path / "v.npz", EMBEDDED)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["vectors"], VECTORS)
        assert loaded["items"].tolist() == NAMES
        assert loaded["kinds"].tolist() == KINDS
        assert '"checkpoint":"some/tiny"' in loaded["about"].item()


@pytest.mark.parametrize("odd", ["x" * 15_000, "ends in NUL\0"])
def test_npz_is_not_as_wide_as_its_longest_name(tmp_path, odd):
    """NumPy gives each name 4 bytes for every letter of the longest, 484 MB here, and drops a last NUL."""
    names = [odd, *map(str, range(8_000))]
    write_vectors(tmp_path / "v.npz", [Embedded(Item.text(name), VECTORS[0]) for name in names])
    assert (tmp_path / "v.npz").stat().st_size < 2_000_000
    with np.load(tmp_path / "v.npz", allow_pickle=False) as loaded:
        assert orjson.loads(loaded["items_json"].tobytes()) == names


def test_parquet(tmp_path):
    write_vectors(tmp_path / "v.parquet", EMBEDDED)
    table = pq.read_table(tmp_path / "v.parquet")
    assert [str(kind) for kind in table.schema.types] == ["string", "string", "fixed_size_list<element: float>[5]"]
    assert (table["item"].to_pylist(), table["kind"].to_pylist()) == (NAMES, KINDS)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), VECTORS)


def test_parquet_in_groups_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "ROW_GROUP", 2)
    write_vectors(tmp_path / "v.parquet", EMBEDDED)
    assert pq.ParquetFile(tmp_path / "v.parquet").num_row_groups == 2
    assert pq.read_table(tmp_path / "v.parquet")["item"].to_pylist() == NAMES


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_file_tells_what_made_it(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    write_vectors(path, EMBEDDED)
    match suffix:
        case ".npy":
            about = orjson.loads((tmp_path / "v.npy.json").read_bytes())
        case ".npz":
            about = orjson.loads(np.load(path)["about"].item())
        case ".parquet":
            tags = {name.decode(): value.decode() for name, value in pq.read_schema(path).metadata.items()}
            assert (tags["checkpoint"], tags["recipe"], tags["dtype"]) == ("some/tiny", "9836692bfdcc", "bfloat16")
            about = orjson.loads(tags["about"])
        case ".jsonl":
            row = orjson.loads(path.read_bytes().splitlines()[0])
            assert (row["checkpoint"], row["recipe"], row["dtype"]) == ("some/tiny", "9836692bfdcc", "bfloat16")
            return
    assert (about["model"], about["options"]) == (ORIGIN.model, ORIGIN.options)
    assert about["recipes"] == {"text": "9836692bfdcc", "image": "9836692bfdcc"}


def test_jsonl_is_exact_to_the_last_bit(tmp_path):
    write_vectors(tmp_path / "v.jsonl", EMBEDDED)
    rows = [orjson.loads(line) for line in (tmp_path / "v.jsonl").read_bytes().splitlines()]
    assert [(row["item"], row["kind"]) for row in rows] == list(zip(NAMES, KINDS, strict=True))
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), VECTORS)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    with pytest.raises(VectorFileError, match=r"\.npy, \.npz, \.parquet, \.jsonl"):
        check_writable(tmp_path / "v.csv")
    with pytest.raises(VectorFileError, match="no folder"):
        check_writable(tmp_path / "missing" / "v.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(VectorFileError, match="is a folder"):
        check_writable(tmp_path / "folder.npy")
    os.mkfifo(tmp_path / "fifo.npy")
    with pytest.raises(VectorFileError, match="is no file"):
        check_writable(tmp_path / "fifo.npy")
    with pytest.raises(VectorFileError, match="cannot be written"):
        check_writable(Path("/proc/v.npy"))  # a folder that is there, and takes no file, not even root's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo.npy", "folder.npy"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_without_room_is_found_before_the_work(tmp_path, suffix):
    with pytest.raises(VectorFileError, match="No space left"):
        VectorFile(tmp_path / f"v{suffix}", ORIGIN, 10**15)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond it fail, in the middle of what is written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_before_the_disk_was_full_is_kept(tmp_path):
    path = tmp_path / "v.jsonl"
    file = full(path)
    with file_size_limit(2_500), pytest.raises(VectorFileError, match="cannot be written"):
        fill(file)
    lines = path.read_bytes().splitlines()
    assert len(lines) == file.count > 3
    assert [orjson.loads(line)["item"] for line in lines[-3:]] == NAMES


def test_room_for_what_is_written_in_the_end_is_reserved(tmp_path):
    with file_size_limit(2_500), pytest.raises(VectorFileError, match="cannot be written"):
        VectorFile(tmp_path / "v.npz", ORIGIN, 1_000)
    assert list(tmp_path.iterdir()) == []


def full(path: Path) -> VectorFile:
    return VectorFile(path, ORIGIN, 1_000)


def fill(file: VectorFile) -> None:
    with file:
        while True:
            file.write(EMBEDDED)


def read(path: Path) -> int:
    """Rows of a file of any format."""
    match path.suffix:
        case ".npy":
            return len(np.load(path))
        case ".npz":
            return len(np.load(path)["vectors"])
        case ".parquet":
            return pq.read_table(path).num_rows
    return len(path.read_bytes().splitlines())


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def interrupted(path: Path) -> VectorFile:
    with suppress(KeyboardInterrupt), full(path) as file:
        file.write(EMBEDDED)
        stop()
    return file


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_done_before_an_interruption_is_kept(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    assert interrupted(path).kept == path
    assert read(path) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_unfinished_run_does_not_replace_an_earlier_file(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"old")
    kept = interrupted(path).kept
    assert path.read_bytes() == b"old"
    assert kept is not None
    assert kept.parent == tmp_path
    assert read(kept) == 3


def test_jsonl_is_there_as_it_comes(tmp_path):
    with full(tmp_path / "v.jsonl") as file:
        file.write(EMBEDDED)
        assert read(tmp_path / "v.jsonl") == 3
    with full(tmp_path / "nothing.jsonl") as file:
        file.write([])
    assert file.kept is None
    assert [path.name for path in tmp_path.iterdir()] == ["v.jsonl"]


def test_no_link_is_followed(tmp_path):
    """In a folder where others may write: neither one under a name that could be known before, nor the file's own."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in ("v.jsonl", ".v.jsonl.partial", ".v.jsonl.tmp", "v.jsonl.tmp"):
        (tmp_path / name).symlink_to(mine)
    write_vectors(tmp_path / "v.jsonl", EMBEDDED)
    assert mine.read_text() == "precious"
    assert len((tmp_path / "v.jsonl").read_bytes().splitlines()) == 3
    assert not (tmp_path / "v.jsonl").is_symlink()
    assert (tmp_path / "v.jsonl").stat().st_mode & 0o777 == mine.stat().st_mode & 0o777


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    (tmp_path / "v").write_bytes(b"old")

    with suppress(KeyboardInterrupt), replacing(tmp_path / "v") as file:
        file.write(b"half")
        stop()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_name_as_long_as_may_be(tmp_path):
    path = tmp_path / ("v" * 249 + ".jsonl")
    write_vectors(path, EMBEDDED)
    assert path.is_file()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "v.npy"
    path.mkdir()  # a file cannot replace it
    with pytest.raises(VectorFileError, match="cannot be written"), replacing(path) as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_what_differs_between_two_models_is_named():
    one = {"id": "a", "content": "c", "dtype": "float32", "device": "cpu", "recipe": {"id": "r", "pooling": "last"}}
    assert differences(one, one | {"id": "b", "dtype": "bfloat16", "device": "cuda:0"}) == "dtype"
    assert differences(one, one | {"content": "d", "recipe": {"id": "s", "pooling": "mean"}}) == "content, pooling"
    assert differences(one, one | {"id": "b"}) == "the prompts of their own"
    assert differences({}, one) == "content, dtype, pooling"
