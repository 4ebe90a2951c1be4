"""Preparing beside computing: every request is answered once, with its own vectors, whatever the others do."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from embedder import Abandoned, Embedder, EmbedderConfig, EmbedInput, InferenceFailed, InvalidInput
from embedder import pipeline as module
from embedder.errors import LOST
from embedder.forward.device import Arriving
from embedder.pipeline import Pipeline, Request
from tests.conftest import CHECKPOINT
from tests.reference import cosine, png
from tests.waits import LIMIT_SECONDS, until

RED, SWATCH, BROKEN = EmbedInput(text="red"), EmbedInput(image=png()), EmbedInput(image=b"\x89PNG no")


@pytest.fixture(scope="module")
def config():
    return EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu", pipeline=True)


@pytest.fixture
def embedder(config):
    return Embedder.load(config)


class Caller:
    """Sends requests and collects what comes back."""

    def __init__(self, pipeline):
        self.pipeline, self.answers = pipeline, {}

    def send(self, name, inputs, given_up=lambda: False, since=None):
        def reply(answers):
            assert name not in self.answers, "answered twice"
            self.answers[name] = answers

        extra = {} if since is None else {"since": since}
        self.pipeline.submit(Request(inputs, reply, given_up, **extra))


def test_every_request_gets_its_own_answers(embedder):
    expected = {kind: embedder.embed([item])[0].vector for kind, item in (("red", RED), ("swatch", SWATCH))}
    pipeline = Pipeline(embedder, 16)
    callers = [Caller(pipeline) for _ in range(4)]

    def run(caller):
        for n in range(20):
            caller.send(n, [[RED], [SWATCH], [SWATCH, RED], [BROKEN, RED], [InvalidInput("x")]][n % 5])

    threads = [threading.Thread(target=run, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipeline.close()
    for caller in callers:
        assert sorted(caller.answers) == list(range(20))
        for n, answers in caller.answers.items():
            if n % 5 == 4:
                assert str(answers[0]) == "x"
            elif n % 5 == 3:
                assert isinstance(answers[0], InvalidInput)
                assert cosine(answers[1].vector, expected["red"]) >= 0.99999
            else:
                kinds = [["red"], ["swatch"], ["swatch", "red"]][n % 5]
                assert all(cosine(a.vector, expected[k]) >= 0.99999 for a, k in zip(answers, kinds, strict=True))


def held_back(embedder, monkeypatch):
    """Forward passes wait until the event is set; `passes` has the size of each."""
    go, passes, forward = threading.Event(), [], embedder.start

    def waiting(prepared):
        go.wait(LIMIT_SECONDS)
        passes.append(len(prepared))
        return forward(prepared)

    monkeypatch.setattr(embedder, "start", waiting)
    return go, passes


def test_what_is_ready_is_computed_together(embedder, monkeypatch):
    go, passes = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    for n in range(40):
        caller.send(n, [EmbedInput(text=f"shade {n}")])
    go.set()
    pipeline.close()
    assert len(caller.answers) == 40 == sum(passes)
    assert len(passes) <= 3


def test_a_pass_stays_within_the_token_budget(embedder, monkeypatch):
    embedder.batch_tokens = 100
    go, passes = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    for n in range(20):
        caller.send(n, [RED])
    go.set()
    pipeline.close()
    assert max(passes) * len(embedder.prepare(RED).sequence) <= 100
    assert len(caller.answers) == 20


def test_a_full_pipeline_takes_no_more(embedder, monkeypatch):
    go, _ = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 3)
    caller = Caller(pipeline)
    sender = threading.Thread(target=lambda: [caller.send(n, [RED]) for n in range(6)])
    sender.start()
    sender.join(0.3)
    assert sender.is_alive()
    go.set()
    sender.join(LIMIT_SECONDS)
    assert not sender.is_alive()
    pipeline.close()
    assert len(caller.answers) == 6


def test_nothing_is_computed_for_who_is_gone(embedder, monkeypatch):
    monkeypatch.setattr(module, "ASK_AFTER", 30)  # however slow the first pass is, the young one is younger
    go, passes = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    long_ago = time.monotonic() - 60
    caller.send("first", [RED])
    caller.send("gone", [SWATCH], given_up=lambda: True, since=long_ago)
    caller.send("there", [RED], given_up=lambda: False, since=long_ago)
    caller.send("young", [RED], given_up=lambda: pytest.fail("asked too early"))
    go.set()
    pipeline.close()
    assert isinstance(caller.answers["gone"][0], Abandoned)
    assert sum(passes) == 3
    assert all(np.isfinite(caller.answers[name][0].vector).all() for name in ("first", "there", "young"))


def test_a_failing_pass_and_an_answer_that_cannot_be_delivered_stop_nobody(embedder, monkeypatch):
    hidden = embedder.model.hidden
    monkeypatch.setattr(
        embedder.model, "hidden", lambda packed, *rest: 1 / 0 if packed.images else hidden(packed, *rest)
    )
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    pipeline.submit(Request([RED], lambda answers: 1 / 0, lambda: False))
    caller.send("fails", [SWATCH])
    caller.send("works", [RED])
    pipeline.close()
    assert isinstance(caller.answers["fails"][0], InferenceFailed)
    assert np.isfinite(caller.answers["works"][0].vector).all()


@pytest.mark.faults
def test_a_forward_thread_that_cannot_go_on_takes_the_process_with_it():
    """Callers would wait for ever; a process that is gone is noticed and started again."""
    program = f"""
import sys, time
from embedder import *
from embedder.pipeline import *
embedder = Embedder.load(EmbedderConfig(checkpoint={str(CHECKPOINT)!r}, device="cpu"))
embedder.start = lambda prepared: 1 / 0
Pipeline(embedder, 8).submit(Request([EmbedInput(text="red")], print, lambda: False))
time.sleep(30)
"""
    path = CHECKPOINT.parent.parent / "model_repository" / "qwen3_vl_embed" / "1"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=path, timeout=LIMIT_SECONDS
    )
    assert done.returncode == LOST
    assert "the forward thread cannot go on" in done.stderr


class Device:
    """A device that computes beside the CPU: so many of its passes have `ended`, in the order of their launch."""

    def __init__(self):
        self.ended, self.launched, self.waited = 0, [], []

    def arriving(self, rows):
        return Later(self, rows)


class Later(Arriving):
    def __init__(self, device, rows):
        super().__init__(rows)
        self.beside, self.number = device, len(device.launched)
        device.launched.append((time.monotonic(), len(rows)))

    def there(self):
        return self.beside.ended > self.number

    def wait(self):
        rows = super().wait()
        self.beside.waited.append(time.monotonic())
        return rows


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr("embedder.embedder.Arriving", device.arriving)
    return device


def test_the_next_pass_is_launched_before_the_one_under_way_has_ended(embedder, device):
    """Once as much is ready; its callers are answered as soon as each is done."""
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    caller.send(0, [RED])
    until(lambda: device.launched)
    caller.send(1, [RED])  # as much as the first pass has
    until(lambda: len(device.launched) == 2)
    device.ended = 1
    until(lambda: 0 in caller.answers)
    assert 1 not in caller.answers
    device.ended = 3  # and what is asked below
    pipeline.close()
    assert [items for _, items in device.launched] == [1, 1]
    assert sorted(caller.answers) == [0, 1]
    expected = embedder.embed([RED])[0].vector
    assert all(cosine(answer.vector, expected) >= 0.99999 for (answer,) in caller.answers.values())


def test_a_few_wait_for_company_while_a_larger_pass_is_under_way(embedder, device, monkeypatch):
    go, _ = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    caller.send(0, [RED])
    until(lambda: not pipeline._ready)  # taken, and held back
    for n in range(1, 9):
        caller.send(n, [RED])
    go.set()
    until(lambda: len(device.launched) == 2)
    caller.send(9, [RED])
    caller.send(10, [RED])
    device.ended = 1
    until(lambda: 0 in caller.answers)
    time.sleep(0.2)  # in which they could be launched
    device.ended = 3
    pipeline.close()
    assert [items for _, items in device.launched] == [1, 8, 2]
    assert device.launched[2][0] >= device.waited[1]
    assert len(caller.answers) == 11


def test_a_pass_leaves_room_for_the_next(embedder, device, monkeypatch):
    """Half of the capacity: what is beside it would be few, or could not be made ready before it ends."""
    go, _ = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 8)
    caller = Caller(pipeline)
    caller.send(0, [RED])
    until(lambda: not pipeline._ready)  # taken, and held back
    for n in range(1, 8):
        caller.send(n, [RED])
    device.ended = 8
    go.set()
    pipeline.close()
    assert [items for _, items in device.launched] == [1, 4, 3]
    assert len(caller.answers) == 8
    assert pipeline._ready_tokens == 0


def test_few_tokens_do_not_wait_for_company_that_has_no_room(embedder, device, monkeypatch):
    """Long texts are under way, and as many short ones are ready: no more can come in before an answer goes out."""
    go, _ = held_back(embedder, monkeypatch)
    pipeline = Pipeline(embedder, 4)
    caller = Caller(pipeline)
    caller.send(0, [RED])
    until(lambda: not pipeline._ready)
    for n in (1, 2):
        caller.send(n, [EmbedInput(text="a long one " * 20)])
    device.ended = 1  # the first pass
    go.set()
    until(lambda: len(device.launched) == 2)
    for n in (3, 4):
        caller.send(n, [RED])
    until(lambda: len(device.launched) == 3)
    assert sorted(caller.answers) == [0]
    device.ended = 3
    pipeline.close()
    assert [items for _, items in device.launched] == [1, 2, 2]
    assert sorted(caller.answers) == [0, 1, 2, 3, 4]


def test_a_pass_that_ran_out_of_memory_makes_later_ones_smaller(embedder, monkeypatch, caplog):
    """And everybody gets a vector all the same."""
    monkeypatch.setattr("embedder.embedder.LEAST", 16)
    texts = [EmbedInput(text=f"shade {n}") for n in range(16)]
    expected = embedder.embed(texts)
    budget, hidden = embedder.batch_tokens, embedder.model.hidden

    def little_memory(packed, *given):
        if packed.input_ids.shape[1] > 120:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(packed, *given)

    monkeypatch.setattr(embedder.model, "hidden", little_memory)
    pipeline = Pipeline(embedder, 100)
    caller = Caller(pipeline)
    caller.send(0, texts)
    caller.send(1, texts)
    pipeline.close()
    for answers in caller.answers.values():
        assert all(
            cosine(ours.vector, theirs.vector) >= 0.99999 for ours, theirs in zip(answers, expected, strict=True)
        )
    assert 16 <= embedder.batch_tokens < budget
    assert embedder.info["batch_tokens"] == embedder.batch_tokens
    assert f"passes have at most {embedder.batch_tokens} tokens from now on" in caplog.text
    halved = embedder.counts["halved_passes"]
    embedder.embed(texts)
    assert embedder.counts["halved_passes"] == halved


def test_a_lost_device_is_told_where_nothing_is_pipelined(embedder, monkeypatch):
    """By an exception, which Triton's glue ends its process for: no request after it could be served."""

    def lost(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(embedder.model, "hidden", lost)
    monkeypatch.setattr(embedder.model, "recover", lost)
    with pytest.raises(RuntimeError, match="device-side assert"):
        embedder.embed_each([RED])
