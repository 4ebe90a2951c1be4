"""What callers of other people's schemas mean: which text, which image, where in the text it stands. No server."""

import json
import os
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import ApiError, DeadlinePassed, InvalidInput, TooLarge
from client.http.answers import Done
from client.http.cohere import CohereRequest, bits
from client.http.contents import MARK, ONE_IMAGE, TOKEN_IDS
from client.http.openai import Harmless, OpenAIRequest
from client.http.purposes import Purpose
from client.http.schemas import Context
from client.http.weaviate import WeaviateRequest
from client.items import Embedding, Recipe
from tests.in_process import png, png64
from tests.waits import SLOWER

RED, RED64, BLUE64 = png(255, 0, 0), png64(255, 0, 0), png64(0, 0, 255)
URL, OTHER = f"data:image/png;base64,{RED64}", f"data:image/png;base64,{BLUE64}"
PART = {"type": "image_url", "image_url": {"url": URL}}
WORDS = {"type": "text", "text": "red"}
MANY = int(os.environ.get("ODD_TEXTS", "200"))
MODEL = {"id": "m", "checkpoint": "m", "recipe": {"center": False}, "own_prompts": ["query", "document"]}


def asked(request=OpenAIRequest, model=None, **body):
    return request.parse(body, 4).asked(Context(4, model=model))


def items(request=OpenAIRequest, **body) -> list[tuple[str, bytes, dict]]:
    return [
        (item.text.decode(), item.image, json.loads(item.options or b"{}")) for item in asked(request, **body).items
    ]


def refusal(request=OpenAIRequest, kind=InvalidInput, **body) -> InvalidInput:
    with pytest.raises(kind) as caught:
        asked(request, **body)
    assert caught.value.message.endswith(".")
    return caught.value


Item = tuple[str, bytes, dict]
BEFORE: Item = ("red", RED, {})
AFTER: Item = ("red", RED, {"image_at": -1})
IMAGE: Item = ("", RED, {})
TEXT: Item = ("red", b"", {})


def user(*parts, **more):
    return [{"role": "user", "content": list(parts), **more}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("red", [TEXT]),
        (["red", "red"], [TEXT, TEXT]),
        (URL, [IMAGE]),
        ([URL, "red"], [IMAGE, TEXT]),
        (f" {URL}\n", [IMAGE]),
        (URL.replace("data:image/png", "DATA:IMAGE/PNG"), [IMAGE]),
        (f"data:;base64,{RED64}", [IMAGE]),
        (f"red {URL}", [AFTER]),
        ([f"red\n{URL} "], [AFTER]),
        (f" red  {URL}", [(" red ", RED, {"image_at": -1})]),
        ({"text": "red"}, [TEXT]),
        ([{"text": "red"}, {"image": RED64}, {"image": URL}], [TEXT, IMAGE, IMAGE]),
        ([{"text": "red", "image": RED64}, {"image": URL, "text": "red"}], [BEFORE, BEFORE]),
        ([{"text": "red", "image": None}, {"bytes": RED64}], [TEXT, IMAGE]),
        ({"content": "red"}, [TEXT]),
        ([{"content": [WORDS, PART]}, {"content": [PART, WORDS]}, {"content": [PART]}], [AFTER, BEFORE, IMAGE]),
        ({"content": {"type": "image", "format": "base64", "value": URL}}, [IMAGE]),
        ({"content": [{"type": "text", "format": "text", "value": "red"}]}, [TEXT]),
        ([{"type": "image_base64", "image_base64": {"base64": RED64, "mime_type": "image/png"}}], [IMAGE]),
        ([{"type": "image_base64", "image_base64": URL}, WORDS], [IMAGE, TEXT]),
        ([{"type": "image_url", "image_url": URL}, {"type": "input_image", "image_url": URL}], [IMAGE, IMAGE]),
        (user(WORDS), [TEXT]),
        ([user(PART, WORDS), user(WORDS)], [BEFORE, TEXT]),
        ([user(PART), "red"], [IMAGE, TEXT]),
        (MARK, [(MARK, b"", {})]),
        ({"text": MARK, "image": RED64}, [(MARK, RED, {})]),
        ({"content": [PART, {"type": "text", "text": MARK}]}, [(MARK, RED, {})]),
        (f"see data: {RED64[:8]}", [(f"see data: {RED64[:8]}", b"", {})]),
        ("https://example.org/red.png", [("https://example.org/red.png", b"", {})]),
    ],
)
def test_what_input_means(value, expected):
    assert items(input=value) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("red", TEXT),
        ([WORDS], TEXT),
        ([PART], IMAGE),
        ([PART, WORDS], BEFORE),
        ([WORDS, PART], AFTER),
        ([{"type": "text", "text": "dark "}, PART, WORDS], ("dark red", RED, {"image_at": 5})),
        ([{"type": "text", "text": "🎨é"}, PART, WORDS], ("🎨éred", RED, {"image_at": 2})),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b "}, PART], ("a b ", RED, {"image_at": -1})),
        ([PART, {"type": "text", "text": MARK}], IMAGE),
        ([PART, {"type": "text", "text": f"{MARK}\nred"}], ("\nred", RED, {})),
        ([PART, {"type": "text", "text": f"red{MARK}"}], AFTER),
        ([{"type": "text", "text": f"dark {MARK}red"}, PART], ("dark red", RED, {"image_at": 5})),
        ([{"type": "text", "text": MARK}], (MARK, b"", {})),
        (MARK, (MARK, b"", {})),
    ],
)
def test_what_a_conversation_means(content, expected):
    turn = {"role": "user", "content": content}
    assert (
        items(messages=[turn]) == items(messages=[[turn]]) == items(input=[turn]) == items(input=[[turn]]) == [expected]
    )
    system = {"role": "system", "content": "Name it."}
    instructed = [(*expected[:2], expected[2] | {"instruction": "Name it."})]
    assert items(messages=[system, turn]) == instructed
    assert items(messages=[{"role": "system", "content": [{"type": "text", "text": "Name it."}]}, turn]) == instructed
    for empty in ("", [], [{"type": "text", "text": ""}]):
        generation = {"role": "assistant", "content": empty}
        body = {"messages": [system, turn, generation], "add_special_tokens": True}
        assert items(**body, continue_final_message=True) == instructed
        assert "continue_final_message" in refusal(**body).message


SYSTEM, TURN = {"role": "system", "content": "x"}, {"role": "user", "content": "red"}


@pytest.mark.parametrize(
    "turns",
    [
        [SYSTEM],
        [TURN, TURN],
        [SYSTEM, SYSTEM, TURN],
        [TURN, SYSTEM],
        [{"role": "assistant", "content": "red"}],
        [TURN, {"role": "assistant", "content": "red"}],
        [{"role": "assistant", "content": ""}, TURN],
        [{"role": "tool", "content": "red"}],
        [{"role": "developer", "content": "x"}, TURN],
        [{"role": 7, "content": "red"}],
        [TURN | {"name": "x"}],
        [{"role": "user"}],
        [TURN | {"content": []}],
        [TURN | {"content": ""}],
        [TURN | {"content": 7}],
        [TURN | {"content": [7]}],
        [TURN | {"content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]}],
        [TURN | {"content": [WORDS | {"image_url": URL}]}],
        [TURN | {"content": [{"type": "text"}]}],
        [TURN | {"content": [{"type": "text", "text": 7}]}],
        [{"role": "system", "content": [PART]}, TURN],
        ["red"],
    ],
)
def test_other_turns_are_refused(turns):
    assert refusal(messages=turns).param.startswith("messages")
    assert refusal(messages=[user(WORDS), turns]).param == "messages[1]"


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        ("", "input", "The text is empty"),
        (["red", ""], "input[1]", "The text is empty"),
        ([], "input", "empty list"),
        ({"content": []}, "input", '"content" is empty'),
        ([user()], "input[0]", '"content" is empty'),
        ([1171, 23449], "input", TOKEN_IDS),
        ([[1171], [23449, 6437]], "input[0]", TOKEN_IDS),
        ({"image": "https://example.org/red.png"}, "input", "Addresses and paths are not opened"),
        (user({"type": "image_url", "image_url": {"url": "http://x/y"}}), "input", "Addresses and paths"),
        (user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "input", "Addresses and paths"),
        (user(PART, PART), "input", ONE_IMAGE),
        (f"{URL} {OTHER}", "input", ONE_IMAGE),
        ({"image": RED64, "bytes": RED64}, "input", ONE_IMAGE),
        ([[PART, PART]], "input[0]", "conversation"),
        (user(PART, {"type": "text", "text": MARK * 2}), "input", "2 times"),
        ({"text": "red", "url": "x"}, "input", '"url"'),
        ({}, "input", "nothing"),
        ([None], "input[0]", "null"),
        (7, "input", "int"),
        (True, "input", "bool"),
        ({"text": ["red"]}, "input", "list"),
        ({"image": ""}, "input", "empty"),
        ("data:video/mp4;base64,AAAA", "input", "single images"),
        ("data:text/plain;base64,AAAA", "input", "not an image"),
        ([["red"]], "input[0]", "conversation"),
        ({"content": [PART | {"detail": "low"}]}, "input", '"detail" of a part may be "auto"'),
    ],
)
def test_each_that_cannot_be_one_has_its_own_sentence(value, param, words):
    error = refusal(input=value)
    assert error.param == param
    assert words in error.message
    assert len(error.message) < 500


def test_token_ids_are_refused_by_the_name_of_what_mends_it():
    assert "check_embedding_ctx_length=False" in refusal(input=[[1, 2]]).message


def test_exactly_one_of_input_and_messages():
    assert refusal().param == refusal(input="red", messages=[TURN]).param == refusal(input=None).param == "input"
    assert "empty list" in refusal(messages=[]).message or refusal(messages=[]).param == "messages"
    assert refusal(messages="red").param == refusal(messages={}).param == "messages"


def test_a_list_too_long_is_413():
    assert len(items(input=["red"] * 4)) == 4
    assert "5 items" in refusal(kind=TooLarge, input=["red"] * 5).message
    assert refusal(kind=TooLarge, messages=[[TURN]] * 5).param == "messages"
    assert refusal(kind=TooLarge, request=CohereRequest, texts=["red"] * 5).param == "texts"
    refusal(kind=TooLarge, request=WeaviateRequest, texts=["red"] * 3, images=[RED64] * 2)


HARMLESS = [
    {"user": "u1"},
    {"stream": False},
    {"stream": None, "stream_options": None},
    {"max_tokens": 7, "max_completion_tokens": 1},
    {"truncate": "NONE"},
    {"truncate": "END"},
    {"truncate": True},
    {"truncation": True},
    {"add_special_tokens": True},
    {"add_special_tokens": False, "continue_final_message": False},
    {"truncate_prompt_tokens": 8192},
    {"truncate_prompt_tokens": -1},
    {"input_type": "query"},
    {"task": "retrieval.passage"},
    {"dimensions": None, "output_dimension": None, "output_dtype": None, "encoding_format": None},
    {"embedding_type": "float"},
    {"encoding_type": "float"},
    {"late_chunking": False},
    {"padding": "do_not_pad"},
    {"modality": "text"},
    {"modality": ["text"]},
    {"normalized": None},
    dict.fromkeys(Harmless.model_fields),
]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_changes_nothing_is_accepted_by_name(fields):
    assert items(input="red", **fields) == [TEXT]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream", True),
        ("truncate", "MIDDLE"),
        ("encoding_format", "bytes"),
        ("encoding_format", "base64,float"),
        ("embedding_type", "binary"),
        ("dimensions", 7),
        ("dimensions", "64"),
        ("output_dimension", 0),
        ("late_chunking", True),
        ("chat_template", "{{ x }}"),
        ("mm_processor_kwargs", {"max_pixels": 1}),
        ("add_generation_prompt", False),
        ("use_activation", False),
        ("modality", "image"),
        ("modality", "audio"),
        ("modality", ["text", "text"]),
        ("modality", [None]),
        ("padding", "max_length"),
        ("cache_salt", "tenant"),
        ("image_at", 1),
        ("render", True),
        ("inputs", ["red"]),
        ("pooling", "cls"),
        ("continue_final_message", True),
    ],
)
def test_whatever_else_is_refused_by_name(name, value):
    error = refusal(**{"input": [TURN], name: value})
    assert name in error.message
    assert error.param in (name, "input")


def test_each_input_is_of_the_modality_that_is_named():
    """NIM's and Infinity's callers name one, or one each."""
    both = {"text": "red", "image": RED64}
    assert items(input=[URL], modality="image") == [IMAGE]
    assert len(items(input=["red", URL, both], modality=["text", "image", "text_image"])) == 3
    error = refusal(input=[URL, RED64], modality="image")  # whose letters are for the model to refuse
    assert (error.param, "read as text" in error.message) == ("input[1]", True)
    assert refusal(input=["red", URL], modality="text").param == "input[1]"
    assert refusal(input=["red", URL], modality=["text"]).param == "modality"


def test_names_of_one_field_mean_it_and_not_two_of_them():
    expected = [("red", b"", {"dimensions": 8, "normalize": False})]
    assert items(input="red", dimensions=8, normalize=False) == expected
    assert items(input="red", output_dimension=8, normalized=False) == expected
    assert refusal(input="red", dimensions=8, output_dimension=8).param == "output_dimension"
    assert refusal(input="red", encoding_format="float", embedding_type="base64").param == "embedding_type"
    assert refusal(input="red", input_type="query", task="text-matching").param == "task"


def test_half_precision_in_base64_is_refused():
    assert "float16" in refusal(input="red", encoding_format="base64", dtype="float16").message
    assert (
        items(input="red", dtype="float16") == items(input="red", encoding_format="base64", dtype="float32") == [TEXT]
    )


def test_our_options_are_extra_fields():
    options = {"pooling": "mean", "layer": -2, "prompt": "colour", "max_pixels": 4096}
    assert items(input=["red", URL], **options) == [("red", b"", options), ("", RED, options)]
    assert items(input="red", instruction="Name it.") == [("red", b"", {"instruction": "Name it."})]
    assert "instruction" in refusal(messages=[SYSTEM, TURN], instruction="Name it.").message


@pytest.mark.parametrize("request_", [OpenAIRequest, CohereRequest])
@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("search_query", "query"),
        ("query", "query"),
        ("retrieval.query", "query"),
        ("search_document", "document"),
        ("passage", "document"),
        ("document", "document"),
        ("nl2code.passage", "document"),
        ("image", None),
        ("classification", None),
        ("text-matching", None),
    ],
)
def test_a_purpose_is_the_checkpoints_own_prompt_where_it_has_one(request_, name, prompt):
    body = {"texts": ["red"]} if request_ is CohereRequest else {"input": "red"}
    expected = {"prompt": prompt} if prompt else {}
    (item,) = asked(request_, MODEL, **body, input_type=name).items
    assert json.loads(item.options or b"{}") == expected
    for model in (None, MODEL | {"own_prompts": []}, {"id": "of an older model"}):
        assert asked(request_, model, **body, input_type=name).items[0].options == b""
    for own in ({"prompt": "eol"}, {"instruction": "Name it."}):
        (item,) = asked(request_, MODEL, **body, **own, input_type=name).items
        assert json.loads(item.options) == own


@pytest.mark.parametrize("request_", [OpenAIRequest, CohereRequest])
@pytest.mark.parametrize("name", ["search_querry", "chat", "embedding", "retrieval.", ""])
def test_a_purpose_that_nobody_knows_is_refused_where_it_could_be_a_prompt(request_, name):
    body = {"texts": ["red"]} if request_ is CohereRequest else {"input": "red"}
    with pytest.raises(InvalidInput, match="send one of query, document, search_query") as caught:
        asked(request_, MODEL, **body, input_type=name)
    assert caught.value.param == "input_type"
    assert asked(request_, MODEL | {"own_prompts": []}, **body, input_type=name).items


def test_a_prompt_of_the_purposes_own_name_is_before_one_that_means_it():
    own = MODEL | {"own_prompts": ["query", "retrieval.query"]}
    (item,) = asked(OpenAIRequest, own, input="red", task="retrieval.query").items
    assert json.loads(item.options) == {"prompt": "retrieval.query"}


def test_another_model_with_another_prompt_for_it_is_no_answer():
    with pytest.raises(DeadlinePassed, match="replaced"):
        Purpose("query", None).check(MODEL)
    Purpose("query", MODEL).check(MODEL)


def test_with_more_tokens_than_may_stay_it_is_an_error():
    embedding = Embedding(None, MODEL, Recipe("r"), tokens=17)
    done = Done([embedding], "m", "id", {}, 0.0)
    for most in (16, 0, 1):
        with pytest.raises(InvalidInput, match="17 tokens") as caught:
            asked(input="red", truncate_prompt_tokens=most).answer(done)
        assert caught.value.param == "truncate_prompt_tokens"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"texts": ["red", URL[:30]]}, [TEXT, (URL[:30], b"", {})]),
        ({"images": [URL, RED64]}, [IMAGE, IMAGE]),
        ({"inputs": [{"content": [WORDS, PART]}, {"content": [PART]}]}, [AFTER, IMAGE]),
        ({"texts": ["red"], "images": None, "truncate": "END", "priority": 3, "output_dimension": None}, [TEXT]),
        ({"texts": ["red"], "output_dimension": 8}, [("red", b"", {"dimensions": 8})]),
    ],
)
def test_what_cohere_means(body, expected):
    assert items(CohereRequest, **body) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "texts"),
        ({"texts": ["red"], "images": [URL]}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": [""]}, "texts[0]"),
        ({"images": ["https://example.org/red.png"]}, "images[0]"),
        ({"inputs": [{"content": [PART, PART]}]}, "inputs[0]"),
        ({"texts": ["red"], "embedding_types": ["int8"]}, "embedding_types"),
        ({"texts": ["red"], "embedding_types": ["float", "binary"]}, "embedding_types"),
        ({"texts": ["red"], "embedding_types": ["ubinary"], "center": True, "dimensions": 12}, "output_dimension"),
        ({"texts": ["red"], "embedding_types": ["half"]}, "embedding_types"),
        ({"texts": ["red"], "input": "red"}, "input"),
    ],
)
def test_what_cohere_may_not(body, param):
    assert refusal(CohereRequest, **body).param == param


def test_bits_are_of_centred_vectors_and_packed_as_numpy_packs_them():
    for body in ({"center": True}, {}):
        model = MODEL | {"recipe": {"center": not body}}
        assert asked(CohereRequest, model, texts=["red"], embedding_types=["binary", "ubinary"], **body).items
        with pytest.raises(InvalidInput, match="align, centres nothing"):  # it moves texts to where images are
            asked(
                CohereRequest,
                model | {"calibration": {"method": "align"}},
                texts=["red"],
                embedding_types=["binary"],
                **body,
            )
    vector = np.array([1, -1, 0, 2, 3, -4, 5, 6, -1, -1, -1, -1, -1, -1, -1, 1], dtype=np.float32)
    assert bits([vector], "ubinary") == [[0b10011011, 1]]
    assert bits([vector], "binary") == [[0b10011011 - 128, 1 - 128]]


def test_weaviate_sends_nulls_and_no_content_type():
    assert items(WeaviateRequest, texts=["red"], images=[RED64]) == [TEXT, IMAGE]
    assert items(WeaviateRequest, texts=None, images=[RED64]) == [IMAGE]
    assert refusal(WeaviateRequest, texts=None, images=[]).param == "texts"
    assert refusal(WeaviateRequest, texts=["red"], images=["nothing"]).param == "images[0]"


TEXTS = st.sampled_from(["", "red", " ", MARK, MARK * 2, URL, f"red {URL}", RED64, "https://x/y", "\0", "data:,"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2**63), st.floats(allow_nan=False), TEXTS)
KEYS = st.sampled_from(
    [
        "text",
        "image",
        "bytes",
        "content",
        "type",
        "role",
        "value",
        "format",
        "image_url",
        "url",
        "image_base64",
        "base64",
    ]
)
KINDS = st.sampled_from(["text", "image", "image_url", "image_base64", "user", "system", "assistant", "video_url"])
ANYTHING = st.recursive(
    SCALARS | KINDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(lambda role, content: {"role": role, "content": content}, KINDS, inner),
        st.builds(lambda kind, value: {"type": kind, kind: value}, KINDS, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=MANY, derandomize="ODD_TEXTS" not in os.environ, database=None, deadline=None)
@given(
    field=st.sampled_from(["input", "messages", "texts", "images", "inputs"]), value=ANYTHING, continued=st.booleans()
)
def test_whatever_is_sent_is_items_or_a_sentence(field, value, continued):
    """And what is read is all of what was sent: no image is dropped, none is there twice."""
    more = {"continue_final_message": continued} if field in ("input", "messages") else {}
    with suppress(ApiError):  # whatever else is raised is a fault of ours
        found = asked(OpenAIRequest if more else CohereRequest, **{field: value}, **more).items
        assert 1 <= len(found) <= 4
        assert all(item.text or item.image for item in found)
        kept = sum((item.image == RED) + (item.text + item.options).count(RED64.encode()) for item in found)
        assert kept == json.dumps(value).count(RED64)


@pytest.mark.parametrize("part", ["data:", "data:a/", "data:a/x", " data:image/png;base64 "])
def test_megabytes_of_what_begins_like_an_image_are_read_at_once(part):
    started = time.thread_time()
    (item,) = items(input=part * (12 * 10**6 // len(part)) + f" ;base64, {URL}")
    assert item[1] == RED
    assert time.thread_time() - started < 0.5 * SLOWER  # seconds of CPU, in which nobody else is served
