"""The work: inputs in, vectors out, one stage per line. Knows Qwen3-VL and torch through its neighbours; not Triton."""

import hashlib
import json
import os
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Self

import numpy as np
import torch
import transformers
from PIL import Image

from embedder import images, pooling
from embedder.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from embedder.config import EmbedderConfig
from embedder.errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from embedder.inputs import EmbedInput, Options
from embedder.model import PackedModel
from embedder.packing import Sequence, pack, plan
from embedder.prompts import Renderer

MAX_PIXELS = 1024 * 1024  # default bound: quality saturates near 1,000 image tokens (Qwen3-VL-Embedding report)


@dataclass(frozen=True)
class Embedding:
    """One input's vector, float32 (D,) or (dimensions,), and what it took."""

    vector: np.ndarray
    tokens: int  # of the whole sequence, prompt included
    preprocess_ms: float  # of the whole call that it was part of
    forward_ms: float  # likewise
    batch_items: int  # inputs in that call


class Embedder:
    """Embeds texts and images with one checkpoint. Not for several threads at once: callers queue (Triton does)."""

    def __init__(self, config: EmbedderConfig, checkpoint: Checkpoint, model: PackedModel, renderer: Renderer) -> None:
        self.config, self.checkpoint, self.model, self.renderer = config, checkpoint, model, renderer
        self._patch = model.model.config.vision_config.patch_size
        self._context = model.model.config.text_config.max_position_embeddings
        self._min_pixels, self._max_pixels = pixel_bounds(config, checkpoint)
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="preprocess")
        self.info = self._describe()

    @classmethod
    def load(cls, config: EmbedderConfig) -> Self:
        """Open, check and load the checkpoint.

        Raises:
            UnsupportedCheckpoint: it is not there, incomplete, or not a Qwen3-VL one.
        """
        checkpoint = open_checkpoint(config.checkpoint, config.revision)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
        dtype = ("bfloat16" if device.startswith("cuda") else "float32") if config.dtype == "auto" else config.dtype
        merge = checkpoint.config["vision_config"]["spatial_merge_size"]
        if merge != images.MERGE:
            raise UnsupportedCheckpoint(f"{checkpoint.name} merges {merge}×{merge} patches; Qwen3-VL merges 2×2")
        prompt = ("embedding" if checkpoint.is_embedding else "eol") if config.prompt == "auto" else config.prompt
        config = config.model_copy(update={"prompt": prompt, "dtype": dtype, "device": device})
        model = PackedModel.load(checkpoint, getattr(torch, dtype), device)
        return cls(config, checkpoint, model, Renderer(load_tokenizer(checkpoint), prompt, config.max_text_tokens))

    def embed(self, inputs: SequenceOf[EmbedInput]) -> list[Embedding | EmbedError]:
        """One vector or one error for each input, in order; an input never changes another's answer beyond rounding."""
        started = perf_counter()
        prepared = self._prepare_all(inputs)
        ready = {i: item for i, item in enumerate(prepared) if isinstance(item, Sequence)}
        prepared_at = perf_counter()
        rows = self._forward(list(ready.values()), [self._pooling(inputs[i]) for i in ready])
        timing = ((prepared_at - started) * 1e3, (perf_counter() - prepared_at) * 1e3, len(inputs))
        finished = {i: self._finish(row, inputs[i], len(ready[i]), timing) for i, row in zip(ready, rows, strict=True)}
        return [item if isinstance(item, EmbedError) else finished[i] for i, item in enumerate(prepared)]

    def _prepare_all(self, inputs: SequenceOf[EmbedInput]) -> list[Sequence | EmbedError]:
        if sum(item.image is not None for item in inputs) > 1:  # Pillow decodes and resizes without the GIL
            return list(self._threads.map(self._prepare, inputs))
        return [self._prepare(item) for item in inputs]

    def _prepare(self, item: EmbedInput) -> Sequence | EmbedError:
        try:
            return self.sequence(item)
        except EmbedError as error:
            return error
        except Exception as error:  # one bad input fails alone, whatever it did
            failure = InferenceFailed("this input could not be prepared; the fault is the server's")
            failure.__cause__ = error
            return failure

    def sequence(self, item: EmbedInput) -> Sequence:
        """Decode, resize, render: what the model will see of this input.

        Raises:
            InvalidInput: the input or its options cannot be embedded.
        """
        if item.options.dimensions and item.options.dimensions > self.model.dimension:
            raise InvalidInput(f"options.dimensions: at most {self.model.dimension}, the size of this model's vectors")
        instruction = self.config.instruction if item.options.instruction is None else item.options.instruction
        if item.image is not None and item.text is None:
            patches = self._patches(item.image, item.options)
            sequence = Sequence(self.renderer.image(patches.tokens, instruction), patches)
        elif item.text is not None and item.image is None:
            sequence = Sequence(self.renderer.text(item.text, instruction))
        else:
            raise InvalidInput("give either a text or an image")
        if len(sequence) > self._context:
            raise InvalidInput(f"the input has {len(sequence)} tokens; this checkpoint reads at most {self._context}")
        return sequence

    def _patches(self, data: bytes, options: Options) -> images.Patches:
        image = images.decode(data, self.config.max_image_bytes, self.config.max_image_pixels)
        upper = options.max_pixels or self._max_pixels
        lower = options.min_pixels or min(self._min_pixels, upper)
        if upper > self._max_pixels:
            raise InvalidInput(f"options.max_pixels: at most {self._max_pixels}, this server's own limit")
        if lower > upper:
            raise InvalidInput(f"options.min_pixels: {lower} is above max_pixels, {upper}")
        return images.to_patches(images.resize(image, self._patch, lower, upper), self._patch)

    def _pooling(self, item: EmbedInput) -> str:
        return item.options.pooling or self.config.pooling

    def _forward(self, sequences: list[Sequence], poolings: list[str]) -> list[np.ndarray | EmbedError]:
        """Pooled rows in the order of `sequences`, computed in batches of similar length under the token budget."""
        rows: list[np.ndarray | EmbedError] = [InferenceFailed("not computed")] * len(sequences)
        for batch in plan(sequences, self.config.max_batch_tokens):
            answers = self._forward_batch([sequences[i] for i in batch], [poolings[i] for i in batch])
            for i, answer in zip(batch, answers, strict=True):
                rows[i] = answer
        return rows

    def _forward_batch(self, sequences: list[Sequence], poolings: list[str]) -> list[np.ndarray | EmbedError]:
        try:
            with torch.inference_mode():
                packed = pack(sequences, self.model.device)
                return list(pooling.pool(self.model.hidden(packed), packed, poolings))
        except Exception as error:  # out of memory or our fault: halve, so that an item fails alone or not at all
            if len(sequences) == 1:
                failure = InferenceFailed("the model failed on this input; the fault is the server's")
                failure.__cause__ = error
                return [failure]
        half = len(sequences) // 2
        first = self._forward_batch(sequences[:half], poolings[:half])
        return first + self._forward_batch(sequences[half:], poolings[half:])

    def _finish(
        self, row: np.ndarray | EmbedError, item: EmbedInput, tokens: int, timing: tuple[float, float, int]
    ) -> Embedding | EmbedError:
        if isinstance(row, EmbedError):
            return row
        normalize = self.config.normalize if item.options.normalize is None else item.options.normalize
        try:
            return Embedding(pooling.finish(row, item.options.dimensions, normalize), tokens, *timing)
        except EmbedError as error:
            return error

    def _describe(self) -> dict:
        """What makes the vectors: for `/info`, and (its `id`) for caches, which changes whenever a vector may."""
        config = self.config
        info = {
            "checkpoint": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "model_type": self.checkpoint.model_type,
            "dimension": self.model.dimension,
            "recipe": {
                "prompt": config.prompt,
                "pooling": config.pooling,
                "layer": "last, after the final norm",
                "normalize": config.normalize,
                "instruction": config.instruction,
                "min_pixels": self._min_pixels,
                "max_pixels": self._max_pixels,
            },
            "dtype": config.dtype,
            "device": str(self.model.device),
            "attention": self.model.attention,
            "limits": config.model_dump(include={"max_text_tokens", "max_image_bytes", "max_image_pixels"}),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "pillow": Image.__version__,
            },
        }
        identity = json.dumps(info | {"weights": self.checkpoint.fingerprint}, sort_keys=True)
        return {"id": hashlib.sha256(identity.encode()).hexdigest()[:16], **info}


def pixel_bounds(config: EmbedderConfig, checkpoint: Checkpoint) -> tuple[int, int]:
    """(smallest, largest) area that images are brought to: the settings', else the checkpoint's, at most 1024×1024.

    Raises:
        UnsupportedCheckpoint: the bounds contradict each other.
    """
    smallest, largest = checkpoint.pixel_bounds
    upper = config.max_pixels or min(largest, MAX_PIXELS)
    lower = config.min_pixels or min(smallest, upper)
    if lower > upper:
        raise UnsupportedCheckpoint(f"min_pixels {lower} is above max_pixels {upper}; set EMBED_MAX_PIXELS too")
    return lower, upper
