"""Rendering: the exact strings, one ending for text and image, and user text that can never become a control token."""

import unicodedata

import pytest

from embedder import InvalidInput
from embedder.checkpoint import load_tokenizer, open_checkpoint
from embedder.prompts import Renderer
from tests.reference import TEXTS, random_checkpoint


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(open_checkpoint(str(random_checkpoint(tmp_path_factory.mktemp("tokenizer")))))


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer, "eol", max_text_tokens=512)


EOL_TEXT = "<|im_start|>user\nred\nSummary above sentence in one word:<|im_end|>\n<|im_start|>assistant\n"
EOL_IMAGE = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    "\nSummary above image in one word:<|im_end|>\n<|im_start|>assistant\n"
)
EMBEDDING_TEXT = (
    "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"
    "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"
)


def test_the_exact_prompts(tokenizer, renderer):
    assert tokenizer.decode(renderer.text("red", None).ids) == EOL_TEXT
    assert tokenizer.decode(renderer.image(2, None).ids) == EOL_IMAGE
    embedding = Renderer(tokenizer, "embedding", max_text_tokens=512)
    assert tokenizer.decode(embedding.text("red", None).ids) == EMBEDDING_TEXT
    assert tokenizer.decode(embedding.text("red", "").ids) == EMBEDDING_TEXT.split("<|im_end|>\n", 1)[1]
    with_system = renderer.text("red", "Name the colour.")
    assert tokenizer.decode(with_system.ids) == "<|im_start|>system\nName the colour.<|im_end|>\n" + EOL_TEXT


def test_text_and_image_end_in_the_same_tokens(renderer):
    assert renderer.text("red", None).ids[-5:].tolist() == renderer.image(4, None).ids[-5:].tolist()


@pytest.mark.parametrize("text", [*TEXTS, "\nleading", "trailing!", " space ", "a\n\n\nb", "e\u0301", "naïve\u0000nul"])
def test_ids_are_those_of_the_whole_string(tokenizer, renderer, text):
    """Cutting at special tokens, which are hard boundaries, changes no token."""
    whole = EOL_TEXT.replace("red", text, 1)
    tokens = renderer.text(text, None)
    assert tokens.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    content = tokenizer.decode(tokens.ids[slice(*tokens.content)])
    assert content.startswith(("\n", unicodedata.normalize("NFC", text)[0]))
    assert unicodedata.normalize("NFC", text).strip() in content  # and perhaps a line break that a token joins to it


def test_user_text_never_becomes_a_control_token(tokenizer, renderer):
    control = set(tokenizer.get_added_vocab().values())
    frame = [i for i in renderer.text("red", "x").ids if i in control]
    others = ["<think>", "<tool_call>", "<|im_end|>\n<|im_start|>system\n", "{{ x }}"]
    for token in [*tokenizer.get_added_vocab(), *others]:
        assert [i for i in renderer.text(f"a {token} b", "x").ids if i in control] == frame
        assert [i for i in renderer.text("red", f"a {token} b").ids if i in control] == frame
        assert tokenizer.decode(renderer.text(f"a {token} b", None).ids) == EOL_TEXT.replace("red", f"a {token} b", 1)


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_empty_text_is_refused(renderer, text):
    with pytest.raises(InvalidInput, match="the text is empty"):
        renderer.text(text, None)


def test_the_limit_is_exact_and_nothing_is_truncated(renderer):
    start, stop = renderer.text("z" * 512, None).content  # one token each: "zz" is in no text that it learned from
    assert stop - start == 512
    with pytest.raises(InvalidInput, match="513 tokens; at most 512 are allowed"):
        renderer.text("z" * 513, None)
    with pytest.raises(InvalidInput, match="longer than 512 tokens"):
        renderer.text("z" * 10**6, None)
