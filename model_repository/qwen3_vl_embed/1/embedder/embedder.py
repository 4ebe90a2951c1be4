"""The work: inputs in, vectors out, one stage per line. Knows Qwen3-VL and torch through its neighbours; not Triton."""

import hashlib
import json
import os
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Self

import numpy as np
import torch
import transformers
from PIL import Image

from embedder import images, pooling
from embedder.calibration import Calibration
from embedder.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from embedder.config import EmbedderConfig
from embedder.errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from embedder.inputs import EmbedInput, Options
from embedder.model import PackedModel
from embedder.packing import Sequence, pack, plan
from embedder.prompts import PROMPTS
from embedder.recipes import Recipe, Sizes
from embedder.renderer import Renderer

EOS = "<|endoftext|>"  # the token that Qwen3-VL-Embedding's report appends and pools
MAX_PIXELS = 1024 * 1024  # default bound: quality saturates near 1,000 image tokens (Qwen3-VL-Embedding report)


@dataclass(frozen=True)
class Embedding:
    """One input's vector, float32 (D,) or (dimensions,), and what it took."""

    vector: np.ndarray
    tokens: int  # of the whole sequence, prompt included
    preprocess_ms: float  # of the whole call that it was part of
    forward_ms: float  # likewise
    batch_items: int  # inputs in that call
    recipe: Recipe
    warnings: tuple[str, ...] = ()
    render: dict | None = None  # with the option `render`


@dataclass(frozen=True)
class Prepared:
    """One input, ready for the model."""

    sequence: Sequence
    recipe: Recipe
    render: bool = False


class Embedder:
    """Embeds texts and images with one checkpoint. Not for several threads at once: callers queue (Triton does)."""

    def __init__(self, config: EmbedderConfig, checkpoint: Checkpoint, model: PackedModel, renderer: Renderer) -> None:
        self.config, self.checkpoint, self.model, self.renderer = config, checkpoint, model, renderer
        self._patch = model.model.config.vision_config.patch_size
        self._context = model.model.config.text_config.max_position_embeddings
        self._sizes = Sizes(model.layers, model.dimension, *pixel_bounds(config, checkpoint))
        self.calibration = Calibration.load(config.calibration) if config.calibration else None
        self._recipe = lru_cache(maxsize=1024)(self._resolve)
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
        return cls(config, checkpoint, model, Renderer(load_tokenizer(checkpoint), config.max_text_tokens))

    def embed(self, inputs: SequenceOf[EmbedInput]) -> list[Embedding | EmbedError]:
        """One vector or one error for each input, in order; an input never changes another's answer beyond rounding."""
        started = perf_counter()
        prepared = self._prepare_all(inputs)
        ready = {i: item for i, item in enumerate(prepared) if isinstance(item, Prepared)}
        prepared_at = perf_counter()
        rows = self._forward(list(ready.values()))
        timing = ((prepared_at - started) * 1e3, (perf_counter() - prepared_at) * 1e3, len(inputs))
        finished = {i: self._finish(row, ready[i], timing) for i, row in zip(ready, rows, strict=True)}
        return [item if isinstance(item, EmbedError) else finished[i] for i, item in enumerate(prepared)]

    def _prepare_all(self, inputs: SequenceOf[EmbedInput]) -> list[Prepared | EmbedError]:
        if sum(item.image is not None for item in inputs) > 1:  # Pillow decodes and resizes without the GIL
            return list(self._threads.map(self._prepare, inputs))
        return [self._prepare(item) for item in inputs]

    def _prepare(self, item: EmbedInput) -> Prepared | EmbedError:
        try:
            return self.prepare(item)
        except EmbedError as error:
            return error
        except Exception as error:  # one bad input fails alone, whatever it did
            failure = InferenceFailed("this input could not be prepared; the fault is the server's")
            failure.__cause__ = error
            return failure

    def prepare(self, item: EmbedInput) -> Prepared:
        """Resolve the options, decode, resize, render: what the model will see of this input.

        Raises:
            InvalidInput: the input or its options cannot be embedded.
        """
        recipe = self._recipe(item.options)
        if item.text is None and item.image is None:
            raise InvalidInput("give a text, an image, or both")
        if item.text is not None and item.image is not None and recipe.center:
            raise InvalidInput("options.center: the calibration knows texts and images, not both in one input")
        patches = None if item.image is None else self._patches(item.image, recipe)
        close = EOS if recipe.pooling == "eos" else None
        image_tokens = patches.tokens if patches else 0
        tokens = self.renderer.render(recipe.prompt, recipe.system, item.text, image_tokens, close)
        if len(tokens.ids) > self._context:
            raise InvalidInput(f"the input has {len(tokens.ids)} tokens; this checkpoint reads at most {self._context}")
        return Prepared(Sequence(tokens, patches), recipe, bool(item.options.render))

    def _resolve(self, options: Options) -> Recipe:
        recipe = Recipe.resolve(options, self.config, self._sizes)
        if recipe.center:
            if self.calibration is None:
                raise InvalidInput("options.center: this server has no calibration; set EMBED_CALIBRATION")
            self.calibration.check(recipe.forward, self.checkpoint.fingerprint)
        return recipe

    def _patches(self, data: bytes, recipe: Recipe) -> images.Patches:
        image = images.decode(data, self.config.max_image_bytes, self.config.max_image_pixels)
        return images.to_patches(images.resize(image, self._patch, recipe.min_pixels, recipe.max_pixels), self._patch)

    def _forward(self, prepared: list[Prepared]) -> list[np.ndarray | EmbedError]:
        """Pooled rows in the order of `prepared`, computed in batches of similar length under the token budget."""
        rows: list[np.ndarray | EmbedError] = [InferenceFailed("not computed")] * len(prepared)
        for batch in plan([item.sequence for item in prepared], self.config.max_batch_tokens):
            for i, answer in zip(batch, self._forward_batch([prepared[i] for i in batch]), strict=True):
                rows[i] = answer
        return rows

    def _forward_batch(self, prepared: list[Prepared]) -> list[np.ndarray | EmbedError]:
        try:
            with torch.inference_mode():
                packed = pack([item.sequence for item in prepared], self.model.device)
                return list(pooling.pool(self.model, packed, [item.recipe for item in prepared]))
        except Exception as error:  # out of memory or our fault: halve, so that an item fails alone or not at all
            if len(prepared) == 1:
                failure = InferenceFailed("the model failed on this input; the fault is the server's")
                failure.__cause__ = error
                return [failure]
        half = len(prepared) // 2
        return self._forward_batch(prepared[:half]) + self._forward_batch(prepared[half:])

    def _finish(
        self, row: np.ndarray | EmbedError, prepared: Prepared, timing: tuple[float, float, int]
    ) -> Embedding | EmbedError:
        if isinstance(row, EmbedError):
            return row
        try:
            if prepared.recipe.center and self.calibration is not None:
                row = self.calibration.apply(row, "text" if prepared.sequence.patches is None else "image")
            vector = pooling.finish(row, prepared.recipe)
        except EmbedError as error:
            return error
        render = self._rendered(prepared) if prepared.render else None
        warnings = self._warnings(prepared.recipe)
        return Embedding(vector, len(prepared.sequence), *timing, prepared.recipe, warnings, render)

    def _warnings(self, recipe: Recipe) -> tuple[str, ...]:
        if recipe.dimensions and not self.checkpoint.is_embedding:
            return (f"dimensions: this checkpoint was not trained for vectors cut to {recipe.dimensions} numbers",)
        return ()

    def _rendered(self, prepared: Prepared) -> dict:
        """What ends a "my vector differs": the exact sequence, and the tokens that are pooled."""
        sequence = prepared.sequence
        pooled = sequence.tokens.content if prepared.recipe.pooling == "mean" else ((len(sequence) - 1, len(sequence)),)
        return {
            "prompt": self.renderer.decode(sequence.tokens.ids),
            "ids": sequence.tokens.ids.tolist(),
            "positions": sequence.positions.tolist(),
            "grid": [1, *sequence.patches.grid] if sequence.patches else None,
            "content": sequence.tokens.content,
            "pooled": pooled,
        }

    def _describe(self) -> dict:
        """What makes the vectors: for `/info`, and (its `id`) for caches, which changes whenever a vector may."""
        config = self.config
        info = {
            "checkpoint": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "model_type": self.checkpoint.model_type,
            "dimension": self.model.dimension,
            "layers": self.model.layers,
            "prompt": config.prompt,
            "prompts": list(PROMPTS),
            "recipe": self._recipe(Options()).describe(),
            "calibration": self.calibration and self.calibration.about,
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
