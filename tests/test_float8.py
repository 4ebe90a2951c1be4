"""Weights as 8-bit floats: their rounding, their products, what is refused, and the comparison before they are served.

On a CPU, by torch's own form of the rounding; `test_operations.py` has the kernel.
"""

from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, silu

from embedder import Embedder, EmbedderConfig, EmbedInput, Options, UnsupportedCheckpoint
from embedder.checkpoint import open_checkpoint
from embedder.forward import float8
from embedder.forward.float8 import Float8Linear, Float8MLP, fewest_rows
from embedder.forward.hardware import no_float8
from embedder.forward.operations import FLOAT8, to_float8
from embedder.parity import LEAST
from embedder.parity import to_float8 as serve_in_float8
from tests.conftest import CHECKPOINT
from tests.reference import cosine, random_checkpoint
from tests.test_hardware import H100, L4, SLICE, T4

HALF_A_STEP = 2**-4  # of 8-bit floats of three binary digits, relative
INSTRUCTED = EmbedInput("red", None, Options(instruction="Name the colour of what is shown, in one word."))


def multiplied_by_rows() -> bool:
    """torch 2.11 does so on a GPU alone."""
    rows, scale = to_float8(torch.ones(16, 16))
    try:
        torch._scaled_mm(rows, rows.t(), scale, scale.t().contiguous())
    except RuntimeError:
        return False
    return True


multiplies = pytest.mark.skipif(not multiplied_by_rows(), reason="this torch multiplies 8-bit floats on a GPU alone")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("activation", "exactly"),
    [
        ("", lambda x: x),
        ("gelu", lambda x: gelu(x, approximate="tanh")),
        ("silu_mul", lambda x: silu(x[..., :320]) * x[..., 320:]),
    ],
)
def test_each_number_is_the_nearest_8_bit_one(activation, exactly, dtype):
    given = (draw(2, 3, 640) * torch.logspace(-6, 6, 6).view(2, 3, 1)).to(dtype)  # rows of very different sizes
    rows, scale = to_float8(given, activation)
    exact = exactly(given.double()).flatten(0, 1)
    assert (rows.dtype, rows.shape) == (FLOAT8, exact.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (6, 1))
    assert (rows.float().abs().amax(dim=1) == 448).all()
    off, size = (rows.double() * scale - exact).abs(), exact.abs()
    least = 2.0**-6 * scale  # below it steps are all the same
    assert (off <= HALF_A_STEP * torch.maximum(size, least) * 1.001).all()


def test_what_is_no_number_stays_none():
    given = draw(4, 32)
    given[0, 3], given[1, 4], given[2] = torch.nan, torch.inf, 0
    rows, scale = to_float8(given)
    products = (rows.float() * scale).sum(dim=1)  # as of weights of one
    assert products[:2].isnan().all()
    assert products[2] == 0
    assert products[3].isfinite()


@multiplies
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["", "gelu", "silu_mul"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_rounded_numbers(activation, bias, dtype):
    linear = nn.Linear(96, 48, bias).to(dtype).requires_grad_(False)
    ours, given = Float8Linear(linear), draw(1, 7, 192 if activation == "silu_mul" else 96).to(dtype)
    assert (ours.weight.dtype, ours.weight.shape, ours.scale.shape) == (FLOAT8, (48, 96), (1, 48))
    out = ours(given, activation)
    rows, scale = to_float8(given, activation)
    exact = (rows.double() * scale) @ (ours.weight.double() * ours.scale.t()).t() + (linear.bias if bias else 0)
    assert (out.dtype, out.shape) == (dtype, (1, 7, 48))
    assert (out[0] - exact).norm() / exact.norm() <= (1e-6 if dtype == torch.float32 else 4e-3)


@multiplies
@pytest.mark.parametrize("activation", ["", "silu_mul"])
def test_few_rows_are_filled_up_where_nothing_multiplies_them(activation, monkeypatch, caplog):
    """As cuBLAS was seen to refuse few rows of many numbers. Rows that are added change no other."""
    real = torch._scaled_mm

    def picky(rows, *given, **more):
        if len(rows) <= 20 and rows.shape[1] == 96:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return real(rows, *given, **more)

    linear = Float8Linear(nn.Linear(96, 48).bfloat16().requires_grad_(False))
    given = draw(1, 7, 192 if activation == "silu_mul" else 96).bfloat16()
    plain, cpu = linear(given, activation), torch.device("cpu")
    fewest_rows.cache_clear()
    assert fewest_rows(48, 96, True, torch.bfloat16, cpu) == 1
    fewest_rows.cache_clear()
    monkeypatch.setattr(torch, "_scaled_mm", picky)
    with pytest.raises(RuntimeError):
        linear(given, activation)
    linear.fewest = fewest_rows(48, 96, True, torch.bfloat16, cpu)
    assert linear.fewest == 21
    assert "48 × 96, are filled up to 21 rows" in caplog.text
    assert fewest_rows(96, 48, False, torch.bfloat16, cpu) == 1
    assert torch.equal(linear(given, activation), plain)
    assert linear(draw(30, given.shape[-1]).bfloat16(), activation).shape == (30, 48)
    fewest_rows.cache_clear()


@pytest.fixture(scope="module")
def embedder():
    return Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu", dtype="bfloat16"))


def again() -> Embedder:
    return Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu", dtype="bfloat16"))


@multiplies
def test_vectors_stay_and_every_layers_matrices_are_rounded(embedder):
    """The shipped checkpoint's. What was cached of the weights before is forgotten."""
    ours = again()
    ours.embed([INSTRUCTED])  # its prefix is cached
    before, plain = (
        ours.model.bytes,
        {name for name, each in ours.model.model.named_modules() if isinstance(each, nn.Linear)},
    )
    serve_in_float8(ours)
    assert LEAST <= ours.info["weights_cosine"] < 1
    model = ours.model.model
    kinds = [type(each) for each in (*model.language_model.layers.modules(), *model.visual.blocks.modules())]
    layers = len(model.language_model.layers) + len(model.visual.blocks)
    assert (kinds.count(Float8Linear), kinds.count(Float8MLP)) == (4 * layers, layers)
    assert not any(issubclass(kind, nn.Linear) for kind in kinds)
    left = {name for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    assert left == {name for name in plain if "layers." not in name and "blocks." not in name}
    assert left  # the mergers and the patch embedding
    assert ours.model.bytes < before
    fresh = again()
    float8.convert(fresh.model.model)
    one, other, exact = (each.embed([INSTRUCTED])[0].vector for each in (ours, fresh, embedder))
    np.testing.assert_array_equal(one, other)
    assert 1 > cosine(one, exact) >= LEAST


@multiplies
def test_it_is_a_setting(embedder, monkeypatch):
    """From the setting to a replayed pass, but for what refuses a CPU."""
    monkeypatch.setattr("embedder.embedder.usable", lambda *_: ("cpu", "bfloat16"))
    monkeypatch.setattr("embedder.warmup.WORDS", 2)
    ours = Embedder.load(EmbedderConfig(checkpoint=str(CHECKPOINT), weights="float8"))
    assert (ours.info["dtype"], ours.info["weights"]) == ("bfloat16", "float8_e4m3fn")
    assert LEAST <= ours.info["weights_cosine"] < 1
    red = EmbedInput("red")
    ordinary = ours.embed([red])[0].vector
    ours.warm_up()
    replayed = ours.embed([red])[0].vector
    assert ours.model.replay.replayed
    assert cosine(replayed, ordinary) >= 0.9999
    assert 1 > cosine(replayed, embedder.embed([red])[0].vector) >= LEAST


@multiplies
def test_a_checkpoint_whose_vectors_move_is_refused(monkeypatch):
    def badly(model):
        convert(model)
        model.language_model.layers[0].mlp.second.scale *= 3

    convert = float8.convert
    monkeypatch.setattr(float8, "convert", badly)
    with pytest.raises(
        UnsupportedCheckpoint, match=r"cosine 0\.\d+ to that by the unrounded weights, and 0.99 is the l"
    ):
        serve_in_float8(again())


def test_a_model_that_cannot_be_computed_so_is_refused(embedder, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    ours = again()
    monkeypatch.setattr(torch, "_scaled_mm", fails)
    with pytest.raises(UnsupportedCheckpoint, match=r"fails on its first inputs: .*NOT_SUPPORTED; .*: leave EMBED_W"):
        serve_in_float8(ours)
    monkeypatch.setattr(type(embedder.model), "devices", {torch.device("cuda", 0), torch.device("cuda", 1)})
    with pytest.raises(UnsupportedCheckpoint, match="spread over 2 GPUs, which EMBED_WEIGHTS=float8 is not for"):
        serve_in_float8(embedder)


@pytest.mark.parametrize("card", [None, T4, SLICE])
def test_what_multiplies_no_8_bit_floats_is_refused(card):
    said = no_float8(card, "bfloat16")
    assert f"sm_89, Ada, is the first), and this is {card or 'a CPU'}: leave EMBED_WEIGHTS unset" in said


@pytest.mark.parametrize("card", [L4, H100])
def test_what_does_is_served_with_bfloat16(card):
    assert no_float8(card, "bfloat16") is None
    assert "goes with bfloat16 and not with float32" in no_float8(card, "float32")


def test_a_cpu_is_refused_before_anything_is_loaded():
    config = EmbedderConfig(checkpoint=str(CHECKPOINT), device="cpu", weights="float8")
    with pytest.raises(UnsupportedCheckpoint, match="and this is a CPU: leave EMBED_WEIGHTS unset"):
        Embedder.load(config)


def test_a_checkpoint_without_such_layers_is_refused(tmp_path, monkeypatch):
    assert float8.refusal(open_checkpoint(str(CHECKPOINT)).config) is None
    experts = random_checkpoint(tmp_path / "experts", experts_per_token=2)
    assert "has experts" in float8.refusal(open_checkpoint(str(experts)).config)
    monkeypatch.setattr("embedder.embedder.usable", lambda *_: ("cpu", "bfloat16"))  # as on a GPU
    with pytest.raises(UnsupportedCheckpoint, match=r"has experts, .*: leave EMBED_WEIGHTS unset"):
        Embedder.load(EmbedderConfig(checkpoint=str(experts), weights="float8"))


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        (
            "text_config",
            {"intermediate_size": 200},
            "has intermediate_size 200; 8-bit floats are multiplied in multiples",
        ),
        ("text_config", {"num_key_value_heads": 1, "head_dim": 24}, "has num_key_value_heads × head_dim 24"),
        ("vision_config", {"hidden_size": 72}, "has the vision tower's hidden_size 72"),
        ("vision_config", {"hidden_act": "gelu"}, "has the activations silu and gelu"),
    ],
)
def test_a_shape_that_is_not_multiplied_is_refused(part, changed, said):
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    text = sizes | {"hidden_act": "silu", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    parts = {"text_config": text, "vision_config": sizes | {"hidden_act": "gelu_pytorch_tanh"}}
    parts[part] |= changed
    config = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in parts.items()})
    assert said in float8.refusal(config)


def test_weights_are_a_part_of_what_makes_the_vectors(embedder):
    """Other weights, another id, though checkpoint and arithmetic are the same."""
    preparer = copy(embedder.preparer)
    preparer.config = preparer.config.model_copy(update={"weights": "float8"})
    rounded = Embedder(embedder.checkpoint, embedder.model, preparer)
    assert (embedder.info["dtype"], embedder.info["weights"]) == ("bfloat16", "bfloat16")
    assert (rounded.info["dtype"], rounded.info["weights"]) == ("bfloat16", "float8_e4m3fn")
    assert rounded.info["id"] != embedder.info["id"]
    assert Embedder(embedder.checkpoint, embedder.model, embedder.preparer).info["id"] == embedder.info["id"]
