"""Options through the whole stack: recipes in headers and cache keys, text with image, render, warnings."""

import base64

import httpx
import numpy as np
import pytest

from qwen3_vl_embed.evaluation.colours import png, swatch
from tests.reference import cosine

RED = base64.b64encode(png(swatch((255, 0, 0)))).decode()


@pytest.fixture
def http(stack):
    with httpx.Client(base_url=stack.adapter_url, timeout=60) as client:
        yield client


def embed(http, path="/txt/embed", **body):
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embedding"], dtype=np.float32), answer.headers


RECIPES = [
    {},
    {"prompt": "colour"},
    {"prompt": "chat"},
    {"prompt": "none"},
    {"prompt": "{content}\nColour name:"},
    {"pooling": "mean"},
    {"pooling": "eos"},
    {"layer": -2},
    {"layer": "attn"},
    {"final_norm": False, "layer": 2},
]


def test_every_recipe_has_its_own_vector_and_id(http):
    for path, content in (("/txt/embed", "dark teal"), ("/img/embed", RED)):
        answers = [embed(http, path, input=content, **recipe) for recipe in RECIPES]
        again = [embed(http, path, input=content, **recipe) for recipe in RECIPES]  # from the cache
        assert len({headers["x-recipe"] for _, headers in answers}) == len(RECIPES)
        for i, (vector, headers) in enumerate(answers):
            assert again[i][0].tolist() == vector.tolist()
            assert again[i][1]["x-recipe"] == headers["x-recipe"]
            assert again[i][1]["x-cache-hits"] == "1"
            assert all(cosine(vector, other) < 0.99999 for other, _ in answers[i + 1 :])


def test_text_and_image_share_a_recipe_id(http):
    text, image = embed(http, input="red"), embed(http, "/img/embed", input=RED)
    assert text[1]["x-recipe"] == image[1]["x-recipe"]
    assert http.get("/info").json()["model"]["recipe"]["id"] == text[1]["x-recipe"]


def test_text_with_image_is_one_vector(http):
    alone, _ = embed(http, "/img/embed", input=RED)
    both, _ = embed(http, "/img/embed", input=RED, text="red")
    listed, _ = embed(http, "/img/embed", input=[RED, RED], text=["red", "blue"])
    assert cosine(alone, both) < 0.99999
    assert cosine(both, listed[0]) >= 0.99999 > cosine(listed[0], listed[1])
    for wrong in ({"input": RED, "text": ["red"]}, {"input": [RED, RED], "text": ["red"]}, {"input": RED, "text": ""}):
        answer = http.post("/img/embed", json=wrong)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("text")


def test_dimensions_come_with_a_warning(http):
    _, headers = embed(http, input="red", dimensions=16)
    assert "was not trained for" in headers["x-warning"]
    assert embed(http, input="red", dimensions=16)[1]["x-warning"] == headers["x-warning"]  # from the cache too
    assert "x-warning" not in embed(http, input="red")[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": "color"}, "name one of eol, colour"),
        ({"layer": 99}, "0 (the input) … 4 (the last)"),
        ({"center": True}, "no calibration"),
        ({"dimensions": 7}, "dimensions"),
        ({"render": True}, 'Unknown field "render"'),
    ],
)
def test_impossible_options_are_refused(http, options, sentence):
    answer = http.post("/txt/embed", json={"input": "red", **options})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


def test_render_shows_what_the_model_sees(http):
    rendered = http.post("/debug/render", json={"text": "red"}).json()
    assert rendered["prompt"] == (
        "<|im_start|>user\nred\nSummary above sentence in one word:<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered["pooled"] == [[len(rendered["ids"]) - 1, len(rendered["ids"])]]
    image = http.post("/debug/render", json={"image": RED, "pooling": "mean", "prompt": "colour"}).json()
    assert image["grid"] == [1, 4, 4]
    assert image["pooled"] == image["content"]
    assert image["recipe"] != rendered["recipe"]
    assert http.post("/debug/render", json={}).status_code == 400
    assert http.post("/debug/render", json={"text": "red", "layer": 99}).status_code == 400
