"""How items are put into requests, and whom an error is blamed on."""

from pathlib import Path

import numpy as np
import pytest

from qwen3_vl_embed import AdapterError, Item, ItemError, protocol
from qwen3_vl_embed import batches as batching
from qwen3_vl_embed.batches import Stack, batches
from qwen3_vl_embed.items import Embedded

RED, BLUE = Item.text("red"), Item.text("blue")


def photo(path: Path, size: int) -> Item:
    path.write_bytes(bytes(size))
    return Item.image(path)


def test_batches_keep_the_order_and_do_not_mix_kinds(tmp_path):
    image = photo(tmp_path / "a.png", 10)
    items = [RED, BLUE, RED, image, image, BLUE]
    assert list(batches(items, 2)) == [[RED, BLUE], [RED], [image, image], [BLUE]]


def test_batches_stay_below_what_an_adapter_accepts(tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "BATCH_BYTES", 100)
    small, large = photo(tmp_path / "small.png", 60), photo(tmp_path / "large.png", 500)
    assert list(batches([small, large, small, small], 64)) == [[small], [large], [small], [small]]
    assert list(batches([], 64)) == []


def test_vectors_of_two_lengths_are_no_list_of_vectors():
    """Of a server whose texts and images, or whose model before and after, differ."""
    stack = Stack()
    stack.add([Embedded(RED, np.ones(64, np.float32))])
    with pytest.raises(AdapterError, match="of 64 numbers, and then of 32"):
        stack.add([Embedded(BLUE, np.ones(32, np.float32))])


@pytest.mark.parametrize(
    ("error", "batch", "kind", "sentence"),
    [
        (AdapterError("it is empty.", 400, "input[1]"), [RED, BLUE], ItemError, '"blue": it is empty.'),
        (AdapterError("it is empty.", 400, "input"), [RED], ItemError, '"red": it is empty.'),
        (AdapterError("no.", 400), [RED], ItemError, '"red": no.'),  # a server that tells no more
        (AdapterError("pooling is wrong.", 400, "pooling"), [RED], AdapterError, "pooling is wrong."),
        (AdapterError("options.layer: no.", 400, "input[1]"), [RED, BLUE], AdapterError, "options.layer: no."),
        (AdapterError("options: 9 bytes.", 400, "input[1]"), [RED, BLUE], AdapterError, "options: 9 bytes."),
        (AdapterError("pooling is wrong.", 400), [RED, BLUE], AdapterError, "pooling is wrong."),
        (AdapterError("timeout.", 504), [RED, BLUE], AdapterError, "timeout. Try a batch size below 2."),
        (AdapterError("too large.", 413), [RED], ItemError, '"red": too large.'),
        (AdapterError("timeout.", 504), [RED], AdapterError, "timeout."),
        (AdapterError("no model.", 503, "input[1]"), [RED, BLUE], AdapterError, "no model."),
    ],
)
def test_blame(error, batch, kind, sentence):
    blamed = protocol.blamed(error, batch)
    assert type(blamed) is kind
    assert str(blamed) == sentence
