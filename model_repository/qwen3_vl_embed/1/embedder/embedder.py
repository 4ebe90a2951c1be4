"""The work: inputs in, vectors out. Read `Embedder.embed_each`: one stage per line."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from traceback import clear_frames
from typing import Any, Self

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from .checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from .config import EmbedderConfig
from .errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from .forward.budget import free_bytes, token_budget
from .forward.device import to_device
from .forward.model import PackedModel
from .forward.packing import Packed, pack, plan
from .forward.pooling import finish, pool
from .inputs import EmbedInput
from .options import Layer, Options, said
from .prepare import images
from .prepare.preparer import Description, Prepared, Preparer, Rendering, Warnings
from .prepare.prompts import PROMPTS
from .prepare.recipes import Recipe
from .prepare.renderer import Renderer
from .prepare.sequence import Sequence
from .published import OWN, published
from .warmup import warm_up

COUNTS = {
    "passes": "Forward passes.",
    "inputs": "Inputs that went through them.",
    "tokens": "Tokens of their sequences, prompts included.",
    "patches": "Patches of their images.",
    "reused_tokens": "Tokens whose keys and values came from the prefix cache.",
    "decoded_pixels": "Pixels of large images that were decoded.",
    "halved_passes": "Passes that failed, for want of memory or by a fault, and were tried again in halves.",
    "failed_inputs": "Inputs on which the model failed even alone.",
}
WORKERS = min(8, os.cpu_count() or 1)  # threads that prepare: each holds a decoded image, and a few feed a GPU

# Multiply-adds of a pass that one core of a CPU computes in some ten milliseconds. In a shorter one the cores would
# meet every few microseconds, and where a neighbour has one of them, the others wait for its turn to end: a name took
# 130 to 270 ms (docs/log.md, 2026-11-25).
SHORT = 300_000_000


@dataclass(frozen=True)
class Embedding:
    """One input's vector, float32 (D,) or (dimensions,), and what it took."""

    vector: NDArray[np.float32]
    tokens: int  # of the whole sequence, prompt included
    preprocess_ms: float  # of this input
    forward_ms: float  # of the forward pass that it was part of
    batch_items: int  # inputs in that pass
    recipe: Recipe
    warnings: Warnings = Warnings.NONE


Answer = Embedding | Rendering | Description | EmbedError  # the second and third are for those who ask for them


class Embedder:
    """Embeds texts and images with one checkpoint.

    Any number of threads may call it; one forward pass runs at a time.
    """

    def __init__(self, checkpoint: Checkpoint, model: PackedModel, preparer: Preparer) -> None:
        self.checkpoint, self.model, self.preparer = checkpoint, model, preparer
        self.config, self.published, self.renderer = preparer.config, preparer.published, preparer.renderer
        config = self.config
        self.threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare")
        self._device = Lock()  # one pass at a time, until its vectors are on the CPU
        self._threads = torch.get_num_threads()
        self.batch_tokens = config.max_batch_tokens or token_budget(
            model.model.config, model.model.dtype.itemsize, min(map(free_bytes, model.devices))
        )
        self.counts = dict.fromkeys(COUNTS, 0)
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
        merge = checkpoint.config.vision_config.spatial_merge_size
        if merge != images.MERGE:
            raise UnsupportedCheckpoint(f"{checkpoint.name} merges {merge}×{merge} patches; Qwen3-VL merges 2×2")
        tokenizer = load_tokenizer(checkpoint)
        own = published(checkpoint, str(tokenizer.chat_template), config.prompt)
        config = config.model_copy(update={"dtype": dtype, "device": device, **said(config, own.options)})
        preparer = Preparer(config, checkpoint, own, Renderer(tokenizer, config.max_text_tokens))
        preparer.check()
        return cls(checkpoint, PackedModel.load(checkpoint, getattr(torch, dtype), device), preparer)

    def embed(self, inputs: SequenceOf[EmbedInput]) -> list[Embedding]:
        """One vector for each input, in order.

        Raises:
            EmbedError: of the first input that has none; `embed_each` gives the others theirs.
        """
        embeddings = []
        for answer in self.embed_each(inputs):
            if isinstance(answer, EmbedError):
                raise answer
            if not isinstance(answer, Embedding):
                raise InvalidInput("options.render, options.describe: the answer to these is no vector")
            embeddings.append(answer)
        return embeddings

    def embed_each(self, inputs: SequenceOf[EmbedInput | Prepared | EmbedError]) -> list[Answer]:
        """One answer for each input, in order; an input never changes another's answer beyond rounding.

        Computed in batches of similar length, of one layer each, within the token budget. What is prepared or refused
        already goes on so.
        """
        many_images = sum(isinstance(item, EmbedInput) and item.image is not None for item in inputs) > 1
        prepare = self.threads.map if many_images else map  # Pillow decodes and resizes without the GIL
        prepared = dict(enumerate(prepare(self.preparer.attempt, inputs)))
        answers: dict[int, Answer] = {i: item for i, item in prepared.items() if not isinstance(item, Prepared)}
        ready = {i: item for i, item in prepared.items() if isinstance(item, Prepared)}

        def one_pass(batch: list[int]) -> list[Answer]:
            items = [ready[i] for i in batch]
            recipes = [item.recipe for item in items]
            started = perf_counter()
            packed = pack([item.sequence for item in items], self.model.device)
            if self.model.device.type == "cpu":
                torch.set_num_threads(1 if self.model.work(packed) < SHORT else self._threads)
            pooled = packed.indices([item.pooled for item in items])
            rows = to_device(np.concatenate(pooled), self.model.device)
            states = self.model.hidden(packed, {recipe.layer for recipe in recipes}, rows)
            vectors = pool(states, list(map(len, pooled)), recipes, self.model.final_norm)
            took_ms = (perf_counter() - started) * 1e3
            self._count(items, packed)
            return [
                self._finish(vector, item, took_ms, len(items)) for vector, item in zip(vectors, items, strict=True)
            ]

        layers: dict[Layer, dict[int, Sequence]] = defaultdict(dict)  # in company, a low one would go through them all
        for i, item in ready.items():
            layers[item.recipe.layer][i] = item.sequence
        for sequences in layers.values():
            for batch in plan(sequences, self.batch_tokens):
                with self._device:
                    answers |= zip(batch, self._or_in_halves(one_pass, batch), strict=True)
        return [answers[i] for i in range(len(inputs))]

    def warm_up(self) -> None:
        """What is slow only once is done now, and `info` says what inputs take: see `warmup.warm_up`."""
        self.info["warm_up"] = {name: round(seconds, 6) for name, seconds in warm_up(self).items()}

    @property
    def pipelined(self) -> bool:
        """Whether to prepare inputs while others are computed: as set, or where the two do not share a CPU."""
        return self.model.device.type == "cuda" if self.config.pipeline is None else self.config.pipeline

    def prepare(self, item: EmbedInput) -> Prepared:
        """What the model will see of this input.

        Raises:
            InvalidInput: the input or its options cannot be embedded.
        """
        return self.preparer.prepare(item)

    def _or_in_halves(self, one_pass: Callable[[list[int]], list[Answer]], batch: list[int]) -> list[Answer]:
        """One pass; two over its halves where it fails, so that an input fails alone or not at all."""
        try:
            return one_pass(batch)
        except Exception as error:  # out of memory, or our fault
            failure = InferenceFailed("the model failed on this input; the fault is the server's")
            failure.__cause__ = error
            clear_frames(error.__traceback__)  # which hold the pass's tensors
        self.model.recover()
        if len(batch) == 1:
            self.counts["failed_inputs"] += 1
            return [failure]
        self.counts["halved_passes"] += 1
        half = len(batch) // 2
        return self._or_in_halves(one_pass, batch[:half]) + self._or_in_halves(one_pass, batch[half:])

    def _count(self, prepared: list[Prepared], packed: Packed) -> None:
        self.counts["passes"] += 1
        self.counts["inputs"] += len(prepared)
        self.counts["tokens"] += sum(len(item.sequence) for item in prepared)
        self.counts["patches"] += sum(packed.images.bounds.lengths) if packed.images else 0
        self.counts["reused_tokens"] += sum(map(len, packed.prefixes))

    def _finish(self, row: NDArray[np.float32], prepared: Prepared, forward_ms: float, items: int) -> Answer:
        recipe, sequence, calibration = prepared.recipe, prepared.sequence, self.preparer.calibration
        try:
            if recipe.center and calibration is not None:
                row = calibration.apply(row, "text" if sequence.patches is None else "image")
            vector = finish(row, recipe)
        except EmbedError as error:
            return error
        timing = (prepared.preprocess_ms, forward_ms, items)
        return Embedding(vector, len(sequence), *timing, recipe, prepared.warnings)

    def _describe(self) -> dict[str, Any]:
        """What makes the vectors: for `/info`, and (its `id`) for caches, which changes whenever a vector may."""
        config = self.config
        info = {
            "checkpoint": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "model_type": self.checkpoint.model_type,
            "dimension": self.model.dimension,
            "layers": self.model.layers,
            "prompt": config.prompt,
            "prompts": list(self.published.prompts),
            "own_prompts": [name for name in self.published.prompts if name not in {*PROMPTS, OWN}],
            "recipe": self.preparer.recipe(Options()).describe(),
            "calibration": self.preparer.calibration and self.preparer.calibration.about,
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
        identifier = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return {"id": identifier, **info, "batch_tokens": self.batch_tokens, "warnings": self.published.warnings}
