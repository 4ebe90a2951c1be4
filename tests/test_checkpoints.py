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
from embedder.forward.model import PackedModel
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


def test_the_fingerprint_sees_every_number(copy):
    """Training may move one token's row of the embeddings alone: the last number of a tensor counts like the first."""
    file = copy / "model.safetensors"
    tensors, before = load_file(file), open_checkpoint(str(copy)).fingerprint
    for name in ("model.language_model.embed_tokens.weight", "model.visual.pos_embed.weight"):
        moved = tensors[name].clone()
        moved.view(-1)[-1] += 0.01
        save_file(tensors | {name: moved}, file, metadata={"format": "pt"})
        assert open_checkpoint(str(copy)).fingerprint != before, name
    save_file(tensors, file, metadata={"format": "pt"})
    assert open_checkpoint(str(copy)).fingerprint == before


def test_the_fingerprint_is_of_what_is_read_not_of_files(copy):
    """A log, JSON written otherwise, an older template file or other shards change no vector."""
    before = open_checkpoint(str(copy)).fingerprint
    for file in ("README.txt", "trainer_state.json", "generation_config.json", "old.jinja", "runs/config.json"):
        (copy / file).parent.mkdir(exist_ok=True)
        (copy / file).write_text("{}")
    for file in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()), sort_keys=True, indent=7))
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    shards = {name: f"model-{len(name) % 2}.safetensors" for name in tensors}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, copy / shard)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    checkpoint = open_checkpoint(str(copy))
    assert len(checkpoint.weights) == 2
    assert checkpoint.fingerprint == before


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"rope_theta": 5}),  # which transformers takes out of what it is given
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "patch_size": 16}}),
        ("tokenizer_config.json", {"chat_template": "", "bos_token": "<|im_end|>"}),
    ],
)
def test_the_fingerprint_sees_each_file_that_is_read(copy, file, changes):
    before = open_checkpoint(str(copy)).fingerprint
    if not (copy / file).exists():
        (copy / file).write_text("{}")
    edit(copy / file, **changes)
    checkpoint = open_checkpoint(str(copy))
    assert checkpoint.config  # the order does not matter
    assert checkpoint.fingerprint != before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers leaves it open
def test_the_fingerprint_sees_the_only_template_whatever_its_folder(copy):
    """`additional_chat_templates/default.jinja` is transformers' own template where there is no other."""
    (copy / "additional_chat_templates").mkdir()
    template = (copy / "chat_template.jinja").rename(copy / "additional_chat_templates/default.jinja")
    before = open_checkpoint(str(copy)).fingerprint
    template.write_text(template.read_text() + "more")
    assert open_checkpoint(str(copy)).fingerprint != before


def test_weights_that_are_replaced_while_they_are_read_are_refused(copy, monkeypatch):
    """Its vectors would be of the old ones, or of some of each, and its id of the new ones."""
    load = PackedModel.load

    def replaced(*given):
        model = load(*given)
        shutil.copy(copy / "model.safetensors", copy / "fresh")
        (copy / "fresh").replace(copy / "model.safetensors")
        return model

    monkeypatch.setattr(PackedModel, "load", replaced)
    with pytest.raises(UnsupportedCheckpoint, match="was changed while it was read"):
        Embedder.load(EmbedderConfig(checkpoint=str(copy), device="cpu"))


def test_several_gpus_only_when_one_is_too_small():
    card = Card("one", (9, 0), 10_000, 10_000)
    assert placement(9_001, "cpu", []) == "cpu"
    assert placement(9_000, "cuda", [card, card]) == "cuda"
    assert placement(9_001, "cuda", [card, card]) == "auto"
    assert placement(9_000, "cuda:1", [card]) == "cuda:1"  # an instance's own GPU: it takes no other's
