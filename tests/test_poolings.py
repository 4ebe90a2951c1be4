"""The poolings: each takes the tokens that it names, and their weighted mean."""

import numpy as np
import pytest
import torch

from embedder.forward.pooling import average
from embedder.options import Options
from embedder.poolings import POOLINGS

CONTENT = ((2, 3), (5, 8))
SPANS = {"last": ((9, 10),), "mean": CONTENT, "eos": ((9, 10),)}


@pytest.mark.parametrize("name", POOLINGS)
def test_what_is_pooled(name):
    assert POOLINGS[name].tokens(10, CONTENT) == SPANS[name]
    assert POOLINGS[name].append in (None, "<|endoftext|>")
    assert f"`{name}`: {POOLINGS[name].description}" in str(Options.model_fields["pooling"].description)


def test_a_vector_is_the_weighted_mean_of_its_own_states():
    states = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    weights = [np.ones(2, np.float32), np.float32([7]), np.arange(1, 7, dtype=np.float32)]
    expected = [np.average(part, axis=0, weights=w) for part, w in zip(states.split([2, 1, 6]), weights, strict=True)]
    np.testing.assert_allclose(average(states, weights, None), expected, rtol=1e-5)
