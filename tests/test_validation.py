"""What `validate` calls right and wrong, on documents and matrices made for it. On a real server: test_cli.py."""

import copy
import io

import numpy as np
import pytest
from PIL import Image

from qwen3_vl_embed.cli import validation
from qwen3_vl_embed.cli.validation import BASIC_COLOURS, NAMES, SWATCH_SIDE, Validation, swatch
from qwen3_vl_embed.contract import ContractError, read_contract

LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 32}]}
GONE = {"$ref": "#/components/schemas/Gone"}
BODY = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}}
DOCUMENT = {
    "paths": {path: {"post": {"requestBody": BODY}} for path in ("/txt/embed", "/img/embed")},
    "components": {
        "schemas": {"Body": {"properties": {"input": {"$ref": "#/components/schemas/Input"}}}, "Input": LIST}
    },
}


def test_contract_follows_local_references():
    assert read_contract(DOCUMENT).max_items == 32


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("paths", "/img/embed"), {"get": {}}, "does not declare POST /img/embed"),
        (("components", "schemas", "Input"), {"type": "string"}, "may be a list"),
        (("components", "schemas", "Input"), {"type": "array"}, "no `maxItems`"),
        (("components", "schemas", "Body"), {"properties": {"input": GONE}}, "which is not in it"),
    ],
)
def test_contract_says_what_is_missing(keys, value, sentence):
    document = copy.deepcopy(DOCUMENT)
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(ContractError, match=sentence):
        read_contract(document)


def test_red_must_beat_every_other_swatch():
    cosines = np.eye(len(NAMES), dtype=np.float32)
    assert validation._red(cosines).passed
    cosines[NAMES.index("red"), NAMES.index("orange")] = 1.0  # a tie is no win: a constant vector ties with everything
    assert not validation._red(cosines).passed
    assert not validation._red(-np.ones_like(cosines) + np.eye(len(NAMES)) / 2).passed  # best, but negative


def test_strict_counts_every_colour():
    cosines = np.eye(len(NAMES), dtype=np.float32)
    assert validation._every_colour(cosines).passed
    cosines[NAMES.index("grey"), NAMES.index("brown")] = 2
    check = validation._every_colour(cosines)
    assert not check.passed
    assert check.detail.startswith("10 of 11")
    assert Validation([check], cosines).best("grey") == "brown"
    assert not Validation([check], cosines).passed


@pytest.mark.parametrize("name", NAMES)
def test_swatches_are_solid_pngs_of_the_benchmarks_size(name):
    with Image.open(io.BytesIO(swatch(name))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SWATCH_SIDE, SWATCH_SIDE))
        assert image.getcolors() == [(SWATCH_SIDE**2, BASIC_COLOURS[name])]
