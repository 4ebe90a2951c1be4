"""Vectors come back from every file format as they went in, and a file is there whole or not at all."""

from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from qwen3_vl_embed.cli.sources import Item
from qwen3_vl_embed.cli.vectors import Embedded, VectorFileError, check_writable, replacing, write_vectors

VECTORS = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
ITEMS = [Item.text("red"), Item.image(Path("photos/b.png")), Item.text('色 "quoted"\n')]
NAMES = ["red", "photos/b.png", '色 "quoted"\n']
KINDS = ["text", "image", "text"]
EMBEDDED = [Embedded(item, vector) for item, vector in zip(ITEMS, VECTORS, strict=True)]


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


def test_parquet(tmp_path):
    write_vectors(tmp_path / "v.parquet", EMBEDDED)
    table = pq.read_table(tmp_path / "v.parquet")
    assert [str(kind) for kind in table.schema.types] == ["string", "string", "list<element: float>"]
    assert (table["item"].to_pylist(), table["kind"].to_pylist()) == (NAMES, KINDS)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), VECTORS)


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

    def interrupted() -> None:
        with replacing(tmp_path / "v") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_name_as_long_as_may_be(tmp_path):
    path = tmp_path / ("v" * 249 + ".jsonl")
    write_vectors(path, EMBEDDED)
    assert path.is_file()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "v.npy"
    path.mkdir()  # a file cannot replace it
    with pytest.raises(VectorFileError, match="cannot be written"):
        write_vectors(path, EMBEDDED)
    assert list(tmp_path.iterdir()) == [path]
