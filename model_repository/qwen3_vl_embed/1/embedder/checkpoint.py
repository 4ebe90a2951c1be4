"""A Qwen3-VL checkpoint: find it, check that it is one, load its model, tokenizer and pixel settings. Knows no prompts.

Formats: transformers `models/qwen3_vl`, `models/qwen3_vl_moe`. Sizes are read from the files, never assumed.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Qwen3VLModel, Qwen3VLMoeModel

from embedder.errors import UnsupportedCheckpoint

MODELS: dict[str, type[PreTrainedModel]] = {"qwen3_vl": Qwen3VLModel, "qwen3_vl_moe": Qwen3VLMoeModel}
FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]  # never code: `trust_remote_code` is not for us
IMAGE_TOKEN = "<|image_pad|>"
MIB = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine, known to be a Qwen3-VL one."""

    name: str  # as it was asked for: a folder or a hub id
    folder: Path
    revision: str | None  # the hub commit; None for a folder

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._json("config.json")

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        return self._json("preprocessor_config.json")

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def is_embedding(self) -> bool:
        """Whether it is of the Qwen3-VL-Embedding series: by its name, or by its sentence-transformers files."""
        return "qwen3-vl-embedding" in self.name.lower() or (self.folder / "1_Pooling").is_dir()

    @property
    def pixel_bounds(self) -> tuple[int, int]:
        """(smallest, largest) image area in pixels; `size` says edges and means areas (preprocessor_config.json)."""
        size = self.preprocessor["size"]
        return size["shortest_edge"], size["longest_edge"]

    @property
    def weights(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the small files and, of every weight file, its size and its first and last MiB."""
        digest = hashlib.sha256()
        for path in sorted(p for pattern in FILES[:3] for p in self.folder.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
        for path in self.weights:
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(f"{path.name} {size}".encode() + file.read(MIB))
                file.seek(max(0, size - MIB))
                digest.update(file.read(MIB))
        return digest.hexdigest()

    def _json(self, file: str) -> dict[str, Any]:
        path = self.folder / file
        if not path.is_file():
            raise UnsupportedCheckpoint(f"{self.name} has no {file}; is it a complete checkpoint folder?")
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise UnsupportedCheckpoint(f"{self.name}: {file} is not valid JSON ({error})") from None
        return values


def open_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint: a folder as it is, anything else as a hub id (downloaded, or taken from the hub's cache).

    Raises:
        UnsupportedCheckpoint: it is not there, or it is not a Qwen3-VL checkpoint; the message names what it is.
    """
    if Path(name).is_dir():
        checkpoint = Checkpoint(name, Path(name), None)
    else:
        folder = _download(name, revision)
        checkpoint = Checkpoint(name, folder, folder.name)
    model_type = checkpoint.config.get("model_type")
    if model_type not in MODELS:
        raise UnsupportedCheckpoint(
            f"{name} is a {model_type} checkpoint; this server embeds with Qwen3-VL ({', '.join(MODELS)})"
        )
    if not checkpoint.weights:
        raise UnsupportedCheckpoint(f"{name} has no *.safetensors file; is the download complete?")
    return checkpoint


def _download(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # the hub's client raises many types; each means that there is no checkpoint
        raise UnsupportedCheckpoint(
            f"{name} is neither a folder here nor a checkpoint that the hub gave ({type(error).__name__}: {error}); "
            "give a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct"
        ) from error


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model without its language-model head, in eval mode; over several GPUs when `device` is too small for it.

    Raises:
        UnsupportedCheckpoint: weights are missing or of another shape. (More than are needed is no error: the head.)
    """
    try:
        model, report = MODELS[checkpoint.model_type].from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            device_map=placement(checkpoint.weight_bytes, device, _free_bytes(device)),
            attn_implementation="sdpa",
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, torch and transformers each raise their own types
        raise UnsupportedCheckpoint(f"{checkpoint.name} cannot be loaded: {type(error).__name__}: {error}") from error
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys and kind != "unexpected_keys"}
    if wrong:
        kinds = "; ".join(f"{kind}: {', '.join(keys[:3])} ({len(keys)})" for kind, keys in wrong.items())
        raise UnsupportedCheckpoint(f"{checkpoint.name} does not fit its own config.json: {kinds}")
    if {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())) and device != "cpu":
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} has {checkpoint.weight_bytes / 1e9:.1f} GB of weights, more than the GPUs here have "
            "free: give it more or larger ones, or set EMBED_DEVICE=cpu"
        )
    return model.eval()


def placement(weight_bytes: int, device: str, free_bytes: int | None) -> str:
    """transformers' `device_map`: the device itself, or `auto` (accelerate) when it has no room for the weights.

    A tenth of the free memory is left for activations. `free_bytes` is None where it does not limit (CPU).
    """
    return device if free_bytes is None or weight_bytes <= 0.9 * free_bytes else "auto"


def _free_bytes(device: str) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else None


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template.

    Raises:
        UnsupportedCheckpoint: no tokenizer, another model's tokenizer, or no chat template.
    """
    if not any((checkpoint.folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise UnsupportedCheckpoint(f"{checkpoint.name} has no tokenizer.json; is it a complete checkpoint folder?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedCheckpoint(f"{checkpoint.name}: its tokenizer cannot be loaded: {error}") from error
    if tokenizer.chat_template is None and (checkpoint.folder / "chat_template.json").is_file():
        tokenizer.chat_template = json.loads((checkpoint.folder / "chat_template.json").read_text())["chat_template"]
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != checkpoint.config["image_token_id"]:
        raise UnsupportedCheckpoint(f"{checkpoint.name}: {IMAGE_TOKEN} is not config.json's image_token_id")
    if tokenizer.chat_template is None:
        raise UnsupportedCheckpoint(f"{checkpoint.name} has no chat template; prompts are rendered with it")
    return tokenizer
