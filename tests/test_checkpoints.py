"""Which checkpoints are served, which are refused, and with which words."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from embedder import Embedder, EmbedderConfig, UnsupportedCheckpoint
from embedder.checkpoint import MODELS, open_checkpoint
from embedder.forward.hardware import Card
from embedder.forward.weights import placement
from tests.reference import random_checkpoint

PUBLISHED = sorted(Path("tests/data/configs").iterdir())
DIMENSIONS = {"2B": 2048, "4B": 2560, "8B": 4096, "32B": 5120}
PARAMETERS = {"2B": 2.128e9, "4B": 4.438e9, "8B": 8.767e9, "32B": 33.36e9}  # with the language-model head, tied or not


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_published_sizes_build(folder):
    config = AutoConfig.from_pretrained(folder)
    size = folder.name.split("-")[2]
    with torch.device("meta"):
        model = MODELS[config.model_type](config)
    assert model.config.text_config.hidden_size == DIMENSIONS[size]
    head = 0 if config.text_config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    assert sum(p.numel() for p in model.parameters()) + head == pytest.approx(PARAMETERS[size], rel=1e-3)


@pytest.mark.parametrize(("model_type", "words"), [("llama", "is a llama checkpoint"), ("qwen2_5_vl", "qwen2_5_vl")])
def test_other_models_are_refused_by_name(copy, model_type, words):
    edit(copy / "config.json", model_type=model_type)
    with pytest.raises(UnsupportedCheckpoint, match=rf"{words}.*this server embeds with Qwen3-VL"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "has no config.json"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("model.safetensors", "has no \\*.safetensors"),
        ("tokenizer.json", "tokenizer"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_incomplete_checkpoints_are_refused(copy, file, words):
    (copy / file).unlink()
    with pytest.raises(UnsupportedCheckpoint, match=words):
        Embedder.load(EmbedderConfig(checkpoint=str(copy), device="cpu"))


def test_damaged_weights_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UnsupportedCheckpoint, match="cannot be loaded"):
        Embedder.load(EmbedderConfig(checkpoint=str(copy), device="cpu"))


def test_weights_that_do_not_fit_the_config_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpoint, match="missing_keys"):
        Embedder.load(EmbedderConfig(checkpoint=str(copy), device="cpu"))


def test_what_is_neither_a_folder_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnsupportedCheckpoint, match="neither a folder here nor a checkpoint that the hub gave"):
        open_checkpoint("nobody/no-such-checkpoint")


def test_old_chat_template_file(copy):
    """The hub's Instruct checkpoints of 2025 keep it in chat_template.json."""
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    Embedder.load(EmbedderConfig(checkpoint=str(copy), device="cpu"))


def test_the_fingerprint_follows_the_weights(copy):
    """Training that moved one tensor, wherever it is in the file: the same shapes, the same sizes."""
    file = copy / "model.safetensors"
    tensors, before = load_file(file), open_checkpoint(str(copy)).fingerprint
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor + 0.01}, file, metadata={"format": "pt"})
        assert open_checkpoint(str(copy)).fingerprint != before, name
    save_file(tensors, file, metadata={"format": "pt"})
    assert open_checkpoint(str(copy)).fingerprint == before


def test_several_gpus_only_when_one_is_too_small():
    card = Card("one", (9, 0), 10_000, 10_000)
    assert placement(9_001, "cpu", []) == "cpu"
    assert placement(9_000, "cuda", [card, card]) == "cuda"
    assert placement(9_001, "cuda", [card, card]) == "auto"
    assert placement(9_000, "cuda:1", [card]) == "cuda:1"  # an instance's own GPU: it takes no other's
