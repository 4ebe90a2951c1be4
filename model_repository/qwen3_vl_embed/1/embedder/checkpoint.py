"""A Qwen3-VL checkpoint: find it, check that it is one, read its configuration and its processor.

Formats: transformers `models/qwen3_vl`, `models/qwen3_vl_moe`. Sizes are read from the files, never assumed; what a
file leaves out has transformers' own default. `weights.py` reads its weights.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLMoeConfig,
    Qwen3VLMoeModel,
    Qwen3VLProcessor,
)

from .errors import UnsupportedCheckpoint
from .paths import openable

CONFIGS: dict[str, type[Qwen3VLConfig] | type[Qwen3VLMoeConfig]] = {
    "qwen3_vl": Qwen3VLConfig,
    "qwen3_vl_moe": Qwen3VLMoeConfig,
}
MODELS: dict[str, type[PreTrainedModel]] = {"qwen3_vl": Qwen3VLModel, "qwen3_vl_moe": Qwen3VLMoeModel}
FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]  # never code: `trust_remote_code` is not for us
OBJECTS = (  # the JSON files that transformers reads, all of which hold an object
    *("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("chat_template.json", "model.safetensors.index.json", "adapter_config.json"),
)
PIXEL_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
LFS = b"version https://git-lfs"  # how a Git LFS pointer begins
PICKLED = "pickled weights, which may run code; this server reads safetensors: convert them (save_pretrained does)"
# Weights that this server does not read, by the ends of their files' names.
FOREIGN = {
    ".gguf": "GGUF files; this server reads safetensors: give the checkpoint that they were made from",
    **dict.fromkeys((".bin", ".pt", ".pth"), PICKLED),
    ".onnx": "an ONNX export; this server reads safetensors: give the checkpoint that it was made from",
}
IMAGE_TOKEN = "<|image_pad|>"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine, known to be a Qwen3-VL one."""

    name: str  # as it was asked for: a folder or a hub id
    folder: Path
    revision: str | None  # the hub commit; None for a folder
    base: "Checkpoint | None" = None  # what a folder with nothing but an adapter adapts

    def holder(self, *files: str) -> Path:
        """The folder that holds any of `files`: its own, else its base's.

        Raises:
            UnsupportedCheckpoint: neither does.
        """
        for checkpoint in filter(None, (self, self.base)):
            if any((checkpoint.folder / file).is_file() for file in files):
                return checkpoint.folder
        raise UnsupportedCheckpoint(f"{self.name} has no {' and no '.join(files)}; is it a complete checkpoint folder?")

    def json(self, file: str) -> Any:
        """What a JSON file of it says; None where there is none.

        Raises:
            UnsupportedCheckpoint: it is not JSON, or holds no object where transformers wants one.
        """
        path = self.folder / file
        if not path.is_file():
            return self.base.json(file) if self.base else None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise UnsupportedCheckpoint(f"{self.name}: {file} is not valid JSON ({error})") from None
        if file in OBJECTS and not isinstance(content, dict):
            raise UnsupportedCheckpoint(f"{self.name}: {file} holds a {type(content).__name__}, not an object")
        return content

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """config.json as it is written."""
        self.holder("config.json")
        return dict(self.json("config.json"))

    @cached_property
    def config(self) -> Any:
        """config.json as transformers reads it, with its defaults: a `Qwen3VLConfig` or its MoE twin."""
        try:
            config = CONFIGS[self.model_type].from_dict(deepcopy(self.raw_config))  # it takes keys out
            square = [config.vision_config.patch_size, config.vision_config.spatial_merge_size]
        except Exception as error:  # each field is checked, and each check raises a type of its own
            raise UnsupportedCheckpoint(
                f"{self.name}: transformers cannot read its config.json: {line(error)}"
            ) from None
        if not all(isinstance(side, int) and side > 0 for side in square):
            raise UnsupportedCheckpoint(f"{self.name}: config.json gives patches or merges of {square}, not squares")
        return config

    @property
    def dtype(self) -> str:
        """Of its weights, as config.json says: bfloat16, float32 …; empty where it says none."""
        given = self.config.dtype or self.config.text_config.dtype
        return str(given or "").removeprefix("torch.")

    @property
    def model_type(self) -> str:
        return str(self.raw_config["model_type"])

    @cached_property
    def processor(self) -> Any:
        """transformers' own `Qwen3VLProcessor` of it, with what the files leave out (`size`, `image_mean`, …).

        Raises:
            UnsupportedCheckpoint: there is none, or it does with pixels what this server does not.
        """
        pixels = self.holder(*PIXEL_FILES)
        tokenizer = self.holder(*TOKENIZER_FILES)
        for file in OBJECTS:
            self.json(file)
        try:
            processor = Qwen3VLProcessor.from_pretrained(pixels, trust_remote_code=False)
            if tokenizer != pixels:
                own = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
                processor.tokenizer, processor.chat_template = own, own.chat_template or processor.chat_template
        except Exception as error:  # tokenizers, jinja and transformers each raise their own types
            raise UnsupportedCheckpoint(f"{self.name}: transformers cannot load its processor: {line(error)}") from None
        if problem := _foreign_pixels(processor.image_processor, self.config.vision_config):
            raise UnsupportedCheckpoint(f"{self.name}: {problem}")
        return processor

    @property
    def pixel_bounds(self) -> tuple[int, int]:
        """(smallest, largest) image area in pixels, as transformers' image processor has them.

        `size` says edges and means areas; `min_pixels` and `max_pixels` win over it.
        """
        size = self.processor.image_processor.size
        return size["shortest_edge"], size["longest_edge"]

    @cached_property
    def weights(self) -> list[Path]:
        """Its weight files, those that transformers would take: `model.safetensors`, else the shards of the index.

        Raises:
            UnsupportedCheckpoint: there are none, or the index names files that are not there.
        """
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if (index := self.json(INDEX) if (self.folder / INDEX).is_file() else None) is None:
            if self.base:
                return self.base.weights
            raise UnsupportedCheckpoint(f"{self.name} {_without_weights(self.folder)}")
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names or not all(Path(str(name)).name == name for name in names.values()):
            raise UnsupportedCheckpoint(f"{self.name}: {INDEX} has no weight_map that names files beside it")
        shards = [openable(self.folder / name) for name in sorted(set(names.values()))]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise UnsupportedCheckpoint(
                f"{self.name} lacks {listed(missing)}, which {INDEX} names; is the download complete?"
            )
        return shards

    @property
    def adapter(self) -> Path | None:
        """The folder of its LoRA adapter, if it has one."""
        return self.folder if (self.folder / ADAPTER_CONFIG).is_file() else None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what was read of it and decides vectors: every weight, config.json, tokenizer, chat template.

        Not over its files. What else lies in the folder, or in which shards and where the weights do, changes nothing.
        """
        tokenizer, pixels = load_tokenizer(self), self.processor.image_processor
        adapter = dict(self.json(ADAPTER_CONFIG)) if self.adapter else {}
        for where in ("base_model_name_or_path", "revision"):  # the base's own weights are among those below
            adapter.pop(where, None)
        read = [self.raw_config, adapter, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template]
        read += [tokenizer.special_tokens_map, pixels.image_mean, pixels.image_std]
        digest = hashlib.sha256(json.dumps(read, sort_keys=True, default=str).encode())
        stored = (tensor for path in self._read for tensor in tensors(self, path))
        with ThreadPoolExecutor() as threads:
            for each in sorted(threads.map(_digest, stored)):
                digest.update(each)
        return digest.hexdigest()

    def state(self) -> list[tuple[int, ...]]:
        """Of its files of weights: other numbers when one was replaced or written to."""
        found = map(os.stat, self._read)
        return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in found]

    @property
    def _read(self) -> list[Path]:
        if not self.base and not any((self.folder / name).is_file() for name in (SINGLE, INDEX)):
            return []  # made in memory: lab/benchmarks
        return [*self.weights, *(self.adapter.glob(ADAPTER) if self.adapter else [])]


def tensors(checkpoint: Checkpoint, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a safetensors file, mapped from it: memory is taken as they are read.

    Raises:
        UnsupportedCheckpoint: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                yield name, file.get_tensor(name)
    except Exception as error:  # safetensors, torch and the file system each raise their own types
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} cannot be loaded: {path.name} is cut or damaged ({line(error)}); download it again"
        ) from None


def _digest(named: tuple[str, torch.Tensor]) -> bytes:
    name, tensor = named
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


def open_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint: a folder as it is, anything else as a hub id (downloaded, or taken from the hub's cache).

    A folder that holds nothing but an adapter takes the rest from the base that its adapter_config.json names.

    Raises:
        UnsupportedCheckpoint: it is not there, or it is not a Qwen3-VL checkpoint; the message names what it is.
    """
    if revision and openable(name).is_dir():
        raise UnsupportedCheckpoint(f"EMBED_REVISION is of a hub id, and {name} is a folder here: leave it out")
    checkpoint = _find(name, revision)
    if checkpoint.adapter and not any((checkpoint.folder / file).is_file() for file in (SINGLE, INDEX)):
        settings = checkpoint.json(ADAPTER_CONFIG)
        named = settings.get("base_model_name_or_path")
        if not named or not isinstance(named, str):
            raise UnsupportedCheckpoint(f"{name} holds an adapter, and {ADAPTER_CONFIG} names no base model")
        try:
            base = _find(named, settings.get("revision"))
            if base.adapter:
                raise UnsupportedCheckpoint("it holds an adapter itself; merge that first")
            checkpoint = Checkpoint(name, checkpoint.folder, checkpoint.revision, base)
            base.weights  # noqa: B018 - refused here, where the sentence can say whose base it is
        except UnsupportedCheckpoint as error:
            raise UnsupportedCheckpoint(
                f"{name} holds an adapter of {named}, which cannot be served: {error}"
            ) from None
    if (checkpoint.json("config.json")) is None:
        checkpoint.weights  # noqa: B018 - a folder of GGUF files alone is told so
    model_type = checkpoint.raw_config.get("model_type")
    if model_type not in MODELS:
        is_what = f"is a {model_type} checkpoint" if model_type else "has a config.json without model_type"
        raise UnsupportedCheckpoint(f"{name} {is_what}; this server embeds with Qwen3-VL ({', '.join(MODELS)})")
    checkpoint.weights  # noqa: B018
    return checkpoint


def _find(name: str, revision: str | None) -> Checkpoint:
    folder = openable(name)
    commit = None
    if not folder.is_dir():
        try:
            snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
        except Exception as error:  # the hub's client raises many types; each means that there is no checkpoint
            raise UnsupportedCheckpoint(
                f"{name} is neither a folder here nor a checkpoint that the hub gave "
                f"({type(error).__name__}: {error}); give a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct"
            ) from error
        folder, commit = openable(snapshot), snapshot.name
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        try:
            with path.open("rb") as file:
                pointer = file.read(len(LFS)) == LFS
        except OSError as error:
            raise UnsupportedCheckpoint(f"{name}: {path.name} cannot be read: {line(error)}") from None
        if pointer:
            raise UnsupportedCheckpoint(f"{name}: {path.name} is a Git LFS pointer, not the file: run `git lfs pull`")
    return Checkpoint(name, folder, commit)


def _without_weights(folder: Path) -> str:
    """What is said of a folder that has neither `model.safetensors` nor its index."""
    if others := sorted(path.name for path in folder.glob("*.safetensors") if path.name != ADAPTER):
        return f"has {listed(others)}, but no {SINGLE} and no {INDEX} that names them"
    for end, words in FOREIGN.items():
        if any(folder.glob(f"*{end}")):
            return f"holds {words}"
    return "has no *.safetensors file; is the download complete?"


def _foreign_pixels(pixels: Any, vision: Any) -> str | None:
    """What an image processor does that this server's own pixel path does not; None where they agree."""
    kind = type(pixels).__name__
    if not kind.startswith("Qwen2VLImageProcessor"):
        return f"its image processor is a {kind}; Qwen3-VL's is Qwen2VLImageProcessor"
    low, high = (pixels.size.get(edge) for edge in ("shortest_edge", "longest_edge"))
    if not (low and high):
        return (
            "its preprocessor's `size` has no shortest_edge and longest_edge, which say how small and large images are"
        )
    if not (isinstance(low, int | float) and isinstance(high, int | float) and low <= high):
        return f"its preprocessor wants images of at least {low!r} and at most {high!r} pixels, which is no range"
    wanted = {
        **{"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size},
        **{"temporal_patch_size": vision.temporal_patch_size},
        **{"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3},
    }
    for name, value in wanted.items():
        if (given := getattr(pixels, name)) != value:
            return f"its preprocessor says {name} {given}; {value} is what this server and its config.json do"
    if abs(pixels.rescale_factor * 255 - 1) > 1e-6:
        return f"its preprocessor says rescale_factor {pixels.rescale_factor}; this server divides by 255"
    for name in ("image_mean", "image_std"):
        given = getattr(pixels, name)
        if not (isinstance(given, list | tuple) and len(given) == 3) or (name == "image_std" and not all(given)):
            return f"its preprocessor says {name} {given}; three numbers are read, one for each channel, no std of 0"
    return None


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template that transformers' processor draws with.

    Raises:
        UnsupportedCheckpoint: no tokenizer, another model's tokenizer, or no chat template.
    """
    processor = checkpoint.processor
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    template = processor.chat_template or tokenizer.chat_template
    tokenizer.chat_template = template.get("default") if isinstance(template, dict) else template
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != checkpoint.config.image_token_id:
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: {IMAGE_TOKEN} is not config.json's image_token_id, {checkpoint.config.image_token_id}"
        )
    if tokenizer.chat_template is None:
        raise UnsupportedCheckpoint(f"{checkpoint.name} has no chat template; prompts are rendered with it")
    return tokenizer


def listed(names: list[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def line(error: BaseException) -> str:
    """An error of a library's as part of a sentence: its type and message on one line, at most 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:299] + "…"
