"""What a model's warm-up says of lists: how many items are answered in time at best."""

import numpy as np
import pytest

from client.items import Embedding, EmbedInput, Recipe
from client.settings import LONGEST_SECONDS
from client.triton import pace as pace_module
from client.triton.pace import DEADLINE_SECONDS, SLACK, Pace, deadline

TEXT, IMAGE = EmbedInput(b"red"), EmbedInput(image=b"a file")


def model(**seconds: float) -> dict:
    return {"id": "m", "warm_up": {"pass": 0.0, "text": 0.0, "image": 0.0, "batch": 64} | seconds}


def answer(model: dict, seconds: float, batch_items: int = 1) -> Embedding:
    return Embedding(np.ones(4, np.float32), model, Recipe("r"), forward_ms=seconds * 1e3, batch_items=batch_items)


@pytest.mark.parametrize(
    ("seconds", "texts", "images"),
    [
        ({"text": 30.0, "image": 40.0}, 1, 1),
        ({"text": 3.0, "image": 12.0}, 16, 4),
        ({"pass": 30.0}, 1, 1),  # the second one is in a pass of its own
        ({"pass": 24.0}, 65, 65),
        ({"pass": 100.0, "text": 1.0, "image": 1.0}, 1, 1),  # a lone one always may try
        ({"text": 0.002, "image": 0.004}, 256, 256),
    ],
)
def test_as_many_as_fit_into_48_seconds(seconds, texts, images):
    found = Pace().most(model(**seconds), False, 48, 256), Pace().most(model(**seconds), True, 48, 256)
    assert found == (texts, images)


@pytest.mark.parametrize("unknown", [None, {"id": "of another version"}])
def test_nothing_is_known_of_a_model_that_says_nothing(unknown):
    pace = Pace()
    assert pace.most(unknown, False, 48, 256) == 256
    if unknown:
        pace.learn(TEXT, answer(unknown, 30))
        assert pace.most(unknown, False, 48, 256) == 256


def test_a_warm_up_among_neighbours_is_forgotten_once_it_was_faster():
    pace, served = Pace(), model(text=8.0, image=8.0)
    assert pace.most(served, True, 48, 256) == 6
    pace.learn(TEXT, answer(served, 12))  # slower now: at its best it is what it was
    assert pace.most(served, True, 48, 256) == 6
    pace.learn(IMAGE, answer(served, 2))
    assert pace.most(served, True, 48, 256) == 24
    assert pace.most(model(text=4.0, image=4.0), True, 48, 256) == 12  # another model, which has shown nothing yet


def test_neither_company_nor_a_lower_layer_says_how_fast_the_model_is():
    pace, served = Pace(), model(text=8.0)
    pace.learn(TEXT, answer(served, 1, batch_items=2))
    pace.learn(EmbedInput(b"ready", options=b'{"layer":0}'), answer(served, 0.001))
    assert pace.most(served, False, 48, 256) == 6


@pytest.mark.parametrize(
    ("seconds", "items", "expected"),
    [
        ({"text": 0.002, "image": 0.004}, [], 60),
        ({"text": 10.0, "image": 15.0}, [], 60),
        ({"text": 10.0, "image": 41.0}, [], 164),  # the 4B's swatch among neighbours (docs/log.md)
        ({"pass": 30.0}, [], 120),
        ({"pass": 3.0, "image": 5.0}, [EmbedInput(image=b"a photo", pixels=2**20)], SLACK * (3 + 16 * 5)),
        ({"pass": 3.0, "image": 5.0}, [EmbedInput(image=b"the same", pixels=40_000_000)], SLACK * (3 + 32 * 5)),
        ({"pass": 3.0, "image": 5.0}, [TEXT] * 64 + [EmbedInput(b"a " * 4000)], SLACK * (3 + 100 * 5)),
        ({"pass": 900.0}, [], LONGEST_SECONDS),
    ],
)
def test_a_deadline_that_nobody_set_is_one_that_each_item_can_keep(seconds, items, expected):
    assert deadline(model(**seconds)["warm_up"], items) == pytest.approx(expected)
    assert deadline(None, items) == DEADLINE_SECONDS


def test_a_model_that_is_too_slow_for_a_deadline_is_tried_seldom_and_found_out_when_it_is_fast(monkeypatch):
    pace, served, now = Pace(), model(text=30.0), 1000.0
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now)
    assert pace.hopeless(served, False, 20)
    assert not pace.hopeless(served, False, 31)
    assert not pace.hopeless(None, False, 20)
    assert pace.hopeless(served, False, 20)
    now += 100 * 30 + 1
    assert not pace.hopeless(served, False, 20)  # one is tried
    assert pace.hopeless(served, False, 20)
    pace.learn(TEXT, answer(served, 3))
    assert not pace.hopeless(served, False, 20)
