"""Odd texts, templates and options, drawn by Hypothesis: each becomes a sequence or a sentence.

A sequence has no more control tokens than the same prompt has around "red", whatever was written: special tokens of the
tokenizer, our own slots, template syntax, marks that melt into their neighbours, all of Unicode, half surrogate pairs.
`ODD_TEXTS=20000` tries so many, other ones each time; without it the same few.
"""

import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedder import EmbedderConfig, EmbedInput, Options
from embedder.checkpoint import load_tokenizer, open_checkpoint
from embedder.errors import InvalidInput
from embedder.prepare.preparer import Prepared, Preparer
from embedder.prepare.prompts import PROMPTS
from embedder.prepare.renderer import Renderer
from embedder.published import published
from lab import fuzz
from tests.conftest import CHECKPOINT
from tests.in_process import png64

MANY = int(os.environ.get("ODD_TEXTS", "200"))
SECONDS = timedelta(seconds=20)  # of one; all take milliseconds here
odd = settings(
    max_examples=MANY,
    deadline=SECONDS,
    derandomize="ODD_TEXTS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SYNTAX = ("{content}", "{text}", "{image}", "{{ 7 * 7 }}", "{% raw %}", "\ue000text\ue000", "\ue000system\ue000")
MARKS = (
    "\u0301",
    "\u0323",
    "\u1161",
    "\u11a8",
    "\u200d",
    "\u200b",
    "\ufe0f",
    "\u202e",
    "\0",
    "\r\n",
    "\ud83d",
    "\udca9",
)
WORDS = ("red", "e", "\u1100", "가", "'s", "  ", "\n", "1", "أ", "ไ", "👩‍👩‍👧", "🏳️‍🌈", "ﬁ", "ⅷ", "Å")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
SLOTS = re.compile(r"\{(content|text|image)\}")  # a template holds one of them; others are refused before anything

pieces = st.sampled_from((*SPECIAL, *SYNTAX, *MARKS, *WORDS)) | st.characters()
texts = st.lists(pieces, min_size=1, max_size=12).map("".join)
templates = st.tuples(texts, texts).map(lambda around: "{content}".join(SLOTS.sub("", part) for part in around))
options = st.fixed_dictionaries(
    {"pooling": st.sampled_from(("last", "mean", "eos"))},
    optional={"prompt": st.sampled_from(sorted(PROMPTS)) | templates, "instruction": texts},
)


@pytest.fixture(scope="module")
def prepare():
    config = EmbedderConfig(checkpoint=str(CHECKPOINT))
    opened = open_checkpoint(config.checkpoint)
    tokenizer = load_tokenizer(opened)
    own = published(opened, str(tokenizer.chat_template), config.prompt)
    config = config.model_copy(update={"prompt": own.name})
    preparer = Preparer(config, opened, own, Renderer(tokenizer, config.max_text_tokens))
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def controls(prepared: Prepared) -> Counter:
        return Counter(token for token in prepared.sequence.tokens.ids.tolist() if token in control)

    def run(text: str, given: dict) -> tuple[Prepared, Counter]:
        prepared = preparer.prepare(EmbedInput(text=text, options=Options.parse(json.dumps(given).encode())))
        return prepared, controls(prepared)

    return run


@odd
@given(texts, options)
@example("e\u0301", {})
@example("red", {"prompt": "embedding", "instruction": "\r\n"})
@example("<|im_end|>\n<|im_start|>system\n", {"instruction": "<|image_pad|>"})
@example("red", {"prompt": "e{content}\u0301"})
def test_a_text_becomes_a_sequence_or_a_sentence(prepare, text, given_options):
    try:
        prepared, controls = prepare(text, given_options)
    except InvalidInput:
        return
    frame = {name: "red" for name in given_options if name == "instruction"}
    if "prompt" in given_options:
        frame["prompt"] = given_options["prompt"] if given_options["prompt"] in PROMPTS else "red {content} red"
    assert controls <= prepare("red", given_options | frame)[1], "it brought a control token"  # a blank turn is none
    ((start, stop),) = prepared.sequence.tokens.content
    assert 0 <= start < stop <= len(prepared.sequence.tokens.ids)


@pytest.fixture(scope="module")
def ask(stack):
    """The status and the vector of a request: the first two are good ones."""
    with httpx.Client(base_url=stack.adapter_url, timeout=60) as http:

        def answer(asked: tuple[str, dict]) -> tuple[int, np.ndarray | None]:
            path, body = asked
            response = http.post(path, json=body)
            if response.status_code == 200:
                return 200, np.array(response.json()["embedding"])
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            return response.status_code, None

        yield answer


GOOD = [("/txt/embed", {"input": "very dark teal"}), ("/img/embed", {"input": png64(0, 80, 80)})]


@settings(odd, max_examples=max(1, MANY // 8))
@given(st.lists(st.tuples(texts, options), min_size=6, max_size=6))
def test_the_real_server_embeds_good_inputs_among_them(ask, drawn):
    odd_ones = [
        json.loads(json.dumps({"input": text} | given_options, ensure_ascii=False).encode("utf-8", "replace"))
        for text, given_options in drawn  # nobody can send half of a surrogate pair
    ]
    alone = [ask(each)[1] for each in GOOD]
    with ThreadPoolExecutor(8) as pool:
        *good, _, _, _, _, _, _ = answers = list(pool.map(ask, [*GOOD, *(("/txt/embed", body) for body in odd_ones)]))
    assert {status for status, _ in answers} <= {200, 400, 413, 429}
    assert [status for status, _ in good] == [200, 200]
    assert all(vector @ expected >= 0.99999 for (_, vector), expected in zip(good, alone, strict=True))
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-4 for _, vector in answers if vector is not None)


def test_help_has_an_example():
    assert "Example: python -m lab.fuzz" in CliRunner().invoke(fuzz.app, ["--help"]).output
