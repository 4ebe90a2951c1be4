"""What `compare` finds, on the tiny checkpoint, against a real HTTP server that does one thing wrong at a time."""

import json
import random
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from embedder import Embedder, EmbedderConfig
from qwen3_vl_embed.cli.__main__ import app
from qwen3_vl_embed.cli.compare import _said
from qwen3_vl_embed.compare import local
from qwen3_vl_embed.compare.inputs import Input, own, standard
from qwen3_vl_embed.compare.sides import SCHEMAS, Server
from qwen3_vl_embed.compare.variants import Variants
from qwen3_vl_embed.compare.verdict import AGREE, DIFFER, UNKNOWN, compare
from tests.another_server import Model, Settings, serving, shown
from tests.conftest import CHECKPOINT

INPUTS = standard()
TEXTS = INPUTS[:5]
ALL = {"text", "image", "both"}
NO_WORDS = dict.fromkeys(ALL, "")


def quietly(what, name):
    return what


@pytest.fixture(scope="module")
def variants():
    return Variants(Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu")))


@pytest.fixture(scope="module")
def ours(variants):
    return local.Ours(variants.embedder, {})


@pytest.fixture(scope="module")
def model():
    return Model(CHECKPOINT)


def found(ours, variants, embed, inputs=INPUTS, least=0.9999):
    with serving(embed) as url:
        return compare((ours, Server(url, None, None, {})), inputs, least, variants, quietly)


def wrong(file: bytes) -> Image.Image:
    return Image.open(BytesIO(file)).convert("RGB")


# What the server does -> the kinds that differ, and for them the settings (A's value, B's) and B's options of ours.
LAST = "4 of 4"
SQUARES = (224, 256, 336, 384, 448, 512)  # which this checkpoint, at 64×64 pixels, does not tell apart: all are told
SIX = {
    "no final norm": (Settings(final_norm=False), ALL, {"final norm": ("yes", "no")}, {"final_norm": False}),
    "other template": (Settings(words=NO_WORDS), ALL, {"prompt": ("eol", "chat")}, {"prompt": "chat"}),
    "other resize": (
        Settings(open_image=lambda file: shown(file).resize((224, 224))),
        {"image", "both"},
        {"resize": ("bicubic, once", *(f"twice, first squashed to {side}×{side}" for side in SQUARES))},
        None,
    ),
    "mean": (Settings(pooling="mean"), ALL, {"pooling": ("last token", "mean of all tokens")}, None),
    "no generation prompt": (Settings(generation=False), ALL, {"generation prompt": ("yes", "no")}, None),
}
OTHERS = {
    "layer before the last": (Settings(layer=-2), ALL, {"layer": (LAST, "3 of 4")}, {"layer": 3}),
    "a system turn": (
        Settings(system="You are a helpful assistant."),
        ALL,
        {"instruction": ("none", "You are a helpful assistant.")},
        {"instruction": "You are a helpful assistant."},
    ),
    "words before the image": (
        Settings(text_first=True),
        {"image", "both"},
        {"order": ("image first", "all words first")},
        None,
    ),
    "nearest neighbour": (
        Settings(resample=Image.Resampling.NEAREST),
        {"image", "both"},
        {"resize": ("bicubic, once", "nearest")},
        None,
    ),
    "neither turned nor laid on white": (
        Settings(open_image=wrong),
        {"image"},
        {"decoding": ("as a viewer shows it", "not turned, transparency dropped")},
        None,
    ),
}


LONG = {"no final norm", "no generation prompt", "other resize", "other template", *OTHERS}  # these take longest


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.faults] * (name in LONG)) for name in SIX | OTHERS]
)
def test_one_wrong_setting_is_named(ours, variants, model, name):
    settings, kinds, changed, options = (SIX | OTHERS)[name]
    result = found(ours, variants, partial(model.embed, settings=settings))
    assert result.verdict == DIFFER, result.remarks
    assert set(result.causes) == kinds
    for causes in result.causes.values():
        [cause] = causes
        assert cause.settings == {setting: ((a,), tuple(b)) for setting, (a, *b) in changed.items()}
        assert cause.options[1] == options
    assert {row.kind for row in result.rows if not row.agrees} == kinds


@pytest.mark.parametrize(
    ("padding", "told"),
    [
        ("right, last position", "padded on the right, and the last position taken"),
        ("left", "padded on the left, and the position of the mask's sum taken"),
    ],
)
def test_the_wrong_side_of_padding_is_named(ours, variants, model, padding, told):
    """Alone nothing is padded, and nothing differs."""
    result = found(ours, variants, partial(model.embed, settings=Settings(padding=padding)))
    assert result.verdict == DIFFER, result.remarks
    assert result.causes == {}
    assert result.padding == {"B": [told]}
    assert all(row.alone >= 0.9999 for row in result.rows)
    assert min(row.together for row in result.rows) < 0.99


@pytest.mark.faults
def test_two_faults_at_once(ours, variants, model):
    settings = Settings(words=NO_WORDS, generation=False, pooling="mean", padding="left", final_norm=False)
    result = found(ours, variants, partial(model.embed, settings=settings))
    assert result.verdict == DIFFER, result.remarks
    for [cause] in result.causes.values():
        assert set(cause.settings) == {"prompt", "generation prompt", "pooling", "final norm"}


def test_what_is_right_agrees(ours, variants, model):
    result = found(ours, variants, partial(model.embed, settings=Settings()))
    assert (result.verdict, result.causes, result.remarks) == (AGREE, {}, [])
    assert all(row.agrees for row in result.rows)


def test_ours_and_transformers_agree_in_process(ours, variants):
    other = local.Transformers(str(CHECKPOINT))
    assert compare((ours, other), INPUTS, 0.9999, variants, quietly).verdict == AGREE


@pytest.mark.faults
def test_ours_and_sentence_transformers_agree_where_its_files_say_how(variants, ours, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    SentenceTransformer(
        modules=[Transformer(str(CHECKPOINT)), Pooling(128, "lasttoken"), Normalize()], device="cpu"
    ).save(str(tmp_path), create_model_card=False)
    other = local.SentenceTransformers(str(tmp_path))
    own = local.Ours.load(str(tmp_path), {})
    agreed = compare((own, other), INPUTS, 0.9999, None, quietly)
    assert agreed.verdict == AGREE, agreed
    # Ours over the folder without those files has another prompt, and that is told.
    differing = compare((ours, other), INPUTS, 0.9999, variants, quietly)
    assert differing.verdict == DIFFER
    for [cause] in differing.causes.values():
        assert {"prompt", "generation prompt"} == set(cause.settings)


def vectors_of(change):
    """A server of such vectors: `change` gets the number of an input, by what it is."""

    def embed(conversations):
        return [change(random.Random(json.dumps(each))) for each in conversations]

    return embed


def drawn(rng: random.Random, size: int = 128) -> list[float]:
    return [rng.gauss(0, 1) for _ in range(size)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drawn, "no variant of ours gives all its vectors"),
        (lambda rng: drawn(rng, 64), "no variant of ours gives all its vectors"),
        (lambda rng: drawn(rng, 300), "no variant of ours gives all its vectors"),
        (lambda rng: [1.0] * 128, "inputs have the same vector"),
        (lambda rng: [float("nan")] * 128, "The vector holds NaN or infinity."),
        (lambda rng: [0.0] * 128, "The vector is zero."),
        (lambda rng: 1 / 0, "500: "),
        (lambda rng: "no numbers", "could not convert string to float"),
    ],
    ids=["unrelated", "unrelated and shorter", "longer", "constant", "NaN", "zero", "errors", "words"],
)
def test_what_it_does_not_know_it_says(ours, variants, change, told):
    """And names no cause."""
    with serving(vectors_of(change)) as url:
        other = Server(url, "messages", None, {})
        result = compare((ours, other), TEXTS, 0.9999, variants, quietly)
    assert result.verdict == UNKNOWN
    assert not any(result.causes.values())
    lengths = {len(got) for each in (ours, other) for got in each.vectors(TEXTS[:1], False) if not isinstance(got, str)}
    assert any("B's vectors have" in each for each in result.remarks) or (len(lengths) < 2)
    assert any(told in remark and remark.startswith("B, ") for remark in result.remarks), result.remarks


def test_one_input_that_fails_is_told_and_is_no_agreement(ours, variants, model):
    def embed(conversations):
        if "very dark teal" in json.dumps(conversations):
            raise ValueError("not this one")
        return model.embed(conversations, Settings())

    result = found(ours, variants, embed, TEXTS)
    assert result.verdict == UNKNOWN
    assert _said(result) == "Not every input could be compared; A and B agree wherever both gave a vector"
    assert [row.name for row in result.rows if row.alone is None and row.kind == "text"] == ["very dark teal"]
    assert any("not this one" in remark for remark in result.remarks)


@pytest.mark.faults
def test_the_first_so_many_dimensions(ours, variants, model):
    settings = Settings(vector=lambda rows: torch.nn.functional.normalize(rows[:, :64], dim=-1))
    result = found(ours, variants, partial(model.embed, settings=settings))
    assert result.verdict == DIFFER
    for [cause] in result.causes.values():
        assert cause.settings == {"dimensions": (("128",), ("64",))}
        assert cause.options[1] == {"dimensions": 64}


def test_lengths_are_told(ours, variants, model):
    result = found(ours, variants, partial(model.embed, settings=Settings(vector=lambda rows: 7 * rows)))
    assert result.verdict == AGREE  # the cosines do
    assert "B, text: lengths are 7 … 7, not 1." in result.remarks


@pytest.mark.faults
def test_what_the_inputs_cannot_tell_apart_is_told(ours, variants, model):
    """One picture of 300×300 pixels is left as large by all usual bounds."""
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(file, "PNG")
    one = [*TEXTS, Input("noise", image=file.getvalue())]
    result = found(ours, variants, partial(model.embed, settings=Settings(areas=(65536, 16777216))), one)
    assert result.verdict == DIFFER
    [cause] = result.causes["image"]
    a, b = cause.settings["pixels"]
    assert a == ("4,096…4,096",)
    assert {"65,536…16,777,216", "4,096…16,777,216"} <= set(b)


def test_who_is_too_busy_is_asked_again(model, monkeypatch):
    """When it says, or in a second."""
    waited: list[float] = []
    monkeypatch.setattr("qwen3_vl_embed.compare.sides.sleep", waited.append)
    busy = iter([429, 429])
    with serving(partial(model.embed, settings=Settings()), busy=busy) as url:
        other = Server(url, "messages", None, {})
        assert [type(got) for got in other.vectors(TEXTS[:1], False)] == [np.ndarray]
    assert next(busy, None) is None
    assert waited == [1.0, 1.0]


def test_what_is_no_vector_is_told_as_it_is(ours):
    for row, told in (([[1.0, 2.0]] * 3, r"of the shape (3, 2)"), (None, "of the shape ()")):
        with serving(lambda conversations, row=row: [row] * len(conversations)) as url:
            [got] = Server(url, "messages", None, {}).vectors(TEXTS[:1], False)
        assert told in got


def test_lines_of_a_file_are_what_stands_between_its_line_breaks(tmp_path):
    (tmp_path / "texts").write_bytes("\ufeffred\u2028dark\r\n\nblue\x0cgreen".encode())
    assert [each.text for each in own(tmp_path / "texts", None)] == ["red\u2028dark", "blue\x0cgreen"]


def test_a_list_that_a_server_does_not_take_is_no_difference(ours, variants, model):
    def embed(conversations):
        if len(conversations) > 1:
            raise ValueError("one at a time")
        return model.embed(conversations, Settings())

    result = found(ours, variants, embed)
    assert result.verdict == AGREE
    assert any("not compared in a list" in remark for remark in result.remarks)


def test_only_the_named_key_is_sent(model, monkeypatch):
    monkeypatch.setenv("QWEN3_VL_EMBED_API_KEY", "ours")
    monkeypatch.setenv("THEIR_KEY", "theirs")
    sent = set()
    with serving(partial(model.embed, settings=Settings()), sent) as url:
        Server(url, None, None, {})
        assert sent == {None}
        Server(url, None, "THEIR_KEY", {})
        assert sent == {None, "Bearer theirs"}


@pytest.mark.faults
@pytest.mark.parametrize("schema", SCHEMAS)
def test_our_own_server_agrees_in_every_schema(stack, ours, variants, schema):
    result = compare((ours, Server(stack.adapter_url, schema, None, {})), INPUTS, 0.9999, variants, quietly)
    in_both = {row.kind for row in result.rows if row.alone is not None}
    assert in_both == ({"text", "image"} if schema == "benchmark" else {"text", "image", "both"})
    assert result.verdict == AGREE or schema == "openai"  # in whose strings the text stands before the image
    if schema == "openai":
        [cause] = result.causes.pop("both")
        assert (result.verdict, result.causes) == (DIFFER, {})
        assert cause.settings == {"order": (("image first",), ("text first",))}


# ---- As a person types it


def typed(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *words])
    return done.exit_code, done.stdout


@pytest.mark.faults
def test_the_command_tells_by_its_exit_code(model):
    folder = str(CHECKPOINT)
    code, out = typed("--checkpoint", folder, "--url", f"transformers:{folder}")
    assert (code, "A and B agree." in out) == (0, True)
    with serving(partial(model.embed, settings=Settings(final_norm=False))) as url:
        code, out = typed("--checkpoint", folder, "--url", url)
        assert code == 3
        assert "final norm: A yes, B no" in out
        assert '{"final_norm":false}' in out
        code, out = typed("--url", f"embedder:{folder}", "--url", url)
        assert (code, "Give --checkpoint" in out) == (4, True)
        code, out = typed("--url", f"embedder:{folder}", "--url", url, "--a", "final_norm=false", "--json")
        assert (code, json.loads(out)["verdict"]) == (0, "agree")


def test_what_cannot_be_done_is_a_sentence(tmp_path):
    for words, sentence in (
        (["--url", "http://127.0.0.1:1"], "Give two of --url"),
        (["--url", "http://127.0.0.1:1", "--url", "http://127.0.0.1:1"], "gives no vector of a text"),
        (["--url", "transformers:/nowhere", "--url", "http://127.0.0.1:1"], "/nowhere"),
        (["--url", "a", "--url", "b", "--texts", str(tmp_path / "none")], "cannot be read"),
        (["--url", "a", "--url", "b", "--key", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--url", "a", "--url", "b", "--schema", "soap"], "the schemas are"),
    ):
        done = CliRunner().invoke(app, ["compare", *words])
        assert done.exit_code in (1, 2)
        assert sentence in " ".join(done.stderr.split()), (words, done.stderr)
