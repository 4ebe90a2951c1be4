"""The checkpoints that are measured, by name; what does not ship is built once into .cache/bench.

    tiny   checkpoints/qwen3-vl-color-tiny: no arithmetic to speak of, so what is measured is everything around it
    100m   106 million random parameters in the 4B's proportions: arithmetic counts, and a CPU can do it; stored in
           bfloat16, as the release is
    4b     Qwen3-VL-4B-Instruct's own config.json, with random weights made on the device itself (9 GB)

Speed does not depend on what the weights are, as long as they are not zeros. They are drawn so that every layer keeps
the size of what it gets. Nothing overflows, and different inputs give different vectors, so that peers can be compared.
All have the tiny checkpoint's tokenizer. Its colour words are about as short as Qwen's; other texts are longer in it.
"""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
)
from transformers.utils import logging

from embedder.checkpoint import open_checkpoint
from embedder.forward.hardware import automatic_dtype
from lab.training import architecture

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "qwen3-vl-color-tiny"
PUBLISHED = ROOT / "tests" / "data" / "configs" / "Qwen3-VL-4B-Instruct" / "config.json"
CACHE = ROOT / ".cache" / "bench"
Pixels = dict[str, int]  # bounds of an image's area, by the names that preprocessor_config.json gives them
PIXELS: Pixels = {"shortest_edge": 256 * 256, "longest_edge": 1024 * 1024}  # the release's least, and our own most

Size = dict[str, dict[str, Any]]  # what differs from the 4B in `text_config` and `vision_config`

# Widths about a quarter, depths a third; heads, groups and the three deepstack layers alike.
SMALL: Size = {
    "text_config": {
        "vocab_size": architecture.VOCABULARY,
        "hidden_size": 640,
        "intermediate_size": 2432,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"},
    },
    "vision_config": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "depth": 8,
        "num_heads": 6,
        "deepstack_visual_indexes": [1, 3, 5],
        "out_hidden_size": 640,
    },
}
WHOLE: Size = {"text_config": {}, "vision_config": {}}
SIZES: dict[str, Size] = {"100m": SMALL, "4b": WHOLE}

logging.disable_progress_bar()  # transformers' own bars, one for each load


def folder(name: str, device: str = "cpu") -> Path:
    """The checkpoint of that name, or the folder that `name` is."""
    if name == "tiny":
        return TINY
    if name not in SIZES:
        return Path(name)
    target = CACHE / name
    if not target.is_dir():
        unfinished = target.with_suffix(".unfinished")
        drawn(outline(SIZES[name], unfinished), torch.bfloat16, device).save_pretrained(unfinished)
        unfinished.rename(target)
    return target


def dtype(name: str, device: str) -> str:
    """What the embedder computes in where nobody chooses (EMBED_DTYPE=auto)."""
    own = "bfloat16" if name in SIZES else open_checkpoint(str(folder(name))).dtype
    return automatic_dtype(device, own)


def config(name: str) -> dict:
    """Its config.json; `folder` has built it."""
    return json.loads((folder(name) / "config.json").read_text())


def outline(size: Size, target: Path, pixels: Pixels = PIXELS) -> Qwen3VLConfig:
    """All of a checkpoint folder but its weights; returns its configuration: the 4B's, with `size` in its place."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    configuration = _configuration(size, tokenizer)
    copytree(TINY, target, ignore=lambda *_: ["model.safetensors", "README.md"], dirs_exist_ok=True)
    configuration.save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(architecture.PREPROCESSOR | {"size": pixels}, indent=2))
    return configuration


def drawn(configuration: Qwen3VLConfig, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model with its head and random weights, made on the device itself: the same ones each time on one machine."""
    with torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(configuration, dtype=dtype)
        _draw(model)
    return model.eval()


def _configuration(size: Size, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    values = json.loads(PUBLISHED.read_text())
    for part, changes in size.items():
        values[part] |= changes
    for key, token in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        values[key] = tokenizer.convert_tokens_to_ids(token)
    values["text_config"] |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return Qwen3VLConfig(**{key: value for key, value in values.items() if key != "model_type"})


@torch.no_grad()
def _draw(model: torch.nn.Module) -> None:
    """Norms about 1, embeddings of size 1, and matrices that keep the size of what they multiply (1 / sqrt(inputs))."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
        elif "embed_tokens" in name:
            weight.normal_(0.0, 1.0)
        else:
            weight.normal_(0.0, weight[0].numel() ** -0.5)
