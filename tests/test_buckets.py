"""The path of a GPU on a CPU: attention by offsets, prefixes in it, and small batches in few recorded sizes.

The kernel is plain torch (`varlen.py`), and a recording runs the pass again over the bucket's own tensors: what a CUDA
graph does, which reads the same memory each time.
"""

from functools import partial

import numpy as np
import pytest
import torch

from embedder import CaptureFailed, Embedder, EmbedderConfig, EmbedInput, Options
from embedder.forward import buckets
from embedder.forward.buckets import IMAGES, TEXTS, Recorded, bucket_of
from embedder.forward.packing import pack
from embedder.forward.replay import Replay
from embedder.warmup import capture, full_pass, of_every_bucket, picture
from tests.reference import cosine, png, random_checkpoint
from tests.varlen import use_varlen

SAME = 0.99999
TEXT, SWATCH = EmbedInput(text="red"), EmbedInput(image=picture((244, 244)))
LAST = frozenset([4])  # the layers of the tiny checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def plain(folder):
    """As a CPU does it, nothing replayed."""
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", graphs=False))


@pytest.fixture(scope="module")
def embedder(folder):
    """As a GPU does it."""
    with pytest.MonkeyPatch.context() as patch:
        use_varlen(patch)
        yield recording(Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu")))


def recording(embedder: Embedder, record=lambda run, _: run) -> Embedder:
    model = embedder.model
    model.replay = Replay(model._forward, partial(Recorded, record=record), bucket_of, model.final_norm, fatal=True)
    return embedder


def texts(count: int, **options) -> list[EmbedInput]:
    words = ("red", "dark teal", "a longer sentence, with punctuation!", "x")
    return [EmbedInput(text=words[i % 4] * (1 + i // 4), options=Options(**options)) for i in range(count)]


def swatches(count: int, **options) -> list[EmbedInput]:
    return [EmbedInput(image=png((244, 244), seed), options=Options(**options)) for seed in range(count)]


def same(ours: list, theirs: list) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert cosine(one.vector, other.vector) >= SAME


PREFIX = {"prompt": "embedding"}
BATCHES = {
    "a name": texts(1),
    "three names": texts(3),
    "nine names": texts(9),
    "a swatch": swatches(1),
    "three swatches": swatches(3),
    "a name after a prefix": texts(1, **PREFIX),
    "names after a prefix": texts(5, **PREFIX),
    "swatches after a prefix": swatches(2, **PREFIX),
    "some after a prefix": [*texts(3), *texts(2, **PREFIX)],
    "mean": texts(3, pooling="mean"),
    "mean of images": swatches(2, pooling="mean"),
    "an inner layer": texts(3, layer=2),
    "the layer before the MLP": swatches(3, layer="attn"),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_whatever_was_in_a_bucket_before(embedder, plain, batch):
    """Recorded with one batch, then replayed with others: each gets the vectors of an ordinary pass."""
    expected = plain.embed(batch)
    same(embedder.embed(batch), expected)  # by offsets, not replayed
    before = embedder.model.replay.replayed
    with embedder.model.capturing():
        embedder.embed(batch)
    for again in (batch, batch[::-1], batch[:1], batch):
        same(embedder.embed(again), plain.embed(again))
    assert embedder.model.replay.replayed >= before + 3
    assert embedder.counts["replayed_passes"] == embedder.model.replay.replayed
    assert embedder.counts["recordings"] == len(embedder.model.replay.captured)


@pytest.mark.parametrize("options", [PREFIX, {"instruction": "Name the colour."}, {"prompt": "embedding", "layer": 2}])
def test_prefixes_of_any_company_by_offsets(embedder, plain, options):
    batch = [*texts(3), *texts(3, **options), *swatches(1, **options), *texts(2, instruction="Another one, longer.")]
    same(embedder.embed(batch), plain.embed(batch))


def test_a_warm_up_records_every_bucket_once_and_all_batches_find_one(folder, plain, monkeypatch):
    use_varlen(monkeypatch)
    monkeypatch.setattr(buckets, "IMAGES", (2, 4))
    monkeypatch.setattr(buckets, "TEXTS", (64, 128, 256))
    monkeypatch.setattr("embedder.forward.model.WORTH", 100)
    embedder = recording(Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu")))
    capture(embedder, of_every_bucket(embedder, TEXT, SWATCH), 600)
    captured = list(embedder.model.replay.captured)
    sizes = [bucket.images or bucket.tokens for bucket in captured]
    assert sizes == [4, 2, 256, 128, 64, 256]  # the largest first; the last one is for longer texts
    replayed = embedder.model.replay.replayed
    batches = [*(texts(count) for count in range(1, 6)), *(swatches(count) for count in range(1, 5))]
    batches.append([EmbedInput(text="red " * 70)])
    assert embedder.prepare(batches[-1][0]).sequence.own > 128
    for batch in batches:
        same(embedder.embed(batch), plain.embed(batch))
    assert embedder.model.replay.replayed == replayed + len(batches)
    mixed = [batch[0] for batch in batches[-2:]] + batches[0]
    same(embedder.embed(mixed), plain.embed(mixed))
    assert embedder.model.replay.replayed == replayed + len(batches) + 3  # a pass for each kind
    assert list(embedder.model.replay.captured) == captured  # no caller's pass is recorded


def sequence_pack(embedder, items):
    return pack([embedder.prepare(item).sequence for item in items])


def test_which_bucket(embedder):
    def found(items, rows=None):
        packed = sequence_pack(embedder, items)
        return bucket_of(packed, LAST, torch.zeros(rows or len(items), dtype=torch.int64))

    one, two = found(texts(1)), found(texts(2))
    assert one.tokens == min(size for size in TEXTS if size > len(embedder.prepare(texts(1)[0]).sequence))
    assert (one.sequences, one.rows, one.images, one.kind.prefix) == (one.tokens // 8, one.tokens // 8, 0, ())
    assert two.tokens > one.tokens
    assert found(texts(2), rows=7).rows == two.tokens  # mean
    assert (found(swatches(5)).images, found(swatches(5)).sequences) == (6, 6)
    assert found(swatches(3)).kind.grid == (16, 16)
    assert 0 <= found(swatches(1)).tokens - embedder.prepare(swatches(1)[0]).sequence.own < 4
    assert found(texts(1, **PREFIX)).kind.prefix == embedder.prepare(texts(1, **PREFIX)[0]).sequence.prefix
    assert found(texts(400)) is None  # too many tokens
    assert found([*swatches(1), EmbedInput(image=png((64, 64)))]) is None  # two sizes of images
    assert found(swatches(IMAGES[-1] + 1)) is None
    assert found([*swatches(2), *texts(1)]) is None  # they go apart
    assert found([*texts(1, **PREFIX), *texts(1, instruction="Name the colour of it.")]) is None  # two prefixes
    assert bucket_of(sequence_pack(embedder, texts(1)), LAST, None) is None


def test_a_capture_that_fails_ends_the_process_and_one_without_memory_does_not(folder, monkeypatch):
    use_varlen(monkeypatch)

    def failing(error):
        def record(*_):
            raise error

        return recording(Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu")), record)

    broken = failing(RuntimeError("operation not permitted when stream is capturing"))
    with broken.model.capturing(), pytest.raises(CaptureFailed, match="not permitted when stream is capturing"):
        broken.embed([TEXT])
    short = failing(torch.OutOfMemoryError("planted"))
    with short.model.capturing():
        vector = short.embed([TEXT])[0].vector
    np.testing.assert_array_equal(short.embed([TEXT])[0].vector, vector)
    assert not short.model.replay.captured


def test_a_full_pass_is_one_and_full(plain, monkeypatch):
    monkeypatch.setattr(plain, "batch_tokens", 500)
    before = dict(plain.counts)
    batch = full_pass(plain)
    plain.embed(batch)
    tokens = plain.counts["tokens"] - before["tokens"]
    assert plain.counts["passes"] == before["passes"] + 1
    assert 500 - tokens // len(batch) < tokens <= 500
