"""A checkpoint's weights: whole, finite, of the model that its config.json describes, and in a format that is read.

Read are float weights, Qwen's fine-grained FP8 (dequantised while loading) and LoRA adapters (merged while loading).
Whatever else lies in the files is refused by its name: a weight that is left out makes a plausible wrong vector.
"""

from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..checkpoint import ADAPTER, ADAPTER_CONFIG, MODELS, Checkpoint, line, listed, tensors
from ..errors import UnsupportedCheckpoint
from .budget import memory
from .hardware import Card, too_large, too_little

HEAD = "lm_head."  # the language-model head: the only part of a checkpoint that an embedding has no use for
EMBEDDINGS = ("language_model", "embed_tokens")  # ends of the names of what holds the token embeddings
SCALE = "_scale_inv"  # what a dequantising factor's name adds to its weight's, in the fine-grained FP8 format
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INSTEAD = "give the unquantised checkpoint, or Qwen's own FP8 one"
# `quant_method` of a quantization_config (transformers `utils/quantization_config.py`) -> the format's own name.
METHODS = {
    **{"awq": "AWQ", "gptq": "GPTQ", "bitsandbytes": "bitsandbytes", "modelopt": "NVIDIA ModelOpt", "nvfp4": "NVFP4"},
    **{"compressed-tensors": "compressed-tensors", "gguf": "GGUF", "hqq": "HQQ", "quanto": "Quanto", "mxfp4": "MXFP4"},
    **{"torchao": "torchao", "auto-round": "AutoRound", "fbgemm_fp8": "FBGEMM FP8", "mlx": "MLX"},
}
# Files beside config.json that say it.
SIDE_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
# Ends of weights' names, where no configuration says it.
ENDS = {
    **{"weight_scale_2": "NVIDIA ModelOpt's NVFP4", "input_scale": "NVIDIA ModelOpt's FP8"},
    **{"weight_packed": "compressed-tensors", "weight_scale": "compressed-tensors or NVIDIA ModelOpt"},
    **{"qweight": "GPTQ or AWQ", "qzeros": "GPTQ or AWQ", "g_idx": "GPTQ", "absmax": "bitsandbytes"},
    **{"SCB": "bitsandbytes", "scales": "MLX, GPTQ or AWQ", "weight_scale_inv": "fine-grained FP8"},
}


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model without its language-model head, in eval mode; over several GPUs when `device` is too small for it.

    Raises:
        UnsupportedCheckpoint: weights are missing, left over, damaged, of another shape or not finite, or their format
            is not read.
    """
    block = _fp8_block(checkpoint)
    stored = _stored(checkpoint)
    scales = {name: stored.pop(name) for name in list(stored) if block and name.endswith(SCALE)}
    _check_dtypes(checkpoint, stored, scales)
    size = sum(tensor.numel() for tensor in stored.values()) * dtype.itemsize
    cards = Card.seen(device) if device.startswith("cuda") else []
    name = str(dtype).removeprefix("torch.")
    if why := too_little(size, cards, torch.cuda.device_count()) if cards else too_large(size, name, memory()):
        raise UnsupportedCheckpoint(f"{checkpoint.name}: {why}")
    model = _load(checkpoint, stored, dtype, placement(size, device, cards))
    if device != "cpu" and (why := scattered(getattr(model, "hf_device_map", {}))):
        raise UnsupportedCheckpoint(f"{checkpoint.name} {why}: give it more or larger GPUs, or set EMBED_DEVICE=cpu")
    with torch.no_grad():
        for name, scale in scales.items():
            if not name.startswith(HEAD):
                _dequantize(checkpoint, model, name.removesuffix(SCALE), stored, scale, block)
    if checkpoint.adapter:
        model = merge_adapter(checkpoint, checkpoint.adapter, model)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UnsupportedCheckpoint(f"{checkpoint.name}: {name} holds NaN or infinite numbers")
    return model.eval()


def placement(size: int, device: str, cards: list[Card]) -> str:
    """transformers' `device_map`: the device itself, or `auto` (accelerate) where `cuda`'s first has too little room.

    `cards`: those that the device may mean, with room for `size` bytes of weights together; none for a CPU.
    """
    return "auto" if len(cards) > 1 and too_little(size, cards[:1]) else device


def scattered(places: dict[str, int | str]) -> str | None:
    """Why a model that accelerate spread over `places` (parts' names, and a GPU's number each) is not served.

    The parts that are replaced lose the hooks that move their inputs. So what comes before the decoder layers, which
    move theirs, must be in one place.
    """
    if {"cpu", "disk"} & set(map(str, places.values())):
        return "fits on the GPUs here only in part"
    first = {place for name, place in places.items() if name.startswith("visual") or name.endswith(EMBEDDINGS)}
    if len(first) > 1:
        return "would have its vision tower and token embeddings on several GPUs"
    return None


def _fp8_block(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """(rows, columns) that share one scale in the fine-grained FP8 format; None for weights that are not quantised.

    Raises:
        UnsupportedCheckpoint: they are quantised in another way.
    """
    raw = checkpoint.raw_config
    parts = [part for part in (raw, raw.get("text_config"), raw.get("vision_config")) if isinstance(part, dict)]
    given = [part[key] for part in parts for key in ("quantization_config", "compression_config") if part.get(key)]
    says = given[0] if given and isinstance(given[0], dict) else {}
    side = [method for file, method in SIDE_FILES.items() if checkpoint.json(file) is not None]
    if raw.get("quantization"):
        side.append("mlx")
    if not given and not side:
        return None
    producer = says.get("producer")
    if isinstance(producer, dict) and producer.get("name") == "modelopt":
        side.append("modelopt")
    if says.get("load_in_8bit") or says.get("load_in_4bit"):
        side.append("bitsandbytes")
    method = str(
        says.get("quant_method") or (side[0] if side else "a method that its quantization_config does not name")
    )
    if method != "fp8":
        detail = says.get("quant_algo") or says.get("format")
        detail = f" ({detail})" if detail else ""
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} is quantised with {METHODS.get(method, method)}{detail}, which is not read: {INSTEAD}"
        )
    block = says.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} is FP8 with weight_block_size {block}; read is [rows, columns], such as [128, 128]"
        )
    if says.get("activation_scheme", "dynamic") != "dynamic":
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} is FP8 with activation_scheme {says['activation_scheme']}, which is not read: {INSTEAD}"
        )
    return block[0], block[1]


def _stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of its files by name.

    Raises:
        UnsupportedCheckpoint: a file is damaged, or two hold the same weight.
    """
    stored: dict[str, torch.Tensor] = {}
    for path in checkpoint.weights:
        for name, tensor in tensors(checkpoint, path):
            if name in stored:
                raise UnsupportedCheckpoint(f"{checkpoint.name}: {name} is in two of its weight files")
            stored[name] = tensor
    for name in stored:
        if (twin := name.removeprefix("model.")) != name and twin in stored:
            raise UnsupportedCheckpoint(f"{checkpoint.name} holds both {name} and {twin}: which is the weight?")
    return stored


def _check_dtypes(checkpoint: Checkpoint, stored: dict[str, torch.Tensor], scales: dict[str, torch.Tensor]) -> None:
    for name, tensor in stored.items():
        fp8 = tensor.dtype == torch.float8_e4m3fn
        if name.startswith(HEAD) or tensor.dtype in FLOATS or (fp8 and name + SCALE in scales):
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        why = f" without {name + SCALE}" if fp8 and scales else _format_of(list(stored))
        raise UnsupportedCheckpoint(f"{checkpoint.name} stores {name} as {kind}{why}, which is not read: {INSTEAD}")


def _format_of(names: list[str]) -> str:
    """The format that weights' names are typical of, as half a sentence; empty where they tell none."""
    for end, kind in ENDS.items():
        if any(name.endswith(end) for name in names):
            return f", quantised as in {kind} with no quantization_config to say how"
    return ""


def _load(
    checkpoint: Checkpoint, stored: dict[str, torch.Tensor], dtype: torch.dtype, device_map: str
) -> PreTrainedModel:
    config = checkpoint.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # or transformers would replace the layers by its own quantised ones
    try:
        model, report = MODELS[checkpoint.model_type].from_pretrained(
            None,  # not the folder, where transformers would look for adapters and other weights once more
            config=config,
            state_dict=stored,
            dtype=dtype,
            device_map=device_map,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # reported here, by name
            output_loading_info=True,
        )
        own(model, stored)
    except Exception as error:  # torch and transformers each raise their own types
        raise UnsupportedCheckpoint(f"{checkpoint.name} cannot be loaded: {line(error)}") from error
    missing, unexpected = (sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys"))
    unexpected = [name for name in unexpected if name != f"{HEAD}weight"]
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} does not fit its own config.json: {name} is {tuple(found)}, not {tuple(wanted)}"
        )
    if unexpected:
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} does not fit its own config.json, which has no place for {listed(unexpected)}"
            f"{_format_of(unexpected)}: leaving them out would give wrong vectors"
        )
    if missing or report.get("error_msgs"):
        named = listed(missing or sorted(map(line, report["error_msgs"])))
        raise UnsupportedCheckpoint(f"{checkpoint.name} does not fit its own config.json: missing_keys: {named}")
    return model


def own(model: PreTrainedModel, stored: dict[str, torch.Tensor]) -> None:
    """Copy what is still mapped from a file (weights that are stored in the served dtype) into memory of our own.

    The kernel drops mapped pages when memory is short, and some later pass waits for the disk. And writing into the
    file would change the weights of the running model.
    """
    mapped = {tensor.untyped_storage().data_ptr() for tensor in stored.values()}
    for weight in model.parameters():
        if weight.untyped_storage().data_ptr() in mapped:
            weight.data = weight.data.clone()


def _dequantize(
    checkpoint: Checkpoint,
    model: nn.Module,
    name: str,
    stored: dict[str, torch.Tensor],
    scale: torch.Tensor,
    block: tuple[int, int] | None,
) -> None:
    """Multiply a loaded FP8 weight by its blocks' scales, in place: every e4m3 number is one of the served dtype's.

    A scale belongs to a block of rows and columns, the last of each may be cut short. DeepSeek-V3 technical report
    (arXiv 2412.19437), section 3.3.2; in float32, rounded once.
    """
    parameters = dict(model.named_parameters())
    weight = parameters.get(name, parameters.get(name.removeprefix("model.")))
    if weight is None or name not in stored or block is None:
        raise UnsupportedCheckpoint(f"{checkpoint.name}: {name}{SCALE} is the scale of no weight")
    if stored[name].shape != weight.shape:  # transformers keeps experts the other way round
        scale, block = scale.transpose(-1, -2), block[::-1]
    rows, columns = weight.shape[-2:]
    wanted = (*weight.shape[:-2], ceil(rows / block[0]), ceil(columns / block[1]))
    if tuple(scale.shape) != wanted or scale.dtype not in (*FLOATS, torch.float8_e8m0fnu):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: {name}{SCALE} is {tuple(scale.shape)} of {scale.dtype}, not {wanted} of floats"
        )
    scale = scale.to(weight.device).float()
    for matrix, factors in zip(weight.view(-1, rows, columns), scale.reshape(-1, *wanted[-2:]), strict=True):
        spread = factors.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
        matrix.copy_(matrix.float() * spread)


def merge_adapter(checkpoint: Checkpoint, folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The model with a LoRA adapter added to its weights, by peft.

    Raises:
        UnsupportedCheckpoint: peft is not here, it is no LoRA adapter, or it was made for another model.
    """
    kind = checkpoint.json(ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise UnsupportedCheckpoint(f"{checkpoint.name} holds a {kind} adapter; this server merges LoRA adapters")
    if not (folder / ADAPTER).is_file():
        raise UnsupportedCheckpoint(f"{checkpoint.name} has {ADAPTER_CONFIG} and no {ADAPTER}")
    if not find_spec("peft"):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} holds a LoRA adapter, and peft, which merges it, is not installed: install the extra "
            "`lora`, or give the merged checkpoint"
        )
    from peft import PeftConfig, PeftModel

    # An adapter trained on the model with its head has one `model.` more in its names than one trained on it without.
    names = [name.removeprefix("base_model.model.") for name, _ in tensors(checkpoint, folder / ADAPTER)]
    whole: Any = nn.Module()
    whole.model, whole.config = model, model.config
    try:
        settings = PeftConfig.from_pretrained(folder)
        if settings.modules_to_save:
            settings.modules_to_save = [name for name in settings.modules_to_save if name != "lm_head"] or None
        headed = any(name.startswith(("model.", HEAD)) for name in names)
        adapted = PeftModel(whole if headed else model, settings)
        report = adapted.load_adapter(folder, "default", torch_device="cpu")
        merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises many types
        raise UnsupportedCheckpoint(f"{checkpoint.name}: its adapter does not fit the model: {line(error)}") from error
    wrong = [name for name in (*report.missing_keys, *report.unexpected_keys) if HEAD not in name]
    if wrong or not names:
        raise UnsupportedCheckpoint(f"{checkpoint.name}: its adapter does not fit the model: {listed(sorted(wrong))}")
    return merged.model if headed else merged
