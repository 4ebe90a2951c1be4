"""Which way each operation takes on this device: the fused one where it runs and agrees with torch's, else torch's."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from .attention import HALF, Bounds
from .cpu import CPU, WORTH
from .operations import FEW, TORCH, Operations, linear_gelu_at_once

logger = logging.getLogger(__name__)

ROWS, PATCHES = 5, 300  # that are compared; of four images
# ‖fused − exact‖ / ‖exact‖ at most; exact is torch's in float32. A bfloat16 has 8 bits, and is rounded once or twice.
ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def fastest(model: PreTrainedModel) -> Operations:
    """For this model on its device. On the meta device, where nothing is computed, a GPU's."""
    if model.dtype not in ERROR:
        return TORCH
    fused = CPU if model.device.type == "cpu" else suited(model, fused_operations())
    if model.device.type == "meta":
        return fused
    return replace(TORCH, **{name: getattr(fused, name) for name in fused.fused if agrees(name, fused, model)})


def fused_operations() -> Operations:
    """The kernels, or without Triton's compiler what torch brings itself."""
    try:
        from .kernels import FUSED
    except ImportError as error:
        logger.warning("no fused kernels: %s; passes will take longer", error)
        return replace(TORCH, linear_gelu=linear_gelu_at_once)
    return FUSED


def suited(model: PreTrainedModel, fused: Operations) -> Operations:
    """Without the attention that was not found faster than torch's: found on Hopper, for images' heads of 64."""
    vision = model.config.vision_config
    capability = (9, 0) if model.device.type == "meta" else torch.cuda.get_device_capability(model.device)
    if model.dtype not in HALF:  # without tensor cores
        return replace(fused, full_attention=TORCH.full_attention, short_attention=TORCH.short_attention)
    if capability != (9, 0) or vision.hidden_size // vision.num_heads != 64:
        return replace(fused, full_attention=TORCH.full_attention)
    return fused


def agrees(name: str, fused: Operations, model: PreTrainedModel) -> bool:
    """Whether a fused operation computes what torch's does, at this model's own widths."""
    for given in samples(name, model):
        try:
            exact = results(getattr(TORCH, name), [_float(each) for each in given])
            ours = results(getattr(fused, name), given)
        except Exception as error:  # no compiler, no such instruction, a config.json that contradicts itself
            logger.warning("%s runs as torch's own operators, which takes longer: %.300s", name, error)
            return False
        off = max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(ours, exact, strict=True))
        if not off <= ERROR[model.dtype]:
            logger.warning("%s runs as torch's own operators: fused, it was off by %.2g", name, off)
            return False
    return True


def samples(name: str, model: PreTrainedModel, rows: int = ROWS) -> list[list[Any]]:
    """What the operation is given in this model's layers, with random numbers."""
    text, vision = model.config.text_config, model.config.vision_config
    generator = torch.Generator(model.device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=model.device).to(model.dtype)

    def angles(width: int, dtype: torch.dtype) -> list[torch.Tensor]:
        turned = torch.rand(rows, width // 2, generator=generator, device=model.device).repeat(1, 2) * 100
        return [turned.cos().to(dtype), turned.sin().to(dtype)]

    heads, keys, width = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    qkv = draw(rows, heads + 2 * keys, width)[:, : heads + keys]
    side, count = vision.hidden_size // vision.num_heads, vision.num_heads
    patches = draw(max(rows, PATCHES), 3 * count, side)
    lengths = [len(patches) // 4] * 4
    return {
        "norm": lambda: [[draw(1, rows, text.hidden_size), draw(text.hidden_size), text.rms_norm_eps]],
        "rotate": lambda: [
            [qkv, *angles(width, model.dtype), (draw(width), draw(width)), heads, text.rms_norm_eps],
            [patches[:rows, : 2 * count], *angles(side, torch.float32), None, 0, 0.0],
        ],
        "add_norm": lambda: [
            [*(draw(1, rows, text.hidden_size) for _ in range(2)), draw(text.hidden_size), None, text.rms_norm_eps],
            [*(draw(rows, vision.hidden_size) for _ in range(2)), *(draw(vision.hidden_size) for _ in range(2)), 1e-6],
        ],
        "linear_silu_mul": lambda: [  # few rows, and more
            [draw(1, some, text.hidden_size), weight]
            for weight in [draw(2 * text.intermediate_size, text.hidden_size)]
            for some in (ROWS, rows + 64)
        ],
        "linear_gelu": lambda: [
            [
                draw(max(rows, WORTH // vision.intermediate_size + 1), vision.hidden_size),  # oneDNN's, on a CPU
                draw(vision.intermediate_size, vision.hidden_size),
                draw(vision.intermediate_size),
            ]
        ],
        "short_attention": lambda: [
            [
                draw(FEW, heads + 2 * keys, width),
                *(each.repeat(FEW, 1)[:FEW] for each in angles(width, model.dtype)),
                (draw(width), draw(width)),
                heads,
                text.rms_norm_eps,
                Bounds.of([1, 5, 12, FEW - 18], model.device),
                width**-0.5,
            ]
        ],
        "full_attention": lambda: [
            [*patches[: sum(lengths)].chunk(3, dim=1), Bounds.of(lengths, model.device), side**-0.5],
        ],
    }[name]()


def results(operation: Callable[..., Any], given: list[Any]) -> list[torch.Tensor]:
    with torch.inference_mode():
        out = operation(*given)
    return list(out) if isinstance(out, tuple) else [out]


def _float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_float, value))
    return value.float() if isinstance(value, torch.Tensor) else value
