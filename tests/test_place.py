"""Where in its text an image stands: the option `image_at`, against transformers' own chat template and model."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen3VLModel

from embedder import Embedder, EmbedderConfig, EmbedInput, InvalidInput, Options
from tests.reference import Reference, cosine, png, random_checkpoint

TEXT = "red 🎨 like\nthis one"
PLACES = [0, 1, 4, 5, 6, 10, len(TEXT) - 1, len(TEXT)]
PICTURE = png((100, 300), 1)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = random_checkpoint(tmp_path_factory.mktemp("random"))
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def reference(embedder):
    folder = embedder.config.checkpoint
    return Reference(folder, Qwen3VLModel.from_pretrained(folder, attn_implementation="sdpa").eval())


def placed(at: int | None, text: str | None = TEXT, **options) -> EmbedInput:
    return EmbedInput(text, PICTURE, Options(image_at=at, **options))


@pytest.mark.parametrize("at", PLACES)
def test_every_place_is_transformers_own(embedder, reference, at):
    expected = reference.image(Image.open(BytesIO(PICTURE)), TEXT[:at], TEXT[at:])
    sequence = embedder.prepare(placed(at)).sequence
    assert sequence.tokens.ids.tolist() == expected.ids.tolist()
    assert (sequence.positions == expected.positions).all()
    assert np.arange(*sequence.tokens.image).tolist() == np.flatnonzero(expected.content).tolist()
    last, mean = embedder.embed([placed(at), placed(at, pooling="mean")])
    assert cosine(last.vector, expected.hidden[-1]) >= 0.99999
    rows = np.concatenate([expected.hidden[start:stop] for start, stop in sequence.tokens.content])
    assert cosine(mean.vector, rows.mean(axis=0)) >= 0.99999


def test_the_text_around_an_image_is_the_whole_text(embedder):
    for at in PLACES:
        tokens = embedder.prepare(placed(at)).sequence.tokens
        texts = [tokens.ids[start:stop] for start, stop in tokens.content if (start, stop) != tokens.image]
        drawn = "".join(map(embedder.renderer.decode, texts))
        assert drawn.removesuffix("\n").startswith(TEXT)  # a token may join the last sign to the line break after it


def test_each_place_has_its_own_vector_and_recipe_and_the_default_is_before(embedder):
    answers = embedder.embed([placed(at) for at in (None, 0, 4, -1)])
    ids = [answer.recipe.id for answer in answers]
    assert ids[0] == ids[1] == embedder.info["recipe"]["id"]
    assert len(set(ids)) == 3
    assert cosine(answers[0].vector, answers[1].vector) >= 0.999999
    for one, other in ((0, 2), (0, 3), (2, 3)):
        assert cosine(answers[one].vector, answers[other].vector) < 0.9999


def test_from_the_end_it_is_the_same_place(embedder):
    for at in PLACES:
        ids = [embedder.prepare(placed(each)).sequence.tokens.ids.tolist() for each in (at, at - len(TEXT) - 1)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("at", [len(TEXT) + 1, -len(TEXT) - 2, 10**12])
def test_a_place_that_the_text_has_not_is_refused(embedder, at):
    with pytest.raises(InvalidInput, match=rf"image_at: 0 .* … {len(TEXT)} "):
        embedder.prepare(placed(at))


@pytest.mark.parametrize("item", [placed(-1, text=None), EmbedInput("red", options=Options(image_at=1))])
def test_alone_nothing_has_a_place(embedder, item):
    with pytest.raises(InvalidInput, match=r"image_at: .* send both"):
        embedder.prepare(item)


def test_a_pass_captured_for_one_place_is_right_for_another(tmp_path):
    """Of the same length: what is replayed reads where the image stands."""
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(random_checkpoint(tmp_path)), device="cpu"))
    places = [placed(at, "x" * 9) for at in (3, 5, 6)]
    assert len({len(embedder.prepare(item).sequence) for item in places}) < len(places)
    ordinary = [embedder.embed([item])[0].vector for item in places]
    with embedder.model.capturing():
        for item in places:
            embedder.embed([item])
    for first, item in zip(ordinary, places, strict=True):
        assert cosine(first, embedder.embed([item])[0].vector) >= 0.99999
    assert cosine(ordinary[0], ordinary[1]) < 0.9999


def test_a_callers_text_is_no_slot(embedder):
    text = "{image}{text}\ue000rest\ue000<|image_pad|>"
    for at in range(len(text) + 1):
        tokens = embedder.prepare(placed(at, text)).sequence.tokens
        assert (tokens.ids == embedder.renderer._special["<|image_pad|>"]).sum() == tokens.image[1] - tokens.image[0]
        texts = [tokens.ids[start:stop] for start, stop in tokens.content if (start, stop) != tokens.image]
        assert "".join(map(embedder.renderer.decode, texts)).removesuffix("\n") == text


def test_a_template_that_moves_the_image_is_refused(tmp_path):
    """Else all places would have the vector of one."""
    folder = random_checkpoint(tmp_path)
    moving = (
        "{%- for m in messages %}<|im_start|>{{ m.role }}\n{%- for p in m.content if p.type == 'image' -%}"
        "<|vision_start|><|image_pad|><|vision_end|>{%- endfor %}{%- for p in m.content if p.type == 'text' -%}"
        "{{ p.text }}{%- endfor %}<|im_end|>\n{%- endfor %}<|im_start|>assistant\n"
    )
    (folder / "chat_template.jinja").write_text(moving)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    if "chat_template" in settings:
        file.write_text(json.dumps(settings | {"chat_template": moving}))
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    assert embedder.prepare(placed(0)).sequence.tokens.image
    for at in (1, -1):
        with pytest.raises(InvalidInput, match=r"\(text, image.*\) (in its order|exactly once)"):
            embedder.prepare(placed(at))
