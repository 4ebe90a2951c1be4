"""The tiny colour checkpoint that ships: a real Qwen3-VL folder that knows colour, measured as it is served."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration, Qwen3VLModel

from embedder import Embedder, EmbedderConfig
from lab.training import architecture
from lab.training.compositions import HELD_OUT, Composer, split
from lab.training.data import tokenizer_corpus
from lab.training.measure import FOLDER, measure, texts
from qwen3_vl_embed.evaluation.colours import xkcd

CARD = FOLDER / "README.md"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(EmbedderConfig(checkpoint=str(FOLDER), device="cpu"))


@pytest.fixture(scope="module")
def figures(embedder) -> dict:
    return measure(embedder)


@pytest.mark.benchmarks
def test_names_find_their_swatches_and_the_distance_is_not_had_by_collapse(figures):
    found = figures["retrieval"]
    assert found["text_to_image_recall_1"] >= 0.85
    assert found["text_to_image_recall_10"] >= 0.995
    assert found["image_to_text_recall_10"] >= 0.995
    assert found["matched_mean"] <= 0.06
    assert found["unmatched_mean"] >= 0.90


@pytest.mark.benchmarks
def test_the_first_name_of_any_swatch_is_a_near_colour(figures):
    """Every size, shape and format, clean and noisy: colour, not 949 points."""
    assert figures["random_colours"]["near"] >= 0.95


@pytest.mark.benchmarks
def test_unseen_compositions_land_on_the_meant_side_of_their_base(figures):
    held_out = figures["held_out"]
    assert held_out["names"] >= 50
    assert held_out["above_opposite"] >= 0.90
    assert held_out["nearest_moved"] >= 0.90


@pytest.mark.parametrize("spelling", [str.upper, str.title, str.capitalize, " {} ".format])
def test_common_spellings_of_a_name_mean_the_same(embedder, spelling):
    names = xkcd().names[::20]
    plain, spelled = texts(embedder, names), texts(embedder, [spelling(name) for name in names])
    assert (plain * spelled).sum(axis=1).mean() >= 0.9


@pytest.mark.parametrize("model", [Qwen3VLModel, Qwen3VLForConditionalGeneration])
def test_transformers_loads_every_weight(model):
    loaded, report = model.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(report.values())
    assert 1e6 <= loaded.num_parameters() <= 3e6


def test_it_is_laid_out_as_the_released_qwen3_vl():
    config = json.loads((FOLDER / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert (config["model_type"], config["architectures"]) == ("qwen3_vl", ["Qwen3VLForConditionalGeneration"])
    assert config["tie_word_embeddings"]
    assert config["image_token_id"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert config["vision_start_token_id"] == tokenizer.convert_tokens_to_ids("<|vision_start|>")
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert "model.language_model.embed_tokens.weight" in weights.keys()  # noqa: SIM118
        assert weights.get_slice("model.visual.patch_embed.proj.weight").get_shape()[1:] == [3, 2, 16, 16]


def test_the_chat_template_is_qwen3_vl_instructs():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    turns = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]},
    ]
    drawn = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert drawn == (
        "<|im_start|>system\nBe exact.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    alone = tokenizer.apply_chat_template([{"role": "user", "content": "red"}], tokenize=False)
    assert alone == "<|im_start|>user\nred<|im_end|>\n"  # no default system prompt, unlike Qwen2-VL


def test_the_program_in_the_repository_makes_this_tokenizer():
    shipped = AutoTokenizer.from_pretrained(FOLDER)
    assert architecture.train_tokenizer(tokenizer_corpus(xkcd().names)).get_vocab() == shipped.get_vocab()


def test_held_out_names_are_neither_the_surveys_nor_trained_on():
    palette = xkcd()
    trained, held_out = split(Composer(palette).all())
    names = set(HELD_OUT.read_text().split("\n")) - {""}
    assert names == {composition.name for composition in held_out}
    assert names.isdisjoint(palette.names)
    assert names.isdisjoint(composition.name for composition in trained)


def test_it_is_small_enough_for_git():
    assert sum(path.stat().st_size for path in Path(FOLDER).iterdir()) <= 8 * 2**20


def test_its_card_says_what_it_is():
    card = CARD.read_text()
    assert "development model" in card
    assert "say nothing about" in card
    assert "make train" in card
    assert "make measure" in card
