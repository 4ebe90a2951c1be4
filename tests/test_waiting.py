"""Between the copy of a batch's inputs and that of its result nothing waits for the device, and nothing more is copied.

A CPU never waits for itself, so the forward pass is run on torch's `meta` device: it has shapes and no numbers, and
whoever asks for a number (`.item()`, `.tolist()`, a boolean index) gets an exception, just where a GPU would be waited
for. The same property is what lets a CUDA graph capture the pass.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3VLConfig, Qwen3VLModel

from embedder.forward.model import PackedModel
from embedder.forward.packing import pack
from embedder.prepare.images import Patches
from embedder.prepare.renderer import Tokens
from embedder.prepare.sequence import Sequence

CONFIGS = Path(__file__).parent / "data" / "configs"


class NoCopies(TorchDispatchMode):
    """Refuses every operation that moves numbers from the CPU to the device, or mixes tensors of both."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [t for t in (*args, *(kwargs or {}).values(), out) if isinstance(t, torch.Tensor) and t.ndim]
        assert len({tensor.device.type for tensor in tensors}) < 2, f"{function} has tensors on the CPU and the device"
        return out


@pytest.fixture(scope="module", params=["2B", "4B"])
def model(request):
    config = json.loads((CONFIGS / f"Qwen3-VL-{request.param}-Instruct" / "config.json").read_text())
    with torch.device("meta"):
        model = Qwen3VLModel(Qwen3VLConfig(**{k: v for k, v in config.items() if k != "model_type"})).bfloat16()
    return PackedModel.of(model.eval(), SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3))


def text(length: int, prefix: int = 0) -> Sequence:
    return Sequence(Tokens(np.arange(length), ((prefix + 3, length - 5),), prefix=prefix))


def image(rows: int, columns: int) -> Sequence:
    tokens = rows * columns // 4
    patches = Patches(np.zeros((rows * columns, 768), np.uint8), (rows, columns))
    return Sequence(Tokens(np.arange(tokens + 20), ((4, 4 + tokens),), (4, 4 + tokens)), patches)


MIXED = [text(20), text(24), text(40, 12), text(50, 14), image(16, 16), image(8, 12)]


@pytest.mark.parametrize("sequences", [[text(20)], [text(40, 12)], [image(16, 16)], MIXED])
def test_a_forward_pass_waits_for_nothing(model, sequences):
    packed = pack(sequences, "meta")
    rows = torch.zeros(len(sequences), dtype=torch.long, device="meta")
    with torch.inference_mode():
        model.hidden(packed, [model.layers], rows)  # what is computed once for each image size
        with NoCopies():
            states = model.hidden(packed, [model.layers, model.layers - 1, "attn"], rows)
            final = model.final_norm(states[model.layers])
    assert final.shape == (len(sequences), model.dimension)
    assert all(state.shape == final.shape for state in states.values())
