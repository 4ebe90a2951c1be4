"""An image as a string: told from texts by its first letters, and read where an image is expected."""

import base64
import random
from pathlib import Path

import pytest

from embedder import InvalidInput
from embedder.prepare.encoded import image_file, is_image
from tests.bad_inputs import AS_TEXT, FILES, FORMS, TEXTS, flat_webp

IMAGES = FILES | {"a WebP of 34 bytes": flat_webp(6000, 6000)}
IMAGES |= {path.name: path.read_bytes() for path in Path("tests/data/images").iterdir() if path.suffix != ".json"}


@pytest.mark.parametrize("form", FORMS)
def test_every_image_is_found_in_every_form(form):
    as_written = {"drawing.svg"} if form.startswith("bytes") else set()  # which is a text
    assert {name for name, file in IMAGES.items() if not is_image(FORMS[form](file))} == as_written


@pytest.mark.parametrize("name", TEXTS)
def test_what_only_looks_like_one_is_a_text(name):
    text, sentence = TEXTS[name]
    assert is_image(text) == (sentence == AS_TEXT)


def test_random_words_are_texts():
    drawn = random.Random(1)
    for _ in range(5000):
        content = drawn.randbytes(drawn.randrange(12, 60))
        assert not is_image(base64.b64encode(content).decode())
        assert not is_image(content.hex())


@pytest.mark.parametrize("name", IMAGES)
def test_a_file_its_base64_and_its_url_are_the_same_image(name):
    """No file is taken for base64, whatever it begins with."""
    file = IMAGES[name]
    encoded = base64.b64encode(file)
    assert image_file(file) == image_file(encoded) == image_file(b"data:image/png;base64," + encoded) == file


@pytest.mark.parametrize(
    "data",
    [
        b"data:image/png,AAAA",
        b"data:image/png" + b";" * 10**7 + b";base64,AAAA",
        b"data:text/plain;base64,AAAA",
        b"A" * 17,
        b"A" * 16 + b"-_==",
    ],
)
def test_a_string_that_is_neither_is_refused(data):
    with pytest.raises(InvalidInput, match="base64"):
        image_file(data)
