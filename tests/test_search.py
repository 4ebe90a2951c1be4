"""Indexes and queries: exact is exact, a percentile is what it says, exports hold the same, one recipe an index."""

import errno
import os
import resource
import signal
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3_vl_embed import AdapterError, Client
from qwen3_vl_embed.bulk.parts import Folder
from qwen3_vl_embed.cli.validation import NAMES, swatch
from qwen3_vl_embed.files.errors import SourceError, VectorFileError
from qwen3_vl_embed.search import index as module
from qwen3_vl_embed.search.index import Index, build, to_faiss, to_lancedb
from qwen3_vl_embed.search.queries import Query, Searcher
from qwen3_vl_embed.search.queries import swatch as picked
from tests.test_cli import rows, run  # noqa: F401  (a fixture)

MODEL = {"id": "a", "checkpoint": "tiny"}


def spread(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Unit rows around a common direction and in few others, as embeddings are: float32 (count, dimension)."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(count, 12)) @ rng.normal(size=(12, dimension))
    vectors = few + 3 * rng.normal(size=dimension) + 0.2 * rng.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write(path: Path, vectors: np.ndarray, kind: str = "text", root: str | None = None, about=None, **columns) -> Path:
    """A file of vectors as `bulk` writes it."""
    names = [f"{kind} {i}" for i in range(len(vectors))]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"id": names, "kind": [kind] * len(names), "item": names, "embedding": lists} | columns)
    told = {"about": orjson.dumps(about or {"model": MODEL, "options": {}})} | ({"source": root} if root else {})
    pq.write_table(table.replace_schema_metadata(told), path)
    return path


@pytest.fixture
def both(tmp_path) -> Index:
    """600 texts and 400 images, 32 numbers each."""
    files = [write(tmp_path / f"{kind}.parquet", spread(n, 32, n), kind) for kind, n in (("text", 600), ("image", 400))]
    return build(files, tmp_path / "index")


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("kind", [None, "image"])
def test_exact_search_is_the_definition(both, centred, kind):
    query = spread(1, 32, 9)[0]
    vectors = np.array(both.vectors, np.float64)
    if centred:
        for each in ("text", "image"):
            vectors[both.kinds == each] -= vectors[both.kinds == each].mean(axis=0)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    order = [row for row in np.argsort(-cosines) if kind in (None, both.kinds[row])][:25]
    hits = both.nearest(query, 25, centred, kind)
    np.testing.assert_allclose([hit.cosine for hit in hits], cosines[order], atol=1e-5)
    assert [hit.row for hit in hits] == order


def test_rows_keep_their_names_and_failed_ones_are_left_out(tmp_path):
    vectors = spread(10, 8)
    errors = pa.array([None, "bad", *[None] * 8], pa.string())
    index = build([write(tmp_path / "a.parquet", 7 * vectors, error=errors, price=list(range(10)))], tmp_path / "index")
    assert len(index) == 9
    assert index.rows["price"].to_pylist() == [0, *range(2, 10)]
    np.testing.assert_allclose(index.vectors, np.delete(vectors, 1, axis=0), atol=1e-6)


def test_a_part_whose_rows_all_failed_adds_none(tmp_path):
    errors = pa.array(["bad"] * 5, pa.string())
    files = [write(tmp_path / "a.parquet", spread(5, 8), error=errors), write(tmp_path / "b.parquet", spread(3, 8))]
    assert len(build(files, tmp_path / "index")) == 3
    with pytest.raises(SourceError, match="there is no vector in it"):
        build(files[:1], tmp_path / "index")


def test_an_index_is_of_one_model_and_one_recipe(tmp_path):
    one = write(tmp_path / "1.parquet", spread(4, 8))
    for about in ({"model": {"id": "b"}, "options": {}}, {"model": MODEL, "options": {"pooling": "mean"}}):
        other = write(tmp_path / "2.parquet", spread(4, 8), about=about)
        with pytest.raises(SourceError, match=r"differ in their (model|options)"):
            build([one, other], tmp_path / "index")


@pytest.mark.parametrize("what", ["nothing", "no vectors", "no number", "zeros", "other sizes"])
def test_what_cannot_be_indexed_is_a_sentence(tmp_path, what):
    """An earlier index is still there then, and whoever has it open."""
    path, paths = tmp_path / "x.parquet", [tmp_path / "x.parquet"]
    earlier = build([write(tmp_path / "good.parquet", spread(4, 8))], tmp_path / "index")
    if what == "zeros":
        write(path, np.zeros((3, 8), np.float32))
    if what == "other sizes":
        paths += [write(path, spread(3, 4)), tmp_path / "good.parquet"]
    if what == "no vectors":
        pq.write_table(pa.table({"a": [1]}), path)
    if what == "no number":
        write(path, np.full((3, 4), np.nan, np.float32))
    sentence = {
        "nothing": "is no folder of part files",
        "no vectors": "has no vectors",
        "no number": "a number that is none",
        "zeros": "a vector of zeros, which has no direction",
        "other sizes": "has vectors of 4 numbers, and .* of 8",
    }
    with pytest.raises(SourceError, match=sentence[what]):
        build(paths, tmp_path / "index")
    assert np.array_equal(Index(tmp_path / "index").vectors, earlier.vectors)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"kind": None}, "no strings in a column `kind`"),
        ({"item": [1, 2, 3]}, "no strings in a column `item`"),
        ({"item": ["a", None, "c"]}, "a row without item"),
        ({"kind": ["text", "Image", "text"]}, "a row of the kind Image; the kinds are text and image"),
        ({"embedding": pa.array([[1.0] * 8, None, [2.0] * 8], pa.list_(pa.float32(), 8))}, "cannot be indexed"),
        ({"embedding": pa.array([["a"] * 8] * 3, pa.list_(pa.string(), 8))}, "has no vectors"),
        ({"root": ["/"] * 3}, "a column `root`"),
        ({"price": ["x"] * 3}, "cannot be indexed"),
        ({"about": b"{x"}, "no JSON object"),
        ({"about": b'{"model": [1]}'}, "no JSON object"),
    ],
)
def test_a_table_of_another_maker_is_a_sentence(tmp_path, columns, sentence):
    good = write(tmp_path / "good.parquet", spread(4, 8), about={}, price=[1, 2, 3, 4])
    table = pq.read_table(write(tmp_path / "x.parquet", spread(3, 8), about={})).drop_columns(["id"])
    if about := columns.pop("about", None):
        table = table.replace_schema_metadata({"about": about})
    for name, cells in columns.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table if cells is None else table.append_column(name, pa.array(cells))
    try:
        pq.write_table(table, tmp_path / "x.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("pyarrow writes rows without a vector since 25")
    with pytest.raises(SourceError, match=sentence):
        build([good, tmp_path / "x.parquet"], tmp_path / "index")


def test_ids_of_numbers_and_ids_that_lack(tmp_path):
    table = pq.read_table(write(tmp_path / "x.parquet", spread(3, 8))).drop_columns(["id"])
    pq.write_table(table.append_column("id", pa.array([7, None, 9])), tmp_path / "x.parquet")
    assert build([tmp_path / "x.parquet"], tmp_path / "index").rows["id"].to_pylist() == ["7", "text 1", "9"]


def test_an_index_that_a_disk_has_no_room_for_is_an_error(tmp_path):
    """Written through a mapping it was the end of the process, by SIGBUS."""
    path = write(tmp_path / "x.parquet", spread(5000, 32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000 * 32, before[1]))
    try:
        with pytest.raises(VectorFileError, match="File too large"):
            build([path], tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_new_index_is_none_of_those_who_have_the_old_one_open(tmp_path):
    """A page is served from it. Its file was cut off beneath it."""
    old = build([write(tmp_path / "old.parquet", spread(4000, 8))], tmp_path / "index")
    before = np.array(old.vectors)
    build([write(tmp_path / "new.parquet", spread(3, 8, 1))], tmp_path / "index")
    assert (tmp_path / "index" / "vectors.npy").stat().st_size < before.nbytes
    assert np.array_equal(old.vectors, before)


def test_vectors_of_any_length_are_of_length_1(tmp_path):
    """Squares of numbers this small, or large, are 0 or infinite in float32."""
    for scale in (1e-30, 1e30):
        index = build([write(tmp_path / "x.parquet", spread(4, 8) * np.float32(scale))], tmp_path / "index")
        np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)


def test_an_approximate_index_leads_to_nearly_all_that_is_nearest(tmp_path, monkeypatch):
    """And its cosines are exact; its own word for its recall is about right."""
    monkeypatch.setattr(module, "TRAINED_ON", 2000)
    index = build([write(tmp_path / "a.parquet", spread(5000, 64))], tmp_path / "index", ann_from=1000)
    assert index.ann is not None
    queries, found = spread(40, 64, 0)[:40], 0
    for query in queries:
        near, exact = index.nearest(query, 10), index.nearest(query, 10, exact=True)
        found += len({hit.row for hit in near} & {hit.row for hit in exact})
        for hit in near:
            assert abs(hit.cosine - index.vectors[hit.row] @ query) < 1e-5
    assert found / 400 > 0.9
    assert index.ann["recall"] > 0.9


@pytest.mark.parametrize("how", [{"kind": "image"}, {"centred": True}, {"centred": True, "kind": "image"}])
def test_what_no_candidate_is_of_is_found_all_the_same(tmp_path, how):
    """All candidates of a text are texts where the two kinds lie apart: pictures, and centred cosines, are compared."""
    texts, images = spread(3000, 32), spread(3000, 32, 1)  # each around a direction of its own
    files = [write(tmp_path / "a.parquet", texts), write(tmp_path / "b.parquet", images, "image")]
    index = build(files, tmp_path / "index", ann_from=1000)
    for query in np.array(texts[:5]):
        near, exact = index.nearest(query, 10, **how), index.nearest(query, 10, exact=True, **how)
        assert len(near) == 10
        assert [hit.row for hit in near] == [hit.row for hit in exact]


def test_exports_find_what_we_find(both, tmp_path):
    import faiss
    import lancedb

    query = np.array(both.vectors[7])
    ours = [hit.row for hit in both.nearest(query, 10)]
    to_faiss(both, tmp_path / "flat.faiss")
    assert faiss.read_index(str(tmp_path / "flat.faiss")).search(query[None], 10)[1][0].tolist() == ours
    to_lancedb(both, tmp_path / "lance")
    table = lancedb.connect(tmp_path / "lance").open_table("vectors")
    found = table.search(query).distance_type("cosine").limit(10).to_arrow()
    assert found["id"].to_pylist() == [both.rows["id"][row].as_py() for row in ours]
    assert table.count_rows() == len(both)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["check_room", "_write_faiss", "np.savez"])
def test_a_disk_that_is_full_leaves_the_earlier_index_and_nothing_else(tmp_path, step, monkeypatch):
    folder = tmp_path / "index"
    build([write(tmp_path / "a.parquet", spread(30, 8))], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = write(tmp_path / "b.parquet", spread(300, 8, 1))
    monkeypatch.setattr(f"qwen3_vl_embed.search.index.{step}", lambda *_, **__: full())
    with pytest.raises(VectorFileError, match=r"index cannot be written \(No space left on device\)"):
        build([other], folder, ann_from=100)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_export_that_cannot_be_written_is_a_sentence(both, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(VectorFileError, match="lance cannot be written"):
        to_lancedb(both, tmp_path / "file" / "lance")
    earlier = tmp_path / "flat.faiss"
    earlier.write_text("an earlier one")
    monkeypatch.setattr(module, "_write_faiss", lambda index, file: (file.write(b"half of it"), full()))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VectorFileError, match=r"flat.faiss cannot be written"):
        to_faiss(both, earlier)
    assert (sorted(tmp_path.iterdir()), earlier.read_text()) == (before, "an earlier one")


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    """Which no table's writer takes."""
    odd = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(VectorFileError, match="its name is not UTF-8"):
        build([write(tmp_path / "a.parquet", spread(3, 8))], odd)
    with pytest.raises(VectorFileError, match="its name is not UTF-8"), Folder(odd).locked():
        pass
    odd.mkdir()
    (tmp_path / "a.parquet").rename(odd / "part-0.parquet")
    with pytest.raises(SourceError, match="cannot be read"):
        build([odd], tmp_path / "index")


def test_a_part_whose_bytes_are_broken_is_named(tmp_path):
    good, bad = (write(tmp_path / f"{name}.parquet", spread(3000, 8)) for name in ("good", "bad"))
    content = bytearray(bad.read_bytes())
    content[200 : len(content) // 2 : 20] = bytes(len(content[200 : len(content) // 2 : 20]))
    bad.write_bytes(content)
    with pytest.raises(SourceError, match=r"bad\.parquet cannot be indexed"):
        build([good, bad], tmp_path / "index")


def test_duplicates_are_groups_of_one_kind(tmp_path):
    vectors = spread(60, 16)
    vectors[[5, 9]] = vectors[2]
    vectors[20] = vectors[30]
    files = [write(tmp_path / "a.parquet", vectors), write(tmp_path / "b.parquet", vectors[:1], "image")]
    assert build(files, tmp_path / "index").duplicates(0.99999) == [[2, 5, 9], [20, 30]]


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "link.png", "deep/../../secret.png", "", "\0"])
def test_no_picture_from_outside_of_the_folder(tmp_path, path):
    """Whatever the rows say, and wherever a link in the folder leads."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(swatch("red"))
    (folder / "red.png").write_bytes(swatch("red"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    file = write(tmp_path / "a.parquet", spread(2, 8), "image", str(folder), item=["red.png", path])
    index = build([file], tmp_path / "index")
    assert index.place(0) == folder / "red.png"
    assert index.place(1) is None


@pytest.fixture(scope="module")
def colours(stack, tmp_path_factory) -> Path:
    """An index of the eleven basic colours' swatches (110 rows) and names (110)."""
    from qwen3_vl_embed.cli.__main__ import app
    from tests.test_cli import runner

    place = tmp_path_factory.mktemp("colours")
    (place / "pictures").mkdir()
    for name in NAMES:
        for number in range(10):
            (place / "pictures" / f"{name} {number}.png").write_bytes(swatch(name))
    (place / "names.txt").write_text("".join(f"{name}\n" for name in NAMES * 10))
    for source in ("pictures", "names.txt"):
        done = runner.invoke(
            app, ["bulk", str(place / source), "-o", str(place / f"of {source}"), "--url", stack.adapter_url]
        )
        assert done.exit_code == 0, done.stderr
    build([place / "of pictures", place / "of names.txt"], place / "index")
    return place / "index"


@pytest.fixture
def searcher(stack, colours):
    with Client(stack.adapter_url) as client:
        yield Searcher(Index(colours), client)


def named(searcher: Searcher, query: Query, count: int = 10) -> list[str]:
    found = searcher.search(query, count)
    return [searcher.index.rows["item"][hit.row].as_py().partition(" ")[0].removesuffix(".png") for hit in found.hits]


@pytest.mark.parametrize("centred", [False, True])
def test_words_pictures_and_colours_find_their_own(searcher, centred):
    for name in ("red", "green", "blue"):
        assert set(named(searcher, Query(name, kind="image", centred=centred))) == {name}
        assert set(named(searcher, Query(image=swatch(name), kind="image", centred=centred))) == {name}
        assert set(named(searcher, Query(image=swatch(name), kind="text", centred=centred))) == {name}
    assert set(named(searcher, Query(image=picked("#0000ff"), kind="image", centred=centred))) == {"blue"}


def test_the_slider_leads_from_the_picture_to_the_words(searcher):
    at = {w: named(searcher, Query("red", swatch("blue"), words=w, kind="image"), 10) for w in (0.0, 1.0)}
    assert (set(at[0.0]), set(at[1.0])) == ({"blue"}, {"red"})
    mixed = named(searcher, Query("red", swatch("blue"), words=0.5, kind="image"), 40)
    assert {"red", "blue", "purple"} & set(mixed)


def test_not_moves_away(searcher):
    def cosine(without: str) -> float:
        found = searcher.search(Query("purple", without=without, kind="image", centred=True), 110)
        return max(hit.cosine for hit in found.hits if "blue" in searcher.index.rows["item"][hit.row].as_py())

    assert cosine("blue") < cosine("")


def test_more_like_a_row_leaves_the_row_out(searcher):
    found = searcher.search(Query(like=5), 9)
    assert 5 not in {hit.row for hit in found.hits}
    assert len(set(named(searcher, Query(like=5, kind="image"), 9))) == 1


def test_a_percentile_is_the_share_of_random_pairs_below(searcher):
    """Counted over all pairs of a name and a swatch that there are."""
    index = searcher.index
    texts, images = index.vectors[index.kinds == "text"], index.vectors[index.kinds == "image"]
    pairs = (texts @ images.T).ravel()
    found = searcher.search(Query("teal", kind="image"), 110)
    assert found.percentiles == sorted(found.percentiles, reverse=True)
    for hit, percentile in zip(found.hits, found.percentiles, strict=True):
        assert percentile == pytest.approx(
            100 * (pairs < hit.cosine).mean(), abs=12
        )  # halves of the rows stand for all


def test_where_the_index_has_no_texts_others_stand_for_them(stack, tmp_path, colours):
    whole = Index(colours)
    images = pq.read_table(next((colours.parent / "of pictures").glob("part-*")))
    pq.write_table(images, tmp_path / "images.parquet")
    index = build([tmp_path / "images.parquet"], tmp_path / "index")
    with Client(stack.adapter_url) as client:
        found = Searcher(index, client).search(Query("red", centred=True), 3)
    assert all(percentile is not None for percentile in found.percentiles)
    assert len(index) < len(whole)


def test_another_model_than_the_indexs_is_refused(stack, both):
    with (
        Client(stack.adapter_url) as client,
        pytest.raises(AdapterError, match=r"has another model than made the index .*, which differs in content, "),
    ):
        Searcher(both, client).search(Query("red"), 3)


def test_the_commands(run, colours, tmp_path):  # noqa: F811
    got = rows(run("search", "red", "--index", colours, "-n", 3))
    assert [set(row) for row in got] == [{"id", "kind", "item", "cosine", "percentile"}] * 3
    like = got[0]["id"]
    assert len(rows(run("search", "--like", like, "--index", colours, "-n", 5))) == 4
    assert len(rows(run("search", "--colour", "#ff0000", "--index", colours))) == 10
    groups = [orjson.loads(line) for line in run("search", "--duplicates", 0.9999, "-i", colours).stdout.splitlines()]
    assert sorted(map(len, groups)) == [10] * 22
    made = run(
        "index",
        colours.parent / "of pictures",
        "-o",
        tmp_path / "i",
        "--faiss",
        tmp_path / "f",
        "--lancedb",
        tmp_path / "l",
    )
    assert "110 vectors of 128 numbers in " in made.stderr
    for flag in ("--output", "--faiss", "--lancedb"):
        refused = run("index", colours.parent / "of pictures", "-o", tmp_path / "i", flag, "/proc/none/x")
        assert refused.exit_code == 2
        assert refused.stderr.startswith("Error: /proc/none/x cannot be written")
        assert len(refused.stderr.splitlines()) == 1
    assert (tmp_path / "f").stat().st_size > 110 * 128 * 4
    assert list((tmp_path / "l").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--index", "nowhere"], "nowhere holds no index that can be read"),
        ([], "What is to be found?"),
        (["--like", "no such id"], "The index has no row no such id."),
        ([""], "What is to be found?"),
        (["--colour", "red"], "red is no colour"),
        (["--image", "/dev/zero"], "it is no file"),
        (["--colour", "#ff0000", "--like", "x"], "One of --image"),
        (["--image", "missing.png"], "missing.png"),
    ],
)
def test_what_was_typed_wrong_is_a_sentence(run, colours, arguments, sentence):  # noqa: F811
    result = run("search", *arguments, *([] if "--index" in arguments else ["--index", colours]))
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
