"""How many tokens one forward pass may hold, so that it fits into the memory that is free.

Triton counts requests; a colour name has 20 tokens and a photo a thousand. What is counted here are the bytes that are
alive at the worst moment of a pass. Every token counts as if it were an image's. That is in a decoder layer, and in a
vision block for the four patches that become one token. Photos take a little less than that, texts a quarter
(`docs/log.md`, 2026-11-24).
"""

import os
from time import perf_counter

import psutil
import torch
from transformers import PretrainedConfig

from ..prepare.images import MERGE
from . import cgroup

SHARE = 0.5  # of the free memory: the rest is for images being decoded, CUDA graphs and fragmentation
MOST = 16384  # tokens; a longer pass is no faster, and the next caller waits for it
FEWEST, PASS_SECONDS = 2048, 0.25  # on a GPU a pass need not take longer, and shorter ones than the former are slower
# On a CPU, passes of more than FEWEST are slower: malloc takes what is larger than 32 MiB from the system each time.


def token_budget(config: PretrainedConfig, item_bytes: int, free_bytes: int, seconds: float = 0.0) -> int:
    """Tokens of one pass of a Qwen3-VL of this configuration, `item_bytes` to a number; at least 1.

    `seconds`: what a token of an image takes on this GPU at best; 0 on a CPU.
    """
    per_token = text_bytes(config.text_config, item_bytes) + MERGE**2 * vision_bytes(config.vision_config, item_bytes)
    most = min(MOST, max(FEWEST, int(PASS_SECONDS / seconds))) if seconds else FEWEST
    return max(1, min(most, int(SHARE * free_bytes) // per_token))


def product_rate(device: torch.device, dtype: torch.dtype, side: int = 4096) -> float:
    """Multiply-adds a second of a square product of that many rows: the quickest of five."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    took = []
    for _ in range(6):
        started = perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(perf_counter() - started)
    return side**3 / min(took[1:])


def text_bytes(config: PretrainedConfig, item_bytes: int) -> int:
    """Of a token in a decoder layer: residual stream and norms, the MLP's three products, queries, keys and values."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    mlp = getattr(config, "moe_intermediate_size", 0) * getattr(config, "num_experts_per_tok", 0)
    values = 6 * config.hidden_size + 3 * max(config.intermediate_size, mlp) + 3 * heads * config.head_dim
    return item_bytes * int(values)


def vision_bytes(config: PretrainedConfig, item_bytes: int) -> int:
    """Of a patch in a vision block: its pixels, 8-bit and float32, the block's numbers, and float32 rotary ones."""
    pixels = 12 * config.in_channels * config.patch_size**2
    block = item_bytes * (8 * config.hidden_size + 2 * config.intermediate_size)
    return int(pixels + block + 4 * 6 * config.hidden_size)


def free_bytes(device: torch.device) -> int:
    """What a pass on this device could still take: the GPU's, or the machine's within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limit, machine = cgroup.memory(), int(psutil.virtual_memory().available)
    return machine if limit is None else min(machine, limit - int(psutil.Process(os.getpid()).memory_info().rss))


def memory() -> int:
    """Bytes of the machine, within the container's limit, and of what it swaps to."""
    total = int(psutil.virtual_memory().total)
    return min(total, cgroup.memory() or total) + int(psutil.swap_memory().total)
