"""Checkpoint folders as other people leave them, written by the libraries that write them, and what is right for each.

`python -m tests.layouts` prints the table of docs/checkpoints.md: how near each vector is to transformers' own, or the
sentence that refuses the folder.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLProcessor,
)

from embedder import Embedder, EmbedderConfig, EmbedInput, UnsupportedCheckpoint
from tests.reference import Reference, cosine, png, random_checkpoint

TEXT = "very dark teal"
WEIGHTS = "model.safetensors"
COLOURS = Path("checkpoints/qwen3-vl-color-tiny")  # trained: random weights magnify what eight bits leave out


@dataclass(frozen=True)
class Served:
    """Equal to the (text, image) vectors that `reference` computes of the folder."""

    reference: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    least: float = 0.99999


@dataclass(frozen=True)
class Refused:
    """In one sentence that holds these words."""

    words: str


Layout = Callable[[Path], Served | Refused]  # changes a plain checkpoint's folder
LAYOUTS: dict[str, Layout] = {}


def layout(name: str) -> Callable[[Layout], Layout]:
    def keep(make: Layout) -> Layout:
        LAYOUTS[name] = make
        return make

    return keep


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    values = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_text(folder: Path, **changes: Any) -> None:
    edit(folder / "config.json", text_config=json.loads((folder / "config.json").read_text())["text_config"] | changes)


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write its weights anew after `change`."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


# ---- What is right


def transformers_own(folder: Path, weights_of: Path | None = None, **bounds: int) -> tuple[np.ndarray, np.ndarray]:
    """transformers' last state of our prompt; of another folder's weights where they are what these should be."""
    model = AutoModel.from_pretrained(weights_of or folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    reference = Reference(folder, model)
    size = reference.processor.image_processor.size
    reference.bounds = (bounds.get("low", size["shortest_edge"]), bounds.get("high", size["longest_edge"]))
    image = Image.open(BytesIO(png()))
    return reference.text(TEXT).hidden[-1], reference.image(image).hidden[-1]


def sentence_transformers_own(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What `encode` gives of it."""
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    text, image = model.encode([TEXT])[0], model.encode([Image.open(BytesIO(png((64, 64))))])[0]
    return text, image


def of(weights_of: Path) -> Callable[[Path], tuple[np.ndarray, np.ndarray]]:
    return lambda folder: transformers_own(folder, weights_of)


# ---- How folders are written


def quantized(folder: Path, block: int = 128, scale: str = "weight_scale_inv", configured: bool = True) -> None:
    """Qwen's fine-grained FP8: every linear weight of the language model, and of its experts, by blocks."""

    def change(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = {}
        for name, weight in stored.items():
            experts = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
            if "language_model.layers" not in name or not (name.endswith("_proj.weight") or experts):
                made[name] = weight
                continue
            made[name], scales = blockwise(weight, block)
            made[name.removesuffix(".weight") + ("_scale_inv" if experts else f".{scale}")] = scales
        return made

    weights(folder, change)
    if configured:
        edit(folder / "config.json", quantization_config=FP8 | {"weight_block_size": [block, block]})


FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.visual"],
}


def blockwise(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3, scales): each block's largest magnitude becomes 448, e4m3's largest."""
    *outer, rows, columns = weight.shape
    scales = torch.empty(*outer, ceil(rows / block), ceil(columns / block))
    made = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[-2]):
        for j in range(scales.shape[-1]):
            place = (..., slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[..., i, j] = weight[place].abs().amax((-1, -2)) / 448
            made[place] = (weight[place] / scales[..., i, j, None, None]).to(torch.float8_e4m3fn)
    return made, scales


def dequantized(folder: Path, target: Path) -> Path:
    """The same folder with the numbers that its FP8 weights stand for, block by block."""
    shutil.copytree(folder, target)

    def change(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scales = {name.removesuffix("_scale_inv"): stored.pop(name) for name in list(stored) if "_scale_inv" in name}
        for name, scale in scales.items():
            whole = stored[name].float()
            for i in range(scale.shape[-2]):
                for j in range(scale.shape[-1]):
                    whole[..., i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] *= scale[..., i, j, None, None]
            stored[name] = whole
        return stored

    weights(target, change)
    edit(target / "config.json", quantization_config=None)
    return target


def adapted(folder: Path, merged: Path | None = None, **settings: Any) -> None:
    """A LoRA adapter beside the weights, by peft; and the merged checkpoint elsewhere."""
    torch.manual_seed(1)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj", "qkv"]} | settings
    peft = get_peft_model(model, LoraConfig(init_lora_weights=False, **wanted))
    peft.save_pretrained(str(folder))
    edit(folder / "adapter_config.json", base_model_name_or_path="nobody/not-to-be-asked")
    if merged:
        shutil.copytree(folder, merged, ignore=shutil.ignore_patterns("adapter*"))
        peft.merge_and_unload().save_pretrained(merged)


def adapter_only(folder: Path, base: Path) -> None:
    adapted(folder)
    for path in folder.iterdir():
        if not path.name.startswith("adapter"):
            path.unlink()
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))


def by_sentence_transformers(
    folder: Path, *modules: torch.nn.Module, processing: dict | None = None, **settings
) -> None:
    """Saved by sentence-transformers' own `save`."""
    first = Transformer(str(folder), processing_kwargs=processing)
    model = SentenceTransformer(modules=[first, *modules], device="cpu", **settings)
    for path in folder.iterdir():
        path.unlink()
    model.save(str(folder), create_model_card=False)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)


# ---- Layouts of files

SAME = Served(transformers_own)


@layout("as the hub has it")
def _(folder: Path) -> Served:
    return SAME


@layout("in shards, with their index")
def _(folder: Path) -> Served:
    sharded(folder)
    return SAME


def sharded(folder: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


@layout("one file beside shards of other weights")
def _(folder: Path) -> Served:
    content = (folder / WEIGHTS).read_bytes()
    weights(folder, lambda stored: {name: -weight for name, weight in stored.items()})
    sharded(folder)
    (folder / WEIGHTS).write_bytes(content)
    return SAME


@layout("a shard that is not there")
def _(folder: Path) -> Refused:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return Refused("lacks model-00002-of-")


@layout("shards without their index")
def _(folder: Path) -> Refused:
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()
    return Refused("but no model.safetensors and no model.safetensors.index.json that names them")


@layout("an index without a weight_map")
def _(folder: Path) -> Refused:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    return Refused("has no weight_map")


@layout("saved without its head (Qwen3VLModel)")
def _(folder: Path) -> Served:
    Qwen3VLModel.from_pretrained(folder).save_pretrained(folder)
    return SAME


@layout("a head of its own (not tied)")
def _(folder: Path) -> Served:
    def untie(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return stored | {"lm_head.weight": torch.randn(stored["model.language_model.embed_tokens.weight"].shape)}

    weights(folder, untie)
    edit(folder / "config.json", tie_word_embeddings=False)
    edit_text(folder, tie_word_embeddings=False)
    return SAME


@layout("float16 weights")
def _(folder: Path) -> Served:
    weights(folder, lambda stored: {name: weight.half() for name, weight in stored.items()})
    return SAME


@layout("names without `model.`, as of Qwen3VLModel")
def _(folder: Path) -> Served:
    weights(folder, lambda stored: {name.removeprefix("model."): weight for name, weight in stored.items()})
    return SAME


@layout("names of Qwen2-VL's time (model.layers, visual)")
def _(folder: Path) -> Refused:
    def older(name: str) -> str:
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")

    weights(folder, lambda stored: {older(name): weight for name, weight in stored.items()})
    return Refused("no place for")


@layout("names with a wrapper's prefix (module.)")
def _(folder: Path) -> Refused:
    weights(folder, lambda stored: {f"module.{name}": weight for name, weight in stored.items()})
    return Refused("no place for module.")


@layout("each weight twice, with and without `model.`")
def _(folder: Path) -> Refused:
    weights(
        folder, lambda stored: stored | {name.removeprefix("model."): weight * 2 for name, weight in stored.items()}
    )
    return Refused("holds both model.")


@layout("the same weight in two shards")
def _(folder: Path) -> Refused:
    sharded(folder)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    name, weight = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: weight * 2}, second, {"format": "pt"})
    return Refused("is in two of its weight files")


@layout("a weight file that was cut")
def _(folder: Path) -> Refused:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])
    return Refused("model.safetensors is cut or damaged")


@layout("an empty weight file")
def _(folder: Path) -> Refused:
    (folder / WEIGHTS).write_bytes(b"")
    return Refused("model.safetensors is cut or damaged")


@layout("weights with a NaN")
def _(folder: Path) -> Refused:
    def spoil(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stored["model.language_model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        return stored

    weights(folder, spoil)
    return Refused("layers.1.mlp.up_proj.weight holds NaN")


@layout("a weight of another shape")
def _(folder: Path) -> Refused:
    def cut(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.language_model.layers.1.mlp.up_proj.weight"
        return stored | {name: stored[name][:-1].contiguous()}

    weights(folder, cut)
    return Refused(r"layers.1.mlp.up_proj.weight is \(383, 128\), not \(384, 128\)")


@layout("fewer layers than its config names")
def _(folder: Path) -> Refused:
    edit_text(folder, num_hidden_layers=5)
    return Refused("missing_keys: language_model.layers.4")


@layout("more layers than its config names")
def _(folder: Path) -> Refused:
    edit_text(folder, num_hidden_layers=3)
    return Refused("no place for .*language_model.layers.3")


@layout("biases that its config denies")
def _(folder: Path) -> Refused:
    name = "model.language_model.layers.0.self_attn.q_proj.bias"
    weights(folder, lambda stored: stored | {name: torch.randn(128)})
    return Refused(f"no place for .*{name.removeprefix('model.')}")


@layout("biases that its config names")
def _(folder: Path) -> Served:
    def biased(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = [name for name in stored if "language_model" in name and "self_attn" in name and "_proj.weight" in name]
        return stored | {name.replace("weight", "bias"): torch.randn(len(stored[name])) for name in names}

    weights(folder, biased)
    edit_text(folder, attention_bias=True)
    return SAME


@layout("multi-token prediction layers (mtp)")
def _(folder: Path) -> Refused:
    weights(folder, lambda stored: stored | {"mtp.layers.0.input_layernorm.weight": torch.ones(128)})
    return Refused("no place for mtp.layers.0.input_layernorm.weight")


@layout("a reward model's head")
def _(folder: Path) -> Refused:
    weights(folder, lambda stored: stored | {"score.weight": torch.ones(1, 128)})
    return Refused("no place for score.weight")


@layout("a Git LFS pointer for the weights")
def _(folder: Path) -> Refused:
    return pointer(folder, WEIGHTS)


@layout("a Git LFS pointer for the tokenizer")
def _(folder: Path) -> Refused:
    return pointer(folder, "tokenizer.json")


@layout("a Git LFS pointer for the configuration")
def _(folder: Path) -> Refused:
    return pointer(folder, "config.json")


def pointer(folder: Path, file: str) -> Refused:
    (folder / file).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 11422654\n")
    return Refused(f"{file} is a Git LFS pointer, not the file: run `git lfs pull`")


@layout("pytorch_model.bin only")
def _(folder: Path) -> Refused:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    return Refused("holds pickled weights")


# ---- Quantised weights


@layout("fine-grained FP8 of the colour checkpoint, against the unquantised weights")
def _(folder: Path) -> Served:
    shutil.rmtree(folder)
    shutil.copytree(COLOURS, folder)
    quantized(folder)
    return Served(of(COLOURS), 0.99)


@layout("fine-grained FP8, against its own numbers")
def _(folder: Path) -> Served:
    quantized(folder)
    return Served(of(dequantized(folder, folder.with_name("dequantized"))))


@layout("fine-grained FP8, blocks cut short at the edge")
def _(folder: Path) -> Served:
    random_checkpoint(folder, intermediate_size=320)
    quantized(folder)
    return Served(of(dequantized(folder, folder.with_name("dequantized"))))


@layout("fine-grained FP8 of experts")
def _(folder: Path) -> Served:
    random_checkpoint(folder, experts_per_token=4)
    quantized(folder)
    return Served(of(dequantized(folder, folder.with_name("dequantized"))))


@layout("a mixture of experts")
def _(folder: Path) -> Served:
    random_checkpoint(folder, experts_per_token=4)
    return SAME


@layout("FP8 with scales and no quantization_config")
def _(folder: Path) -> Refused:
    quantized(folder, configured=False)
    return Refused("as float8_e4m3fn, quantised as in fine-grained FP8 with no quantization_config")


@layout("float weights with scales and no quantization_config")
def _(folder: Path) -> Refused:
    quantized(folder, configured=False)
    weights(folder, lambda stored: {name: weight.float() for name, weight in stored.items()})
    return Refused("no place for .*weight_scale_inv.*, quantised as in fine-grained FP8")


@layout("FP8 of which a scale is missing")
def _(folder: Path) -> Refused:
    quantized(folder)
    missing = "model.language_model.layers.2.mlp.down_proj.weight_scale_inv"
    weights(folder, lambda stored: {name: weight for name, weight in stored.items() if name != missing})
    return Refused(f"without {missing}")


@layout("FP8 of which a scale has another shape")
def _(folder: Path) -> Refused:
    quantized(folder)
    name = "model.language_model.layers.2.mlp.down_proj.weight_scale_inv"
    weights(folder, lambda stored: stored | {name: torch.ones(2, 3)})
    return Refused(r"down_proj.weight_scale_inv is \(2, 3\)")


@layout("FP8 with static activation scales")
def _(folder: Path) -> Refused:
    quantized(folder)
    edit(folder / "config.json", quantization_config=FP8 | {"activation_scheme": "static"})
    return Refused("activation_scheme static")


@layout("FP8 with one scale a weight")
def _(folder: Path) -> Refused:
    edit(folder / "config.json", quantization_config=FP8 | {"weight_block_size": None})
    return Refused("weight_block_size None")


@layout("int8 weights with scales and no quantization_config")
def _(folder: Path) -> Refused:
    def change(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        scale = stored[name].abs().amax(1, keepdim=True) / 127
        return stored | {name: (stored[name] / scale).round().to(torch.int8), name + "_scale": scale}

    weights(folder, change)
    return Refused("up_proj.weight as int8, quantised as in compressed-tensors or NVIDIA ModelOpt")


@layout("NVIDIA ModelOpt's FP8, no configuration")
def _(folder: Path) -> Refused:
    modelopt(folder)
    return Refused("float8_e4m3fn, quantised as in NVIDIA ModelOpt's FP8")


def modelopt(folder: Path) -> None:
    def change(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        scale = stored[name].abs().max() / 448
        extra = {name + "_scale": scale, name.replace("weight", "input_scale"): torch.tensor(1.0)}
        return stored | {name: (stored[name] / scale).to(torch.float8_e4m3fn)} | extra

    weights(folder, change)


@layout("NVIDIA ModelOpt, in hf_quant_config.json")
def _(folder: Path) -> Refused:
    modelopt(folder)
    edit(folder / "hf_quant_config.json", producer={"name": "modelopt"}, quantization={"quant_algo": "FP8"})
    return Refused("is quantised with NVIDIA ModelOpt")


@layout("NVIDIA ModelOpt's NVFP4, in config.json")
def _(folder: Path) -> Refused:
    return configured(folder, {"producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, r"NVIDIA ModelOpt \(NVFP4\)")


@layout("AWQ")
def _(folder: Path) -> Refused:
    return configured(folder, {"quant_method": "awq", "bits": 4, "group_size": 128}, "AWQ")


@layout("GPTQ")
def _(folder: Path) -> Refused:
    return configured(folder, {"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ")


@layout("GPTQ, in quantize_config.json")
def _(folder: Path) -> Refused:
    edit(folder / "quantize_config.json", bits=4, group_size=128)
    return Refused("is quantised with GPTQ")


@layout("bitsandbytes, 4 bits")
def _(folder: Path) -> Refused:
    return configured(folder, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes")


@layout("bitsandbytes, 8 bits, no configuration")
def _(folder: Path) -> Refused:
    def change(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        scale = stored[name].abs().amax(1)
        made = (stored[name] / scale[:, None] * 127).round().to(torch.int8)
        return stored | {name: made, name.replace("weight", "SCB"): scale}

    weights(folder, change)
    return Refused("quantised as in bitsandbytes")


@layout("compressed-tensors")
def _(folder: Path) -> Refused:
    says = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return configured(folder, says, r"compressed-tensors \(float-quantized\)")


@layout("compressed-tensors' NVFP4")
def _(folder: Path) -> Refused:
    says = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    return configured(folder, says, r"compressed-tensors \(nvfp4-pack-quantized\)")


@layout("MLX")
def _(folder: Path) -> Refused:
    edit(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    return Refused("is quantised with MLX")


@layout("a quantisation nobody knows")
def _(folder: Path) -> Refused:
    return configured(folder, {"quant_method": "next-year's"}, "next-year's")


def configured(folder: Path, says: dict, words: str) -> Refused:
    edit(folder / "config.json", quantization_config=says)
    return Refused(f"is quantised with {words}, which is not read")


@layout("GGUF files alone")
def _(folder: Path) -> Refused:
    for path in folder.iterdir():
        path.unlink()
    (folder / "Qwen3VL-4B-Instruct-Q4_K_M.gguf").write_bytes(b"GGUF\x03\0\0\0")
    return Refused("holds GGUF files")


@layout("GGUF files with the configuration")
def _(folder: Path) -> Refused:
    (folder / WEIGHTS).rename(folder / "model.gguf")
    return Refused("holds GGUF files")


# ---- Adapters


@layout("a LoRA adapter beside the weights")
def _(folder: Path) -> Served:
    merged = folder.with_name("merged")
    adapted(folder, merged)
    return Served(of(merged))


@layout("a LoRA adapter, rank-stabilised and weight-decomposed (DoRA)")
def _(folder: Path) -> Served:
    merged = folder.with_name("merged")
    adapted(folder, merged, use_dora=True, use_rslora=True, target_modules=["q_proj", "up_proj"])
    return Served(of(merged))


@layout("a LoRA adapter that trained the head too")
def _(folder: Path) -> Served:
    merged = folder.with_name("merged")
    edit(folder / "config.json", tie_word_embeddings=False)
    edit_text(folder, tie_word_embeddings=False)
    adapted(folder, merged, target_modules=["q_proj", "lm_head"])
    return Served(of(merged))


@layout("a LoRA adapter of the model without its head")
def _(folder: Path) -> Served:
    torch.manual_seed(2)
    peft = get_peft_model(
        Qwen3VLModel.from_pretrained(folder), LoraConfig(target_modules=["k_proj"], init_lora_weights=False)
    )
    peft.save_pretrained(str(folder))
    merged = shutil.copytree(folder, folder.with_name("merged"), ignore=shutil.ignore_patterns("adapter*"))
    peft.merge_and_unload().save_pretrained(merged)
    return Served(of(merged))


@layout("a LoRA adapter alone, which names its base")
def _(folder: Path) -> Served:
    base, merged = folder.with_name("base"), folder.with_name("merged")
    shutil.copytree(folder, base)
    adapter_only(folder, base)
    shutil.copytree(base, merged)
    model = Qwen3VLForConditionalGeneration.from_pretrained(base)
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(merged)
    return Served(lambda _: transformers_own(merged))


@layout("a LoRA adapter alone, whose base is not there")
def _(folder: Path) -> Refused:
    adapter_only(folder, folder.with_name("gone"))
    return Refused("holds an adapter of .*gone, which cannot be served")


@layout("a LoRA adapter for another model")
def _(folder: Path) -> Refused:
    adapted(folder)
    save_file({"base_model.model.transformer.h.0.attn.lora_A.weight": torch.ones(4, 8)},
              folder / "adapter_model.safetensors")  # fmt: skip
    return Refused("its adapter does not fit the model")


@layout("a LoRA adapter of which a part is missing")
def _(folder: Path) -> Refused:
    adapted(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    stored.pop(sorted(stored)[0])
    save_file(stored, folder / "adapter_model.safetensors")
    return Refused("its adapter does not fit the model")


@layout("an adapter that is no LoRA (IA3)")
def _(folder: Path) -> Refused:
    edit(folder / "adapter_config.json", peft_type="IA3", base_model_name_or_path="x")
    return Refused("holds a IA3 adapter")


@layout("an adapter as a pickle")
def _(folder: Path) -> Refused:
    adapted(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return Refused("has adapter_config.json and no adapter_model.safetensors")


# ---- sentence-transformers

ENCODED = Served(sentence_transformers_own)


@layout("sentence-transformers: last token, normalised")
def _(folder: Path) -> Served:
    by_sentence_transformers(folder, Pooling(128, "lasttoken"), Normalize())
    return ENCODED


@layout("sentence-transformers: mean, not normalised")
def _(folder: Path) -> Served:
    by_sentence_transformers(folder, Pooling(128, "mean"))
    return ENCODED


@layout("sentence-transformers: mean with a long default prompt")
def _(folder: Path) -> Served:
    prompts = {"query": "Find the colour that is meant by these words.", "document": "Represent it."}
    by_sentence_transformers(folder, Pooling(128, "mean"), Normalize(), prompts=prompts, default_prompt_name="query")
    return ENCODED


@layout("sentence-transformers: default prompt and generation prompt")
def _(folder: Path) -> Served:
    by_sentence_transformers(
        folder,
        Pooling(128, "lasttoken"),
        Normalize(),
        processing={"chat_template": {"add_generation_prompt": True}},
        prompts={"own": "Name the colour"},
        default_prompt_name="own",
    )
    return ENCODED


@layout("sentence-transformers: Pooling's flags of before 5.4")
def _(folder: Path) -> Served:
    by_sentence_transformers(folder, Pooling(128, "mean"), Normalize())
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 128, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True})
    )
    return ENCODED


@layout("sentence-transformers: an adapter alone")
def _(folder: Path) -> Served:
    base = Path(shutil.copytree(folder, folder.with_name("base")))
    first = Transformer(str(base))
    first.model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    for path in folder.iterdir():
        path.unlink()
    SentenceTransformer(modules=[first, Pooling(128, "lasttoken"), Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    assert not (folder / "config.json").exists()
    return ENCODED


@layout("sentence-transformers: a Dense layer")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, "lasttoken"), Dense(128, 64), Normalize())
    return Refused("makes its vectors with a Dense module")


@layout("sentence-transformers: pooled by max")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, "max"))
    return Refused("pools by max")


@layout("sentence-transformers: two poolings side by side")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, ("mean", "lasttoken")))
    return Refused("pools by mean and lasttoken")


@layout("sentence-transformers: texts only, of before 5.4")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, "mean"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    return Refused("of a release that embedded bare texts")


@layout("sentence-transformers: code of its own")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, "lasttoken"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    return Refused("wants code of its own, custom_st.Transformer")


@layout("sentence-transformers: no 1_Pooling/config.json")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, "lasttoken"))
    (folder / "1_Pooling" / "config.json").unlink()
    return Refused("has no 1_Pooling/config.json")


@layout("sentence-transformers: a CrossEncoder")
def _(folder: Path) -> Refused:
    by_sentence_transformers(folder, Pooling(128, "lasttoken"))
    edit(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    return Refused("is a CrossEncoder of sentence-transformers")


# ---- Processor, tokenizer, template, configuration


@layout("what transformers 5's save_pretrained writes (processor_config.json)")
def _(folder: Path) -> Served:
    processor = Qwen3VLProcessor.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    processor.save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    return SAME


@layout("min_pixels and max_pixels beside `size`")
def _(folder: Path) -> Served:
    edit(folder / "preprocessor_config.json", min_pixels=1024, max_pixels=16384)
    return Served(lambda folder: transformers_own(folder, low=1024, high=16384))


@layout("no `size`")
def _(folder: Path) -> Served:
    edit(folder / "preprocessor_config.json", size=None)
    return Served(lambda folder: transformers_own(folder, low=56 * 56, high=28 * 28 * 1280))


@layout("`size` of edges (height, width)")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", size={"height": 256, "width": 256})
    return Refused("shortest_edge")


@layout("a `size` whose largest is below its smallest")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", max_pixels=1024)
    return Refused("at least 4096 and at most 1024 pixels, which is no range")


@layout("a `size` of strings")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", size={"shortest_edge": "4096", "longest_edge": "65536"})
    return Refused("at least '4096' and at most '65536' pixels, which is no range")


@layout("other image_mean and image_std")
def _(folder: Path) -> Served:
    edit(folder / "preprocessor_config.json", image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28])
    return SAME


@layout("no image_mean")
def _(folder: Path) -> Served:
    edit(folder / "preprocessor_config.json", image_mean=None, image_std=None)
    return SAME


@layout("image_mean as one number")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", image_mean=0.5)
    return Refused("image_mean 0.5; three numbers are read")


@layout("image_std with a zero")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", image_std=[0.5, 0.5, 0.0])
    return Refused("no std of 0")


@layout("a preprocessor that does not normalise")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", do_normalize=False)
    return Refused("says do_normalize False")


@layout("a preprocessor with patches of another size")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", patch_size=14)
    return Refused("says patch_size 14")


@layout("another model's image processor")
def _(folder: Path) -> Refused:
    edit(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    return Refused("its image processor is a CLIPImageProcessor")


@layout("no preprocessor at all")
def _(folder: Path) -> Refused:
    (folder / "preprocessor_config.json").unlink()
    return Refused("has no preprocessor_config.json and no processor_config.json")


@layout("a preprocessor that is a list")
def _(folder: Path) -> Refused:
    (folder / "preprocessor_config.json").write_text("[]")
    return Refused("preprocessor_config.json holds a list, not an object")


@layout("the configuration that transformers 4.57 wrote")
def _(folder: Path) -> Served:
    config = json.loads((folder / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    theta = rope.pop("rope_theta")
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
        part["torch_dtype"] = "float32"
    config["text_config"] |= {"rope_scaling": rope, "rope_theta": theta}
    config["vision_config"]["model_type"] = "qwen3_vl"
    config["vision_config"].pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config))
    return SAME


@layout("YaRN, for longer contexts")
def _(folder: Path) -> Served:
    rope = json.loads((folder / "config.json").read_text())["text_config"]["rope_parameters"]
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}
    edit_text(folder, rope_parameters=rope | yarn, max_position_embeddings=8192)
    return SAME


@layout("no spatial_merge_size, no patch_size, no temporal_patch_size")
def _(folder: Path) -> Served:
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    for name in ("spatial_merge_size", "patch_size", "temporal_patch_size"):
        vision.pop(name, None)
    edit(folder / "config.json", vision_config=vision)
    return SAME


@layout("no image_token_id, where the default is another token")
def _(folder: Path) -> Refused:
    edit(folder / "config.json", image_token_id=None)
    return Refused("is not config.json's image_token_id, 151655")


@layout("no `depth`, where the default is another")
def _(folder: Path) -> Refused:
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder / "config.json", vision_config={name: value for name, value in vision.items() if name != "depth"})
    return Refused("missing_keys: visual.blocks.10")


@layout("a configuration that is a list")
def _(folder: Path) -> Refused:
    (folder / "config.json").write_text("[]")
    return Refused("config.json holds a list, not an object")


@layout("a text_config that is a list")
def _(folder: Path) -> Refused:
    edit(folder / "config.json", text_config=[])
    return Refused("transformers cannot read its config.json")


@layout("a number in words")
def _(folder: Path) -> Refused:
    edit_text(folder, hidden_size="128")
    return Refused("transformers cannot read its config.json")


@layout("a configuration without a model_type")
def _(folder: Path) -> Refused:
    edit(folder / "config.json", model_type=None)
    return Refused("has a config.json without model_type")


@layout("broken JSON")
def _(folder: Path) -> Refused:
    (folder / "tokenizer_config.json").write_text('{"a": ')
    return Refused("tokenizer_config.json is not valid JSON")


@layout("vocab.json and merges.txt, no tokenizer.json")
def _(folder: Path) -> Served:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    (folder / "tokenizer.json").unlink()
    return SAME


@layout("tokenizer.json alone")
def _(folder: Path) -> Served:
    (folder / "tokenizer_config.json").unlink()
    return SAME


@layout("a word that a fine-tune added")
def _(folder: Path) -> Served:
    with_words(folder)
    return SAME


def with_words(folder: Path) -> None:
    """`dark teal` becomes one token, with a vector of its own."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["dark teal"])
    tokenizer.save_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[-1].normal_(0, 1)
    model.save_pretrained(folder)


@layout("a tokenizer that ends every text with a token")
def _(folder: Path) -> Served:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer.save_pretrained(folder)
    return SAME


@layout("the template in chat_template.json")
def _(folder: Path) -> Served:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "chat_template.json", chat_template=template)
    return SAME


@layout("another template in chat_template.json, which transformers takes")
def _(folder: Path) -> Served:
    template = (folder / "chat_template.jinja").read_text()
    edit(folder / "chat_template.json", chat_template=template.replace("assistant", "embedder"))
    return SAME


@layout("the template in tokenizer_config.json")
def _(folder: Path) -> Served:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)

    def reference(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        edit(folder / "chat_template.json", chat_template=template)  # the processor alone does not look there
        return transformers_own(folder)

    return Served(reference)


@layout("no template")
def _(folder: Path) -> Refused:
    (folder / "chat_template.jinja").unlink()
    return Refused("has no chat template")


@layout("a template with a syntax error")
def _(folder: Path) -> Refused:
    return template(folder, "{% for message in messages %}", "does not draw a user turn: TemplateSyntaxError")


@layout("a template that raises")
def _(folder: Path) -> Refused:
    return template(folder, "{{ raise_exception('nobody may ask') }}", "does not draw a user turn: .*nobody may ask")


@layout("a template that adds strings only")
def _(folder: Path) -> Refused:
    return template(folder, "{{ messages[0].content + 'x' }}", "does not draw a user turn: TypeError")


@layout("a template of a text model, which leaves the content out")
def _(folder: Path) -> Refused:
    text = "<|im_start|>user\n{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}<|im_end|>"
    return template(folder, text, "does not draw what it is given")


@layout("a template that leaves images out")
def _(folder: Path) -> Refused:
    text = "<|im_start|>user\n{% for p in messages[0].content %}{{ p.text }}{% endfor %}<|im_end|>"
    return template(folder, text, r"does not draw what it is given \(image\)")


@layout("a template that draws the content twice")
def _(folder: Path) -> Refused:
    plain = (folder / "chat_template.jinja").read_text()
    return template(folder, plain.replace("{{- part.text -}}", "{{- part.text + part.text -}}"), "exactly once")


def template(folder: Path, text: str, words: str) -> Refused:
    (folder / "chat_template.jinja").write_text(text)
    return Refused(words)


# ---- What this server makes of them


def served(folder: Path) -> list[np.ndarray]:
    """Our (text, image) vectors.

    Raises:
        UnsupportedCheckpoint: it is refused.
    """
    embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    image = png((64, 64)) if (folder / "modules.json").is_file() else png()
    return vectors(embedder, EmbedInput(text=TEXT), EmbedInput(image=image))


def vectors(embedder: Embedder, *inputs: EmbedInput) -> list[np.ndarray]:
    return [answer.vector for answer in embedder.embed(inputs)]


def main() -> None:
    """Print the table."""
    print("| checkpoint | right | here |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        plain = random_checkpoint(Path(root, "plain"))
        for name, make in LAYOUTS.items():
            folder = Path(shutil.copytree(plain, Path(root, "one", "folder")))
            right = make(folder)
            wanted = "refused" if isinstance(right, Refused) else f"≥ {right.least}"
            print(f"| {name} | {wanted} | {outcome(folder, right)} |", flush=True)
            shutil.rmtree(folder.parent)


def outcome(folder: Path, right: Served | Refused) -> str:
    try:
        found = served(folder)
    except UnsupportedCheckpoint as error:
        return f"refused: {str(error).replace(str(folder), 'it').replace('|', chr(92) + '|')}"
    except Exception as error:
        return f"**{type(error).__name__}: {error}**"
    if isinstance(right, Refused):
        return "**served**"
    cosines = [cosine(ours, theirs) for ours, theirs in zip(found, right.reference(folder), strict=True)]
    return " and ".join(f"{value:.6f}" for value in cosines)


if __name__ == "__main__":
    main()
