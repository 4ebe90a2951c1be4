"""Every layer and pooling against transformers' own hidden states, one input at a time; recipes and calibrations."""

from io import BytesIO

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from PIL import Image
from transformers import Qwen3VLModel

from embedder import (
    Description,
    Embedder,
    EmbedderConfig,
    EmbedInput,
    InvalidInput,
    Options,
    Rendering,
    UnsupportedCheckpoint,
    Warnings,
)
from embedder.checkpoint import open_checkpoint
from embedder.forward.model import PackedModel
from embedder.forward.packing import pack
from embedder.forward.weights import load_model
from embedder.prepare.calibration import Calibration, fit, save, scaled
from tests.reference import Reference, cosine, png, random_checkpoint

LAYERS = 4
DEEPSTACK = 3  # image features are added after each of the first three layers
INPUTS = [EmbedInput(text="very dark teal"), EmbedInput(text="red"), EmbedInput(image=png((333, 97), 1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def embedder(folder):
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder, Qwen3VLModel.from_pretrained(folder, attn_implementation="sdpa").eval())


def states(reference, item, layer):
    """(T, D) of one input: what a model of `layer` layers gives without its final norm; the content's tokens."""
    whole = reference.model.language_model.layers, reference.model.language_model.norm
    text = reference.model.language_model
    text.layers, text.norm = torch.nn.ModuleList(list(whole[0])[:layer]), torch.nn.Identity()
    try:
        stages = reference.text(item.text) if item.image is None else reference.image(Image.open(BytesIO(item.image)))
    finally:
        text.layers, text.norm = whole
    return stages.hidden, stages.content


def expected(reference, item, options):
    layer = options["layer"] % (LAYERS + 1)
    hidden, content = states(reference, item, layer)
    rows = torch.from_numpy(hidden[-1:] if options["pooling"] == "last" else hidden[content])
    if options["final_norm"]:
        with torch.inference_mode():
            rows = reference.model.language_model.norm(rows)
    return rows.numpy().mean(axis=0)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [*range(LAYERS + 1), -1, -2, -LAYERS - 1])
def test_layers(embedder, reference, layer, pooling, final_norm):
    options = {"layer": layer, "pooling": pooling, "final_norm": final_norm}
    inputs = [EmbedInput(item.text, item.image, Options(**options, normalize=False)) for item in INPUTS]
    for item, answer in zip(INPUTS, embedder.embed(inputs), strict=True):
        want = expected(reference, item, options)
        assert cosine(answer.vector, want) >= 0.99999
        assert np.linalg.norm(answer.vector) == pytest.approx(np.linalg.norm(want), rel=1e-4)


def test_layers_are_transformers_hidden_states(embedder, reference, folder):
    """Captured states agree wherever transformers' do not lack what DeepStack adds: text, and images after it."""
    for item in INPUTS:
        sequence = embedder.prepare(item).sequence
        packed = pack([sequence])
        with torch.inference_mode():
            ours = embedder.model.hidden(packed, range(LAYERS + 1))
            inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
            if packed.images is not None:
                pixels = embedder.model.normalized(packed.images.pixels).unflatten(1, (1, -1, 3)).permute(0, 3, 1, 2)
                grid = torch.tensor([[1, *packed.images.grids[0]]])
                inputs |= {"pixel_values": pixels.repeat(1, 1, 2, 1).flatten(1), "image_grid_thw": grid}
            theirs = reference.model(**inputs, output_hidden_states=True).hidden_states
        image = np.zeros(len(sequence), dtype=bool)
        if sequence.tokens.image:
            image[slice(*sequence.tokens.image)] = True
        for layer in range(LAYERS):  # theirs of the last layer is after the final norm
            same = np.allclose(ours[layer].numpy(), theirs[layer][0].numpy(), atol=1e-4)
            assert np.allclose(ours[layer].numpy()[~image], theirs[layer][0].numpy()[~image], atol=1e-4)
            assert same == (not image.any() or layer == 0 or layer > DEEPSTACK)


def test_attn_is_the_state_before_the_last_mlp(embedder):
    """From it, transformers' own last MLP and norm give the last hidden state."""
    last = embedder.model.model.language_model.layers[-1]
    for item in INPUTS:
        raw = EmbedInput(item.text, item.image, Options(layer="attn", final_norm=False, normalize=False))
        answers = embedder.embed([raw, with_(item, normalize=False)])
        attn, final = (torch.from_numpy(answer.vector) for answer in answers)
        with torch.inference_mode():
            rebuilt = embedder.model.final_norm(attn + last.mlp(last.post_attention_layernorm(attn)))
        torch.testing.assert_close(rebuilt, final, atol=1e-4, rtol=1e-4)


def test_hooks_around_layers_change_nothing(folder, embedder):
    """Where one GPU is too small, accelerate wraps every part and moves what it is given. Here all go to the CPU."""
    checkpoint = open_checkpoint(str(folder), None)
    model = load_model(checkpoint, torch.float32, "cpu")
    inner = [f"language_model.{name}" for name, _ in model.language_model.named_children() if name != "layers"]
    parts = ["visual", *inner, *(f"language_model.layers.{index}" for index in range(LAYERS))]
    model = dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    assert all(hasattr(layer, "_hf_hook") for layer in model.language_model.layers)
    packed = PackedModel.of(model, checkpoint.processor.image_processor)
    hooked = Embedder(checkpoint, packed, embedder.preparer)
    for options in ({}, {"layer": "attn"}, {"layer": 1, "pooling": "mean"}, {"prompt": "embedding"}):
        inputs = [with_(item, **options) for item in INPUTS]
        for ours, plain in zip(hooked.embed(inputs), embedder.embed(inputs), strict=True):
            assert cosine(ours.vector, plain.vector) >= 0.99999


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_are_an_argument_whatever_the_mode_is(folder, mode):
    """With them, every weight that a vector depends on gets one; without, the states are the same and hold nothing."""
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    model = embedder.model
    packed = pack([embedder.prepare(item).sequence for item in INPUTS], reuse=False)
    model.model.requires_grad_(True)
    with mode():
        plain = model.hidden(packed, [LAYERS])[LAYERS]
        states = model.hidden(packed, [LAYERS], gradients=True)[LAYERS]
    assert plain.is_inference()
    torch.testing.assert_close(states.detach(), plain, atol=1e-4, rtol=1e-4)
    model.final_norm(states).square().sum().backward()
    assert [name for name, weight in model.model.named_parameters() if weight.grad is None] == []


def with_(item, **options):
    return EmbedInput(item.text, item.image, Options(**options))


def test_mixed_recipes_share_a_batch(embedder):
    recipes = [{"layer": layer, "pooling": pooling} for layer in (1, -1, "attn") for pooling in ("last", "mean", "eos")]
    inputs = [with_(item, **recipe) for recipe in recipes for item in INPUTS]
    for item, answer in zip(inputs, embedder.embed(inputs), strict=True):
        assert cosine(answer.vector, embedder.embed([item])[0].vector) >= 0.99999
    ids = {embedder.prepare(item).recipe.id for item in inputs}
    assert len(ids) == len(recipes)


def test_eos_pools_an_appended_token(embedder):
    plain, eos = (embedder.prepare(with_(INPUTS[0], pooling=pooling)).sequence for pooling in ("last", "eos"))
    assert eos.tokens.ids[:-1].tolist() == plain.tokens.ids.tolist()
    assert embedder.renderer.decode(eos.tokens.ids[-1:]) == "<|endoftext|>"


@pytest.mark.parametrize("layer", [LAYERS + 1, -LAYERS - 2])
def test_layers_that_are_not_there(embedder, layer):
    (answer,) = embedder.embed_each([with_(INPUTS[0], layer=layer)])
    assert isinstance(answer, InvalidInput)
    assert "0 (the input) … 4 (the last)" in str(answer)


def test_text_and_image_in_one_input(embedder):
    both = EmbedInput(text="red", image=INPUTS[2].image)
    (answer,) = embedder.embed([both])
    sequence = embedder.prepare(both).sequence
    assert "Summary above image and sentence in one word:" in embedder.renderer.decode(sequence.tokens.ids)
    single = [embedder.embed([item])[0].vector for item in (INPUTS[1], INPUTS[2])]
    assert all(cosine(answer.vector, vector) < 0.999 for vector in single)
    assert sequence.tokens.content[0] == sequence.tokens.image


@pytest.mark.parametrize("pooling", ["mean", "last", "eos"])
def test_a_rendering_is_the_exact_sequence_and_no_vector(embedder, pooling):
    counts = dict(embedder.counts)
    item = with_(INPUTS[2], render=True, pooling=pooling)
    rendering, refused = embedder.embed_each([item, with_(INPUTS[2], render=True, layer=99)])
    assert embedder.counts == counts  # no forward pass
    assert isinstance(rendering, Rendering)
    assert isinstance(refused, InvalidInput)
    seen = rendering.sequence
    assert seen["prompt"].startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")
    assert len(seen["ids"]) == len(seen["positions"][0]) == rendering.tokens
    assert seen["pooled"] == (seen["content"] if pooling == "mean" else ((rendering.tokens - 1, rendering.tokens),))
    assert np.prod(seen["grid"]) // 4 == seen["content"][0][1] - seen["content"][0][0]
    with pytest.raises(InvalidInput, match="no vector"):
        embedder.embed([item])


def test_a_description_takes_no_pass_and_its_recipe_is_that_of_the_options(embedder):
    counts = dict(embedder.counts)
    own, other, refused = embedder.embed_each(
        [EmbedInput(options=Options(describe=True, **more)) for more in ({}, {"pooling": "mean"}, {"layer": 99})]
    )
    assert embedder.counts == counts
    assert isinstance(own, Description)
    assert own.recipe.id == embedder.info["recipe"]["id"] != other.recipe.id
    assert isinstance(refused, InvalidInput)


def test_dimensions_warn_unless_trained_for(embedder):
    whole = embedder.model.dimension
    short, full, told = embedder.embed([with_(INPUTS[0], dimensions=16), INPUTS[0], with_(INPUTS[0], dimensions=whole)])
    assert short.warnings == Warnings.UNTRAINED_DIMENSIONS
    assert full.warnings == told.warnings == Warnings.NONE
    assert full.recipe == told.recipe  # nothing is cut


def calibration_file(tmp_path, embedder, method, forward=None, weights=None):
    rng = np.random.default_rng(0)
    rows = {"text": rng.normal(1, 1, (200, 128)), "image": rng.normal(-1, 1, (200, 128))}
    about = {
        "method": method,
        "forward": forward or embedder.prepare(INPUTS[0]).recipe.forward,
        "weights": weights or embedder.checkpoint.fingerprint,
    }
    save(tmp_path / "calibration.npz", about, fit(rows, method))
    return tmp_path / "calibration.npz", rows


@pytest.mark.parametrize("method", ["mean", "abtt-2", "zca-0.1"])
def test_calibrations(tmp_path, folder, embedder, method):
    path, rows = calibration_file(tmp_path, embedder, method)
    centred = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", calibration=str(path)))
    for kind, vectors in rows.items():
        applied = np.stack([centred.preparer.calibration.apply(row, kind) for row in vectors])
        assert np.abs(applied.mean(axis=0)).max() < 1e-5
        spread = np.linalg.svd(applied, compute_uv=False)
        if method == "abtt-2":
            assert spread[-2:].max() < 1e-4 < spread[-3]
        if method == "zca-0.1":
            assert spread[0] / spread[-1] < 2 < np.linalg.cond(vectors)
    plain, moved = centred.embed([INPUTS[0], with_(INPUTS[0], center=True)])
    assert cosine(plain.vector, moved.vector) < 0.999
    assert np.linalg.norm(moved.vector) == pytest.approx(1, abs=1e-5)


def test_align_moves_texts_onto_the_images_distribution_and_no_image(tmp_path, folder, embedder):
    """Its centre and its spread, from vectors that do not belong together; what each text says stays."""
    rng = np.random.default_rng(0)
    text, image = (scaled(middle + spread * rng.normal(size=(count, 128)))
        for middle, spread, count in ((np.eye(128)[0], 0.02, 300), (np.eye(128)[1] * 2, 0.08, 200)))  # fmt: skip
    found = Calibration.of(fit({"text": text, "image": image}, "align"))
    moved = found.apply(text, "text")
    assert np.linalg.norm(text.mean(axis=0) - image.mean(axis=0)) > 1
    assert np.abs(moved.mean(axis=0) - image.mean(axis=0)).max() < 1e-5
    assert moved.var(axis=0).sum() == pytest.approx(image.var(axis=0).sum(), rel=0.05)
    within = [np.corrcoef(rows - rows.mean(axis=0))[np.triu_indices(len(rows), 1)] for rows in (text, moved)]
    assert np.corrcoef(within)[0, 1] > 0.99
    np.testing.assert_allclose(found.apply(image, "image"), image, atol=1e-6)
    np.testing.assert_allclose(found.apply(text[0], "text"), moved[0], atol=1e-6)  # a row by itself, as it is served

    path, _ = calibration_file(tmp_path, embedder, "align")
    served = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", calibration=str(path)))
    assert served.info["calibration"]["method"] == "align"
    plain, aligned = served.embed([INPUTS[0], with_(INPUTS[0], center=True)])
    assert cosine(aligned.vector, served.preparer.calibration.apply(plain.vector, "text")) >= 0.99999
    assert cosine(plain.vector, aligned.vector) < 0.999
    image, same = served.embed([INPUTS[2], with_(INPUTS[2], center=True)])
    assert cosine(image.vector, same.vector) >= 0.999999


def test_a_calibration_that_lacks_a_modality_is_refused(tmp_path, embedder):
    """It would be a plausible wrong vector, or a fault when the first one comes."""
    vectors = np.random.default_rng(0).normal(size=(50, 128))
    for kind, other in (("text", "images"), ("image", "texts")):
        with pytest.raises(ValueError, match=f"onto images: {other} are missing"):
            fit({kind: vectors}, "align")
        save(tmp_path / "half.npz", {}, fit({kind: vectors}, "mean"))
        with pytest.raises(ValueError, match=f"nothing of {other}"):
            Calibration.load(tmp_path / "half.npz")
    with pytest.raises(ValueError, match="all its vectors are equal"):
        fit({"text": np.ones((50, 128)), "image": vectors}, "align")
    whole = fit({"text": vectors, "image": vectors}, "align")
    for part in ("scale_text", "shift_text"):
        save(tmp_path / "part.npz", {}, {name: array for name, array in whole.items() if name != part})
        with pytest.raises(ValueError, match="it has a part"):
            Calibration.load(tmp_path / "part.npz")


def test_a_calibration_belongs_to_its_recipe(tmp_path, folder, embedder):
    path, _ = calibration_file(tmp_path, embedder, "mean")
    centred = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", calibration=str(path)))
    for options in ({"layer": 2}, {"pooling": "mean"}, {"prompt": "chat"}, {"instruction": "x"}, {"max_pixels": 4096}):
        (answer,) = centred.embed_each([with_(INPUTS[0], center=True, **options)])
        assert isinstance(answer, InvalidInput)
        assert "fitted with another" in str(answer)
    (answer,) = embedder.embed_each([with_(INPUTS[0], center=True)])
    assert "no calibration" in str(answer)
    path, _ = calibration_file(tmp_path, embedder, "mean", weights="others")
    with pytest.raises(UnsupportedCheckpoint, match=r"EMBED_CENTER: .* another checkpoint"):
        Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", calibration=str(path), center=True))


def test_a_calibration_that_was_changed_is_refused(tmp_path, embedder):
    path, _ = calibration_file(tmp_path, embedder, "mean")
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"mean_text": arrays["mean_text"] + 1}))
    with pytest.raises(ValueError, match="not those that it was written with"):
        Calibration.load(path)


def test_what_is_no_calibration(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a calibration file"):
        Calibration.load(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="the methods are mean"):
        fit({"text": np.eye(3)}, "median")


@pytest.mark.parametrize(
    "method",
    ["abtt", "abtt-0", "abtt--1", "abtt-x", "abtt-500", "zca", "zca-0", "zca-2", "zca--1", "zca-nan", "mean-2"],
)
def test_a_method_that_leaves_nothing_or_no_number_is_refused(method):
    """`abtt--1` took all directions but one away, and zca of 0, 2 or -1 wrote NaN."""
    vectors = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    with pytest.raises(ValueError, match=r"the methods are|leaves nothing"):
        fit({"text": vectors, "image": vectors}, method)
