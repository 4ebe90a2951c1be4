"""The benchmark's run over its 949 colours, in batches and singly, against the real stack and models.yaml."""

import base64
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from qwen3_vl_embed.evaluation.colours import png, swatch, xkcd
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import values
from qwen3_vl_embed.evaluation.retrieval import cosine
from qwen3_vl_embed.evaluation.space import raw
from tests.benchmark_client import LocalProvider

NAME = "qwen3-vl-color-tiny-dev"
PALETTE = xkcd()


@pytest.fixture(scope="module")
def swatches():
    return [png(swatch(rgb)) for rgb in PALETTE.rgb]


@pytest.fixture(scope="module")
def provider(stack):
    entry = yaml.safe_load(Path("models.yaml").read_text())["models"][NAME]
    with LocalProvider(entry, stack.adapter_url) as found:
        yield found


@pytest.fixture(scope="module", params=[5, pytest.param(1, marks=pytest.mark.benchmarks)])
def every(request):
    """Each how manyth colour is asked for singly: all in the long run, 1,898 requests in a row."""
    return slice(None, None, request.param)


@pytest.fixture(scope="module")
def singly(provider, swatches, every):
    return provider.texts(list(PALETTE.names[every]), 1), provider.images(swatches[every], 1)


@pytest.fixture(scope="module")
def batched(provider, swatches):
    """The same in batches; the default pooling is spelled out, or the cache would answer from the single requests."""
    with LocalProvider(provider.entry, provider.base_url, {"pooling": "last"}) as other:
        return other.texts(list(PALETTE.names), 64), other.images(swatches, 64)


def test_the_batch_size_is_discovered(provider):
    assert provider.max_batch == 256
    assert provider.entry["user_batch_size"] <= provider.max_batch


def test_names_find_their_swatches(batched):
    found = values(raw(Pairs(PALETTE.names, *batched)))
    assert found["text_to_image_recall_1"] >= 0.85
    assert found["text_to_image_recall_10"] >= 0.995
    assert found["matched_mean"] <= 0.06
    assert found["unmatched_mean"] >= 0.90


def test_batches_give_what_single_requests_give(singly, batched, every):
    for one_by_one, in_batches in zip(singly, batched, strict=True):
        assert in_batches.shape == (949, 128)
        assert one_by_one.shape == in_batches[every].shape
        assert np.diag(cosine(one_by_one, in_batches[every])).min() >= 0.99999


def test_a_last_batch_of_one_is_a_plain_string(provider):
    assert provider.texts(["red", "green", "blue"], 2).shape == (3, 128)


@pytest.mark.parametrize("field", ["input", "content"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_every_form_of_an_image(stack, field, prefix):
    image = prefix + base64.b64encode(png(swatch(PALETTE.rgb[0]))).decode()
    for content, depth in ((image, 1), ([image], 2), ([image, image], 2)):
        answer = httpx.post(f"{stack.adapter_url}/img/embed", json={field: content}, timeout=60)
        assert answer.status_code == 200
        assert list(answer.json()) == ["embedding"]
        assert np.array(answer.json()["embedding"]).ndim == depth
