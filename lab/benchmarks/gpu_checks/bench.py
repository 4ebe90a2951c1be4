"""What the checks of one process share: the device, its ceilings, and an embedder with the 4B's shape.

On a CPU everything is the same code with a model of two million weights and smaller batches.
"""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3VLConfig

from embedder import Embedder, EmbedderConfig, EmbedInput
from embedder.checkpoint import Checkpoint, load_tokenizer
from embedder.forward.model import PackedModel
from embedder.prepare.preparer import Preparer
from embedder.prepare.renderer import Renderer
from embedder.published import Published
from lab.benchmarks import checkpoints, inputs, subject
from lab.benchmarks.gpu import is_cuda, release
from lab.benchmarks.hardware import Ceiling
from lab.training import architecture

# The 4B's proportions: four heads on one, three deepstack layers, a head's width a quarter of the hidden size or less.
MINI: checkpoints.Size = {
    "text_config": {
        "vocab_size": architecture.VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "depth": 4,
        "num_heads": 2,
        "deepstack_visual_indexes": [0, 1, 2],
        "out_hidden_size": 128,
    },
}
CPU_TOKENS = 256  # of a pass: the budget that a GPU gets would take a CPU minutes


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    size: checkpoints.Size  # of the model
    pixels: checkpoints.Pixels
    sides: tuple[tuple[int, int], ...]  # of pictures that are compared: within those bounds, so nobody resizes them
    rows: tuple[int, ...]  # of the matrix products: a name, a batch of 64 names, a batch of 64 swatches, a full pass
    lengths: tuple[int, ...]  # of the sequences that attention is compared on
    long: int  # the sequence that attention is timed on
    batch: int  # names or swatches of an ordinary batch
    large: tuple[str, int]  # the images of an ordinary batch: kind, how many
    shapes: int  # different lengths that are replayed in turn
    batches: tuple[int, ...]  # of the throughput
    calls: int  # of each batch
    served: dict[str, int]  # what goes through the pipeline
    photos: tuple[int, int]  # of 12 megapixels, in one call


GPU = Sizes(
    size=checkpoints.WHOLE,
    pixels=checkpoints.PIXELS,
    sides=((256, 256), (320, 256), (1024, 512)),
    rows=(18, 1152, 5248, 16384),
    lengths=(1, 5, 64, 65, 1042, 4096),
    long=4096,
    batch=64,
    large=("1024×1024", 16),
    shapes=70,
    batches=(1, 8, 64),
    calls=3,
    served={"swatches": 2000, "half and half": 2000, "photos": 300},
    photos=(16, 64),
)
CPU = Sizes(
    size=MINI,
    pixels={"shortest_edge": 64 * 64, "longest_edge": 128 * 128},
    sides=((64, 64), (96, 64), (128, 96)),
    rows=(18, 256),
    lengths=(1, 5, 64, 65, 130),
    long=256,
    batch=8,
    large=("512×512", 2),
    shapes=6,
    batches=(1, 4),
    calls=1,
    served={"swatches": 24, "half and half": 24, "photos": 6},
    photos=(1, 4),
)


class Bench:
    """One process' own. What takes long is made when it is first asked for, and again after `release`."""

    def __init__(self, device: str) -> None:
        self.device, self.on_gpu = "cuda:0" if device == "cuda" else device, is_cuda(device)
        self.sizes = GPU if self.on_gpu else CPU
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32  # the embedder's own choice (EMBED_DTYPE=auto)
        self.found: dict[str, Any] = {}  # for the document, beside the lines
        if self.on_gpu:
            torch.cuda.set_device(self.device)  # events and streams are the current device's
        else:
            torch.set_num_threads(1)  # what is checked here is not speed, and on busy cores threads wait for each other

    def card(self, h100: float, h200: float) -> float | None:
        """What is predicted for this card; None for one that nothing was predicted for."""
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else ""
        return h200 if "H200" in name else h100 if "H100" in name else None

    @cached_property
    def ceiling(self) -> Ceiling:
        measured = Ceiling.measure(self.device, str(self.dtype).removeprefix("torch."), 1.0 if self.on_gpu else 0.1)
        self.found["ceiling"] = asdict(measured)
        return measured

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """A folder without weights: the configuration, the tokenizer and the pixels' settings."""
        folder = Path(mkdtemp())  # within the run's own
        checkpoints.outline(self.sizes.size, folder, self.sizes.pixels)
        return Checkpoint("4b" if self.on_gpu else "mini", folder, None)

    @property
    def config(self) -> dict[str, Any]:
        """config.json as it was published, but for token ids (and, on a CPU, sizes)."""
        return json.loads((self.checkpoint.folder / "config.json").read_text())

    def drawn(self, dtype: torch.dtype) -> PreTrainedModel:
        """transformers' `Qwen3VLModel` of that configuration, in bfloat16 or float32: the same weights each time."""
        configuration = Qwen3VLConfig.from_pretrained(self.checkpoint.folder)
        model = checkpoints.drawn(configuration, torch.bfloat16, self.device).model
        return model.float() if dtype == torch.float32 else model  # `.bfloat16()` would round frequencies

    @cached_property
    def embedder(self) -> Embedder:
        """The 4B as it is served by default, with weights drawn on the device."""
        with torch.inference_mode(False):
            return self.embedder_of(PackedModel.of(self.drawn(self.dtype), self.checkpoint.processor.image_processor))

    def embedder_of(self, model: PackedModel) -> Embedder:
        """Around a model that is there already; the token budget is what is free now."""
        config = EmbedderConfig(
            checkpoint=self.checkpoint.name,
            dtype="bfloat16" if model.model.dtype == torch.bfloat16 else "float32",
            device=self.device,
            prompt="eol",
            max_batch_tokens=None if self.on_gpu else CPU_TOKENS,
        )
        renderer = Renderer(load_tokenizer(self.checkpoint), config.max_text_tokens)
        return Embedder(self.checkpoint, model, Preparer(config, self.checkpoint, Published(), renderer))

    def release(self) -> None:
        """Give the model's memory back."""
        self.__dict__.pop("embedder", None)
        gc.collect()  # a model is full of cycles
        release(self.device)


def full(embedder: Embedder, kind: str) -> list[EmbedInput]:
    """As many inputs of a kind as one pass may hold, 1,024 at most."""
    tokens = max(tokens for tokens, _ in subject.shapes(embedder, inputs.batch(kind, 8)))
    return inputs.batch(kind, max(1, min(1024, embedder.batch_tokens // tokens)))


@contextmanager
def eager(model: PackedModel) -> Iterator[None]:
    """Within it, nothing is captured or replayed."""
    replay, model.replay = model.replay, None
    try:
        yield
    finally:
        model.replay = replay
