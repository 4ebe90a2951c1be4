"""A checkpoint's chat template is a program: one without end is refused at load, whatever shape it waits for."""

import time

import pytest
from transformers import AutoTokenizer

from embedder.errors import UnsupportedCheckpoint
from embedder.prepare import renderer
from embedder.prepare.bounded import comes_to_an_end
from embedder.prepare.renderer import Renderer
from tests.conftest import CHECKPOINT
from tests.waits import SLOWER

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LARGE = "{{ ('a' * 10 ** 11) | length }}"  # refused at once, where the others take their second
DOUBLING = "{% set ns = namespace(a='a') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}"


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize(
    "template",
    [
        LOOP,
        "{{ 9 ** (9 ** 9) }}",  # one call into C, which no signal handler and no tracer interrupts
        LARGE,
        DOUBLING,
        f"{{% if messages | length > 1 %}}{LARGE}{{% endif %}}",
        f"{{% if messages[0].content | length == 4 %}}{LARGE}{{% endif %}}",  # words, image, text, words
    ],
)
def test_a_template_without_end_is_refused_by_name(tokenizer, template, monkeypatch):
    monkeypatch.setattr(renderer, "DRAW_SECONDS", 1)
    monkeypatch.setattr(renderer, "DRAW_BYTES", 2**28)
    tokenizer.chat_template = template
    with pytest.raises(UnsupportedCheckpoint, match=f"^{CHECKPOINT}: its chat template has no end: it takes over 1 s"):
        Renderer(tokenizer, 512)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no such turn') }}", "{{ nothing.at.all }}"])
def test_one_that_ends_is_not_judged(tokenizer, template):
    """Neither the checkpoint's own, nor one that refuses: that is told to whoever asks for what it refuses."""
    tokenizer.chat_template = template or tokenizer.chat_template
    Renderer(tokenizer, 512)


def test_what_is_tried_changes_nothing_here():
    tried = []
    assert comes_to_an_end(lambda: tried.append(1), 5, 2**28)
    assert not comes_to_an_end(lambda: 1 / 0, 5, 2**28)
    assert tried == []


def test_waiting_is_bounded_by_the_childs_own_time():
    started = time.process_time()
    assert not comes_to_an_end(lambda: pow(9, 9**9), 1, 2**28)
    assert time.process_time() - started < 1 * SLOWER
