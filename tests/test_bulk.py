"""`bulk` against the real stack: each row once whatever ends the job, errors as rows, one recipe for a folder."""

import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from subprocess import PIPE

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3_vl_embed import AdapterError, Client, Item, ItemError
from qwen3_vl_embed.bulk.local import LocalModel
from qwen3_vl_embed.bulk.parts import Folder, Ids, Parts, Place, schema
from qwen3_vl_embed.bulk.sources import Row
from qwen3_vl_embed.cli.validation import swatch
from qwen3_vl_embed.files.sources import Skipped
from qwen3_vl_embed.files.vectors import Origin
from qwen3_vl_embed.items import Embedded
from qwen3_vl_embed.serving.settings import ROOT
from tests.conftest import CHECKPOINT
from tests.test_cli import photos, run  # noqa: F401  (fixtures)

SMALL_PARTS = """
import qwen3_vl_embed.bulk.parts as parts, qwen3_vl_embed.cli.__main__ as main
parts.PART_ROWS = 512
main.app()
"""
ORIGIN = Origin("http://here", {"id": "a", "dimension": 4, "checkpoint": "tiny", "dtype": "float32"}, {})


def held(folder: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("part-*.parquet"))))


@pytest.fixture
def names(tmp_path) -> Path:
    """600 texts of which every hundredth is empty."""
    path = tmp_path / "names.jsonl"
    rows = [{"name": "" if i % 100 == 50 else f"colour {i}", "sku": f"s{i}"} for i in range(600)]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def test_rows_are_the_vectors_of_their_items(run, stack, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    result = run("bulk", photos, "-o", out)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "3 rows in 1 parts in " in result.stderr
    table = held(out)
    assert table["id"].to_pylist() == table["item"].to_pylist() == ["blue.png", "green.png", "red.png"]
    with Client(stack.adapter_url) as client:
        alone = client.embed_image([photos / name for name in table["id"].to_pylist()])
        model = client.model()
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert (vectors * alone).sum(axis=1).min() > 0.99999
    assert table["kind"].to_pylist() == ["image"] * 3
    assert table["error"].null_count == 3
    told = table.schema.metadata
    assert told[b"checkpoint"].decode() == model["checkpoint"]
    assert (told[b"recipe"].decode(), told[b"dtype"], told[b"revision"]) == (model["recipe"]["id"], b"float32", b"None")
    assert told[b"source"].decode() == str(photos)


def test_a_row_that_fails_is_a_row_and_is_retried_when_asked(run, names, tmp_path):  # noqa: F811
    out, job = tmp_path / "out", ("bulk", names, "--text", "name", "--id", "sku", "-o", tmp_path / "out")
    result = run(*job, "--dtype", "float16")
    assert result.exit_code == 1
    assert "Error: 6 rows failed, such as: row 51 of names.jsonl: The text is empty" in result.stderr
    table = held(out)
    assert table["id"].to_pylist() == [f"s{i}" for i in range(600)]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[128]"
    failed = table.filter(pa.compute.is_valid(table["error"]))
    assert failed["id"].to_pylist() == [f"s{i}" for i in range(50, 600, 100)]
    assert {number for row in failed["embedding"].to_pylist() for number in row} == {None}
    assert failed["tokens"].null_count == 6
    assert table["name"].to_pylist() == table["item"].to_pylist()
    assert min(each for each in table["tokens"].to_pylist() if each is not None) >= 0

    assert run(*job, "--dtype", "float16").exit_code == 1  # they are still there
    mended = names.read_bytes().replace(b'"name":""', b'"name":"mended"')
    names.write_bytes(mended)
    assert held(out)["error"].null_count == 594
    again = run(*job, "--dtype", "float16", "--retry-failed")
    assert again.exit_code == 0, again.stderr
    assert "(6 rows in " in again.stderr
    table = held(out)
    assert sorted(table["id"].to_pylist()) == sorted(f"s{i}" for i in range(600))
    assert table["error"].null_count == 600


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_that_was_ended_goes_on_where_it_was(run, stack, tmp_path, number, monkeypatch):  # noqa: F811
    """Twice, at any point: each row is there once, and what was whole stays as it was."""
    monkeypatch.setenv("QWEN3_VL_EMBED_URL", stack.adapter_url)
    lines, out = tmp_path / "many.txt", tmp_path / "out"
    lines.write_text("".join(f"line {i} of {number}\n" for i in range(6000)))
    job = [sys.executable, "-c", SMALL_PARTS, "bulk", str(lines), "-o", str(out)]
    before: dict[Path, bytes] = {}
    for more in (1, 2):
        started = subprocess.Popen(job, cwd=ROOT, stderr=PIPE)
        while len(list(out.glob("part-*"))) < len(before) + more:
            assert started.poll() is None, started.stderr.read()
            time.sleep(0.005)
        started.send_signal(number)
        told = started.communicate()[1].decode()
        assert started.returncode == (-9 if number == signal.SIGKILL else 130), told
        for path, content in before.items():
            assert path.read_bytes() == content
        before = {path: path.read_bytes() for path in out.glob("part-*")}
        ids = held(out)["id"].to_pylist()
        assert len(ids) == len(set(ids)) < 6000
    assert run("bulk", lines, "-o", out).exit_code == 0
    assert sorted(held(out)["id"].to_pylist()) == sorted(f"many.txt:{i}" for i in range(1, 6001))
    assert not list(out.glob(".part-*"))


def test_a_folder_is_of_one_model_and_one_recipe_and_of_one_job_at_a_time(run, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert run("bulk", photos, "-o", out).exit_code == 0
    for flags, sentence in (
        (["--pooling", "mean"], "holds vectors made with the options {}, not {'pooling': 'mean'}"),
        (["--dtype", "float16"], "holds the columns id, kind, item, embedding (fixed_size_list"),
    ):
        refused = run("bulk", photos, "-o", out, *flags)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert sentence in refused.stderr
    with Folder(out).locked():
        assert "Another job is writing into" in run("bulk", photos, "-o", out).stderr
    assert held(out).num_rows == 3


def test_a_folder_is_of_one_source_whose_rows_stay(run, photos, tmp_path):  # noqa: F811
    """By their ids alone other pictures, another column and moved lines would be taken for done."""
    out = tmp_path / "out"
    assert run("bulk", photos, "-o", out).exit_code == 0
    others = shutil.copytree(photos, tmp_path / "others")
    refused = run("bulk", others, "-o", out)
    assert (refused.exit_code, f"holds the rows of {photos}, not of {others}:" in refused.stderr) == (2, True)
    table, out = tmp_path / "t.csv", tmp_path / "texts"
    job = ("bulk", table, "-o", out, "--text")
    table.write_text("name,other\nred,1\nblue,2\n")
    assert run(*job, "name").exit_code == 0
    refused = run(*job, "other")
    assert (refused.exit_code, "--text name, not of" in refused.stderr) == (2, True)
    table.write_text("name,other\nred,1\nblue,2\nteal,3\n")
    grown = run(*job, "name")
    assert (grown.exit_code, "(1 rows in " in grown.stderr) == (0, True)
    table.write_text("name,other\nred,1\npink,9\nblue,2\nteal,3\n")
    for _ in range(2):
        moved = run(*job, "name")
        assert (moved.exit_code, "2 rows were left out: another row" in moved.stderr) == (1, True)
    assert sorted(held(out)["item"].to_pylist()) == ["blue", "red", "teal", "teal"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.csv"], "There is no missing.csv."),
        ([ROOT / "README.md"], "is none of .parquet"),
        ([ROOT, "--text", "a", "--image", "b"], "Either --text or --image"),
        ([ROOT, "--dtype", "float64"], "neither float32 nor float16"),
        ([ROOT, "--url", "http://a", "--url", "http://b"], "Several servers are asked by Ray"),
        ([ROOT / "checkpoints", "--batch-size", "100000"], "The server takes at most"),
    ],
)
def test_what_was_typed_wrong_is_a_sentence(run, tmp_path, arguments, sentence):  # noqa: F811
    result = run("bulk", *arguments, "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr


def test_a_local_model_makes_the_same_vectors(stack, photos):  # noqa: F811
    local = LocalModel(str(CHECKPOINT))
    items = [Item.text("red"), Item.text(""), Item.image(photos / "red.png"), Item.image(photos / "gone.png")]
    here = [each for batch in local.embed_each(items) for each in batch]
    with Client(stack.adapter_url) as client:
        there = [each for batch in client.embed_each(items) for each in batch]
        assert client.model()["id"] == local.model()["id"]
    for ours, theirs in zip(here, there, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, Embedded):
            assert (ours.vector * theirs.vector).sum() > 0.99999
            assert ours.recipe == theirs.recipe
    with pytest.raises(AdapterError, match=r"^options\.prompt: "):  # of all items, so of none
        list(local.embed_each(items, prompt="nonsense"))


def test_what_a_local_model_began_a_server_ends(run, photos, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    (photos / "red.png").rename(tmp_path / "red.png")
    assert run("bulk", photos, "-o", out, "--local-model", CHECKPOINT).exit_code == 0
    (tmp_path / "red.png").rename(photos / "red.png")
    done = run("bulk", photos, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert "(1 rows in " in done.stderr
    assert sorted(held(out)["id"].to_pylist()) == ["blue.png", "green.png", "red.png"]


def test_without_ray_a_sentence(run, photos, tmp_path):  # noqa: F811
    refused = run("bulk", photos, "-o", tmp_path / "out", "--ray", "local")
    assert (refused.exit_code, refused.stderr[:30]) == (2, "Error: `bulk --ray` needs ray:")


def test_one_bad_item_costs_one_more_request_not_one_each(stack):
    """Of a batch of 64 three are bad."""
    asked = []
    with Client(stack.adapter_url) as client:
        client._http.event_hooks = {"request": [lambda request: asked.append(request.url.path)]}
        items = [Item.text("" if i in (5, 6, 63) else f"row {i}") for i in range(64)]
        [results] = client.embed_each(items, batch_size=64)
    assert [i for i, each in enumerate(results) if isinstance(each, ItemError)] == [5, 6, 63]
    assert [each.item for each in results if isinstance(each, Embedded)] == [item for item in items if item.name]
    assert asked.count("/txt/embed") == 4


def made(rows, seed: int = 0):
    """Their vectors, as from a server, by requests of 64."""
    rng, batch = np.random.default_rng(seed), []
    for item in rows:
        batch.append(Embedded(item, rng.normal(size=4).astype(np.float32), "r", 3))
        if len(batch) == 64:
            yield batch
            batch = []
    if batch:
        yield batch


@pytest.mark.faults
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """100,000 rows more take the 8 bytes of an id each, and no more than a third of a row's vector, text and id."""
    peaks = []
    for count in (50_000, 150_000):
        columns = schema(4, "float32", pa.schema([]))
        tracemalloc.start()
        with Parts(Place(tmp_path / str(count), "x", columns, ORIGIN, {})) as parts:
            (tmp_path / str(count)).mkdir()
            for results in made(parts.items(Row(f"row {i}", Item.text(f"text {i}")) for i in range(count))):
                parts.write(results)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert held(tmp_path / str(count)).num_rows == count
    assert peaks[1] - peaks[0] < 100_000 * 30


def test_the_same_id_twice_is_left_out_and_counted(tmp_path):
    rows = [Row("a", Item.text("red")), Row("b", Item.text("blue")), Row("a", Item.text("green")), Skipped("x", "y")]
    with Parts(Place(tmp_path, "x", schema(4, "float32", pa.schema([])), ORIGIN, {})) as parts:
        for results in made(parts.items(rows)):
            parts.write(results)
    assert (parts.done, parts.repeated, parts.skipped) == (2, 1, 1)
    assert held(tmp_path)["item"].to_pylist() == ["red", "blue"]


def test_what_is_held_is_known_by_id_and_item(tmp_path):
    """An address that was signed anew is the same; a name that is not UTF-8 is found again."""
    rows = [("a", "red"), ("b", "http://host/x.png?signature=1"), ("\udcff", "teal")]
    with Parts(Place(tmp_path, "x", schema(4, "float32", pa.schema([])), ORIGIN, {})) as parts:
        for results in made(parts.items(Row(id, Item.text(text)) for id, text in rows)):
            parts.write(results)
    held, count, failed = Folder(tmp_path).held()
    assert (count, failed) == (3, 0)
    again = Parts(Place(tmp_path, "y", schema(4, "float32", pa.schema([])), ORIGIN, {}))
    rows[1] = ("b", "http://host/x.png?signature=2")
    assert list(again.items((Row(id, Item.text(text)) for id, text in rows), held)) == []
    assert again.repeated == 0
    others = [Row("a", Item.text("blue")), Row("b", Item.text("http://host/y.png")), Row("c", Item.text("red"))]
    assert [item.name for item in again.items(others, held)] == ["red"]
    assert again.repeated == 2


def test_the_same_piece_again_makes_the_same_files(tmp_path):
    """What a worker does that does the work of a dead one."""
    rows = [Row(f"{i}", Item.text(f"{i}")) for i in range(100)]
    for stopped in (70, None, None):
        with Parts(Place(tmp_path, "run", schema(4, "float32", pa.schema([])), ORIGIN, {}), "-000001", None) as parts:
            for results in made(parts.items(rows[:stopped])):
                parts.write(results)
    assert held(tmp_path)["id"].to_pylist() == [row.id for row in rows]


def test_a_number_too_large_for_float16_is_an_error_and_no_infinity(tmp_path):
    with Parts(Place(tmp_path, "x", schema(2, "float16", pa.schema([])), ORIGIN, {})) as parts:
        [item] = parts.items([Row("a", Item.text("red"))])
        parts.write([Embedded(item, np.array([1, 7e4], np.float32), "r")])
    assert parts.failed == 1
    assert "too large for float16" in held(tmp_path)["error"][0].as_py()


def test_a_full_disk_is_a_sentence_and_leaves_whole_parts(tmp_path, monkeypatch):
    from qwen3_vl_embed.files import vectors as module
    from qwen3_vl_embed.files.errors import VectorFileError

    monkeypatch.setattr(module, "SPARE", 2**60)
    parts = Parts(Place(tmp_path, "x", schema(4, "float32", pa.schema([])), ORIGIN, {}))
    results = list(made(parts.items(Row(f"{i}", Item.text("red")) for i in range(2000))))
    with pytest.raises(VectorFileError, match="No space left on device"), parts:
        list(map(parts.write, results))
    assert list(tmp_path.iterdir()) == []
    assert (parts.done, parts.failed) == (0, 0)  # what is lost is not counted


def test_ids_are_found_in_any_number():
    ids = Ids(map(str, range(0, 200_000, 2)))
    for i in range(1, 150_000, 2):
        ids.add(str(i))
    assert all((str(i) in ids) == (i < 150_000 or not i % 2) for i in range(0, 200_001, 997))
    assert len(ids) == 100_000 + 75_000


def test_names_that_are_not_utf8_and_columns_of_our_names(run, tmp_path):  # noqa: F811
    import os

    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / os.fsdecode(b"in\xffvalid.png")).write_bytes(swatch("red"))
    assert run("bulk", folder, "-o", tmp_path / "a").exit_code == 0
    assert held(tmp_path / "a")["id"].to_pylist() == [r"in\udcffvalid.png"]
    (tmp_path / "t.jsonl").write_bytes(b'{"t": "red", "error": "mine", "tokens": 7}\n')
    assert run("bulk", tmp_path / "t.jsonl", "--text", "t", "-o", tmp_path / "b").exit_code == 0
    [row] = held(tmp_path / "b").drop(["embedding"]).to_pylist()
    assert (row["source_error"], row["source_tokens"], row["error"]) == ("mine", "7", None)
