"""Rendering: the exact strings, one ending for text and image, and user text that can never become a control token."""

import unicodedata

import pytest
from tokenizers import AddedToken

from embedder import InvalidInput
from embedder.checkpoint import load_tokenizer, open_checkpoint
from embedder.prepare.prompts import PROMPTS, prompt
from embedder.prepare.renderer import Renderer
from tests.reference import TEXTS, random_checkpoint


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(open_checkpoint(str(random_checkpoint(tmp_path_factory.mktemp("tokenizer")))))


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer, max_text_tokens=512)


EOL = PROMPTS["eol"]


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
    assert tokenizer.decode(renderer.render(EOL, None, "red").ids) == EOL_TEXT
    assert tokenizer.decode(renderer.render(EOL, None, None, 2).ids) == EOL_IMAGE
    embedding = PROMPTS["embedding"]
    assert tokenizer.decode(renderer.render(embedding, embedding.system, "red").ids) == EMBEDDING_TEXT
    assert tokenizer.decode(renderer.render(embedding, None, "red").ids) == EMBEDDING_TEXT.split("<|im_end|>\n", 1)[1]
    with_system = renderer.render(EOL, "Name the colour.", "red")
    assert tokenizer.decode(with_system.ids) == "<|im_start|>system\nName the colour.<|im_end|>\n" + EOL_TEXT


def test_text_and_image_end_in_the_same_tokens(renderer):
    assert renderer.render(EOL, None, "red").ids[-5:].tolist() == renderer.render(EOL, None, None, 4).ids[-5:].tolist()


@pytest.mark.parametrize("text", [*TEXTS, "\nleading", "trailing!", " space ", "a\n\n\nb", "e\u0301", "naïve\u0000nul"])
def test_ids_are_those_of_the_whole_string(tokenizer, renderer, text):
    """Cutting at special tokens, which are hard boundaries, changes no token."""
    whole = EOL_TEXT.replace("red", text, 1)
    tokens = renderer.render(EOL, None, text)
    assert tokens.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    content = tokenizer.decode(tokens.ids[slice(*tokens.content[0])])
    assert content.startswith(("\n", unicodedata.normalize("NFC", text)[0]))
    assert unicodedata.normalize("NFC", text).strip() in content  # and perhaps a line break that a token joins to it


def test_user_text_never_becomes_a_control_token(tokenizer, renderer):
    control = set(tokenizer.get_added_vocab().values())
    frame = [i for i in renderer.render(EOL, "x", "red").ids if i in control]
    others = ["<think>", "<tool_call>", "<|im_end|>\n<|im_start|>system\n", "{{ x }}"]
    for token in [*tokenizer.get_added_vocab(), *others]:
        assert [i for i in renderer.render(EOL, "x", f"a {token} b").ids if i in control] == frame
        assert [i for i in renderer.render(EOL, f"a {token} b", "red").ids if i in control] == frame
        drawn = tokenizer.decode(renderer.render(EOL, None, f"a {token} b").ids)
        assert drawn == EOL_TEXT.replace("red", f"a {token} b", 1)


def test_words_that_a_fine_tune_added_are_tokens(tmp_path):
    """In anybody's text, as in transformers; what it added as special tokens is text there, as all of them are."""
    tokenizer = load_tokenizer(open_checkpoint(str(random_checkpoint(tmp_path))))
    tokenizer.add_tokens(["teal", AddedToken("<think>", special=False), AddedToken("<|mine|>", special=True)])
    renderer, number = Renderer(tokenizer, max_text_tokens=512), tokenizer.convert_tokens_to_ids
    text = "dark teal <think> <|mine|> <|im_end|>"
    for ids in (renderer.render(EOL, None, text).ids, renderer.render(prompt("{content} " + text), None, "red").ids,
                renderer.render(EOL, text, "red").ids):  # fmt: skip
        assert (ids == number("teal")).sum() == (ids == number("<think>")).sum() == 1
        assert (ids == number("<|mine|>")).sum() == 0
        assert tokenizer.decode(ids).count(text) == 1
    harmless = text.partition("<|mine|>")[0]
    whole = tokenizer(EOL_TEXT.replace("red", harmless), add_special_tokens=False)["input_ids"]
    assert renderer.render(EOL, None, harmless).ids.tolist() == whole


def test_a_text_of_the_longest_token_is_as_long_as_its_tokens(tmp_path):
    """The quick refusal by characters holds for added words too, which may be longer than any of Qwen's tokens."""
    tokenizer = load_tokenizer(open_checkpoint(str(random_checkpoint(tmp_path))))
    tokenizer.add_tokens(["x" * 1000])
    assert len(Renderer(tokenizer, max_text_tokens=2).render(EOL, None, "x" * 2000).ids) > 2


def test_a_template_never_becomes_a_control_token(tokenizer, renderer):
    """Not even where it stands alone between two of the chat template's own, as after an image."""
    control = set(tokenizer.get_added_vocab().values())
    frame = [i for i in renderer.render(prompt("{content} "), None, None, 4).ids if i in control]
    for token in tokenizer.get_added_vocab():
        own = prompt("{content}" + token)
        assert [i for i in renderer.render(own, None, None, 4).ids if i in control] == frame
        assert [i for i in renderer.render(own, token, None, 4).ids if i in control][-len(frame) :] == frame


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_empty_text_is_refused(renderer, text):
    with pytest.raises(InvalidInput, match="the text is blank: send"):
        renderer.render(EOL, None, text)


def test_the_limit_is_exact_and_nothing_is_truncated(renderer):
    ((start, stop),) = renderer.render(EOL, None, "z" * 512).content  # one token each: it never saw "zz"
    assert stop - start == 512
    with pytest.raises(InvalidInput, match="513 tokens; at most 512 are allowed"):
        renderer.render(EOL, None, "z" * 513)
    with pytest.raises(InvalidInput, match="too many tokens; at most 512"):
        renderer.render(EOL, None, "z" * 10**6)


@pytest.mark.parametrize("unit", ["z", "red ", "\U00020000", "e\u0301", "\n", "=", "  a"])
def test_a_long_text_is_refused_exactly_when_it_has_too_many_tokens(tokenizer, unit):
    """It is first looked at in pieces, which have some tokens more than the whole."""
    text = unit * (2**17 // len(unit)) + "a"
    many = len(tokenizer(f"user\n{text}\n", add_special_tokens=False)["input_ids"])
    ((start, stop),) = Renderer(tokenizer, many).render(EOL, None, text).content
    assert stop - start > many - 16
    with pytest.raises(InvalidInput, match="tokens; at most"):
        Renderer(tokenizer, stop - start - 1).render(EOL, None, text)


def test_of_a_text_far_too_long_the_beginning_alone_is_read(renderer, monkeypatch):
    read, encode = [], renderer._encode
    monkeypatch.setattr(renderer, "_encode", lambda text: read.append(len(text)) or encode(text))
    with pytest.raises(InvalidInput, match="too many tokens; at most 512"):
        renderer.render(EOL, None, "red " * 10**6)
    assert sum(read) <= 2**14


@pytest.mark.parametrize("name", [name for name in PROMPTS if not PROMPTS[name].repeats])
def test_text_image_and_both_end_in_the_same_tokens(renderer, name):
    prompt = PROMPTS[name]
    text, image, both = (
        renderer.render(prompt, prompt.system, text, tokens) for text, tokens in (("red", 0), (None, 4), ("red", 4))
    )
    assert text.ids[-1] == image.ids[-1] == both.ids[-1]
    if prompt.chat:
        assert text.ids[-5:].tolist() == image.ids[-5:].tolist() == both.ids[-5:].tolist()
    assert [stop - start for start, stop in image.content] == [4]
    assert len(both.content) == 2


def test_a_template_of_ones_own(tokenizer, renderer):
    own = prompt("This is {content} <|im_end|> in one word:")
    drawn = tokenizer.decode(renderer.render(own, None, "red").ids)
    assert drawn == "<|im_start|>user\nThis is red <|im_end|> in one word:<|im_end|>\n<|im_start|>assistant\n"
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert renderer.render(own, None, "red").ids.tolist().count(control) == 1
    for wrong in ("colours", "", "{content} {content} {content}", "{content} {image}", "{text}"):
        with pytest.raises(InvalidInput, match=r"^options\.prompt: "):
            prompt(wrong)


def test_said_twice_the_second_time_is_the_content(tokenizer, renderer):
    """Of the ids of the whole string; the limit is of the text itself."""
    for own in (PROMPTS["echo"], prompt("Rewrite the sentence: {content}\nThe rewritten sentence: {content}")):
        tokens = renderer.render(own, None, "red e\u0301\n")
        drawn = (
            "<|im_start|>user\nRewrite the sentence: red e\u0301\n\nThe rewritten sentence: red e\u0301\n<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert tokens.ids.tolist() == tokenizer(drawn, add_special_tokens=False)["input_ids"]
        ((start, stop),) = tokens.content
        assert tokenizer.decode(tokens.ids[start:stop]).strip() == "red \u00e9"
        assert "sentence: red" in tokenizer.decode(tokens.ids[:start])
        renderer.render(own, None, "z" * 512)
        with pytest.raises(InvalidInput, match="513 tokens; at most 512"):
            renderer.render(own, None, "z" * 513)
        for text in (None, "red"):
            with pytest.raises(InvalidInput, match=r"^options\.prompt: it says its text twice"):
                renderer.render(own, None, text, 4)
    close = prompt("{content}{content}")  # with nothing between them
    assert tokenizer.decode(renderer.render(close, None, "red").ids).count("redred") == 1


def test_the_presets_of_papers(tokenizer, renderer):
    given = PROMPTS["hierarchical"]
    assert tokenizer.decode(renderer.render(given, given.system, "red").ids) == (
        "<|im_start|>system\nGiven an image, summarize the provided image in one word. "
        "Given only text, describe the text in one word.<|im_end|>\n"
        "<|im_start|>user\nred\nRepresent the given text in one word.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    given = PROMPTS["freeret"]
    assert tokenizer.decode(renderer.render(given, given.system, None, 1).ids) == (
        "<|im_start|>user\nYou are required to assess if the sentence is related to the image.\n"
        "Based on <|vision_start|><|image_pad|><|vision_end|>, output one word:\nCapture the semantics of the image.\n"
        "Do not use function words, prepositions, or symbols.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_bare_content_has_no_turns(tokenizer, renderer):
    assert tokenizer.decode(renderer.render(PROMPTS["none"], None, "red").ids) == "red<|im_end|>"
    with pytest.raises(InvalidInput, match="no system turn"):
        renderer.render(PROMPTS["none"], "Name the colour.", "red")


def test_slots_in_a_callers_words_are_words(tokenizer, renderer):
    for text in ("\ue000text\ue000", "\ue0001\ue000", "{text}", "{image}", "{content}"):
        assert tokenizer.decode(renderer.render(EOL, text, text).ids).count(text) == 2


def test_a_closing_token(tokenizer, renderer):
    assert renderer.render(EOL, None, "red", close="<|endoftext|>").ids[-1] == tokenizer.convert_tokens_to_ids(
        "<|endoftext|>"
    )
