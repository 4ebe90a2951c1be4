"""The work: inputs in, vectors out. Read `Embedder.embed_each`, `_start` and `_finish_pass`: a stage per line."""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from threading import Lock
from time import monotonic
from traceback import clear_frames
from typing import Any, Self

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from .checkpoint import Checkpoint, line, load_tokenizer, open_checkpoint
from .config import EmbedderConfig
from .errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from .forward import cgroup, float8
from .forward.buckets import Bucket
from .forward.budget import free_bytes, token_budget
from .forward.device import Arriving, Moment, stay, usable
from .forward.model import PackedModel
from .forward.packing import Packed, pack, plan
from .forward.pooling import finish, pool
from .inputs import EmbedInput
from .options import Layer, Options, said
from .parity import to_float8
from .prepare import images
from .prepare.preparer import Prepared, Preparer, Result
from .prepare.prompts import PROMPTS
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
    "decoded_pixels": "Pixels of large images that were decoded, and what long texts cost in pixels.",
    "halved_passes": "Passes that failed, for want of memory or by a fault, and were tried again in halves.",
    "failed_inputs": "Inputs on which the model failed even alone.",
    "recordings": "Passes that were recorded, to be replayed.",
    "replayed_passes": "Passes that were replayed.",
}
WORKERS = min(8, cgroup.cores())  # threads that prepare: each holds a decoded image, and a few feed a GPU

LEAST = 1024  # tokens, to which the budget shrinks when memory runs out

# Multiply-adds of a pass that one core of a CPU computes in some ten milliseconds. In a shorter one the cores would
# meet every few microseconds, and where a neighbour has one of them, the others wait for its turn to end: a name took
# 130 to 270 ms (docs/log.md, 2026-11-25).
SHORT = 300_000_000


@dataclass(frozen=True)
class Embedding(Result):
    """One input's vector, float32 (D,) or (dimensions,)."""

    vector: NDArray[np.float32]


logger = logging.getLogger(__name__)
Answer = Result | EmbedError  # an `Embedding`, or a `Rendering` or a `Description` for those who ask for one


class Embedder:
    """Embeds texts and images with one checkpoint.

    Any number of threads may call it; one forward pass runs at a time.
    """

    def __init__(self, checkpoint: Checkpoint, model: PackedModel, preparer: Preparer) -> None:
        self.checkpoint, self.model, self.preparer = checkpoint, model, preparer
        self.config, self.published, self.renderer = preparer.config, preparer.published, preparer.renderer
        config = self.config
        self.threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare")
        self._device = Lock()  # one pass at a time is launched, and on a CPU computed
        # More than the quota allows spend it waiting for each other, and then all of them are stopped.
        self._threads = min(torch.get_num_threads(), cgroup.cores())
        self._devices = model.devices
        self.batch_tokens = config.max_batch_tokens or token_budget(
            model.model.config, model.model.dtype.itemsize, min(map(free_bytes, self._devices)), model.token_seconds()
        )
        self.counts = dict.fromkeys(COUNTS, 0)
        self._unfinished, self._moved_at = set[Pass](), 0.0
        self.info = self._describe()

    @classmethod
    def load(cls, config: EmbedderConfig) -> Self:
        """Open, check and load the checkpoint.

        Raises:
            UnsupportedCheckpoint: it is not there, incomplete, not a Qwen3-VL one, or not what the settings ask for.
        """
        checkpoint = open_checkpoint(config.checkpoint, config.revision)
        before = checkpoint.state()
        device, dtype = usable(config, checkpoint.dtype)
        stay(device)
        merge = checkpoint.config.vision_config.spatial_merge_size
        if merge != images.MERGE:
            raise UnsupportedCheckpoint(f"{checkpoint.name} merges {merge}×{merge} patches; Qwen3-VL merges 2×2")
        if config.weights == "float8" and (why := float8.refusal(checkpoint.config)):
            raise UnsupportedCheckpoint(f"{checkpoint.name} {why}: leave EMBED_WEIGHTS unset")
        tokenizer = load_tokenizer(checkpoint)
        own = published(checkpoint, str(tokenizer.chat_template), config.prompt)
        config = config.model_copy(update={"dtype": dtype, "device": device, **said(config, own.options)})
        preparer = Preparer(config, checkpoint, own, Renderer(tokenizer, config.max_text_tokens))
        preparer.check()
        embedder = cls(checkpoint, PackedModel.load(checkpoint, getattr(torch, dtype), device, config.graphs), preparer)
        if checkpoint.state() != before:
            raise UnsupportedCheckpoint(
                f"{checkpoint.name} was changed while it was read: start again when it is whole"
            )
        if config.weights == "float8":
            to_float8(embedder)
        return embedder

    def embed(self, inputs: SequenceOf[EmbedInput | Prepared]) -> list[Embedding]:
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

        Computed in batches of similar length, of one layer each, within the token budget: prepare → pack → hidden →
        pool → finish. What is prepared or refused already goes on so.
        """
        many_images = sum(isinstance(item, EmbedInput) and item.image is not None for item in inputs) > 1
        prepare = self.threads.map if many_images else map  # Pillow decodes and resizes without the GIL
        return self.start(list(prepare(self.preparer.attempt, inputs))).answers()

    def start(self, prepared: SequenceOf[Prepared | Answer]) -> "UnderWay":
        """Launch the passes of what is prepared; on a CPU they are computed by then. Nothing waits for a GPU."""
        together: dict[tuple[Layer, Bucket | None], dict[int, Sequence]] = defaultdict(dict)
        for i, item in enumerate(prepared):
            if isinstance(item, Prepared):  # in company, a low layer would go through them all
                layer = item.recipe.layer
                together[layer, self.model.largest(layer, item.sequence)][i] = item.sequence
        passes = [
            (batch, self._start([item for i in batch if isinstance(item := prepared[i], Prepared)]))
            for (_, bucket), sequences in together.items()
            for batch in plan(sequences, *(bucket.room if bucket else (self.batch_tokens, None)))
        ]
        return UnderWay(prepared, passes)

    def _start(self, items: list[Prepared]) -> "Pass":
        """One pass: pack → hidden → pool, then its rows are sent to the CPU."""
        launched = Pass(self, items)
        self._unfinished.add(launched)
        self._moved_at = monotonic()
        try:
            with self._device:
                launched.started = {device: Moment(device) for device in self._devices}
                sequences, pooled = [item.sequence for item in items], [item.pooled for item in items]
                packed = pack(sequences, self.model.device, pooled=pooled)
                if self.model.device.type == "cpu":
                    torch.set_num_threads(1 if self.model.work(packed) < SHORT else self._threads)
                recipes = [item.recipe for item in items]
                states = self.model.hidden(packed, {recipe.layer for recipe in recipes}, packed.rows)
                launched.rows = Arriving(pool(states, packed.counts, recipes, self.model.final_norm))
            self._count(items, packed)
        except Exception as error:  # out of memory, or our fault
            launched.error = error
        return launched

    def _finish_pass(self, launched: "Pass") -> list[Answer]:
        """Its rows → finish, as soon as they are there; two passes over its halves where it failed."""
        try:
            if launched.error:
                raise launched.error
            assert launched.rows is not None
            vectors = launched.rows.wait()
            took_ms = launched.started[launched.rows.device].ms_until(launched.rows.arrived)
        except Exception as error:
            return self._in_halves(launched.items, error)
        finally:
            self._unfinished.discard(launched)
            self._moved_at = monotonic()
        timed = (took_ms, len(launched.items))
        return [self._finish(vector, item, *timed) for vector, item in zip(vectors, launched.items, strict=True)]

    def warm_up(self) -> None:
        """What is slow only once is done now, and `info` says what inputs take: see `warmup.warm_up`.

        Raises:
            UnsupportedCheckpoint: the model fails on a text or an image of our own, or the settings' limits refuse it.
            CaptureFailed: this process is of no use any more; see `replay.py`.
        """
        try:
            took = warm_up(self)
        except InferenceFailed as failure:
            cause = line(failure.__cause__ or failure)
            raise UnsupportedCheckpoint(
                f"{self.checkpoint.name} was loaded, and fails on its first inputs: {cause}"
            ) from failure
        except InvalidInput as refusal:
            raise UnsupportedCheckpoint(f"the settings' limits refuse our own first inputs: {refusal}") from None
        self.info["warm_up"] = {name: round(seconds, 6) for name, seconds in took.items()}

    @property
    def stuck_seconds(self) -> float:
        """Since a pass began or ended, while there is one that has not ended; else 0."""
        return monotonic() - self._moved_at if self._unfinished else 0.0

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

    def _in_halves(self, items: list[Prepared], error: Exception) -> list[Answer]:
        """After a pass that failed, so that an input fails alone or not at all.

        Raises:
            RuntimeError: the GPU is lost to this process.
        """
        failure = InferenceFailed("the model failed on this input; the fault is the server's")
        failure.__cause__ = error
        clear_frames(error.__traceback__)  # which hold the pass's tensors
        self.model.recover()
        if len(items) == 1:
            self.counts["failed_inputs"] += 1
            return [failure]
        self.counts["halved_passes"] += 1
        half = len(items) // 2
        tokens = max(LEAST, sum(len(item.sequence) for item in items) // 2)
        if isinstance(error, torch.OutOfMemoryError) and tokens < self.batch_tokens:  # it would happen again and again
            logger.warning("out of memory: passes have at most %d tokens from now on", tokens)
            self.batch_tokens = self.info["batch_tokens"] = tokens
        return [answer for part in (items[:half], items[half:]) for answer in self._finish_pass(self._start(part))]

    def _count(self, prepared: list[Prepared], packed: Packed) -> None:
        self.counts["passes"] += 1
        self.counts["inputs"] += len(prepared)
        self.counts["tokens"] += sum(len(item.sequence) for item in prepared)
        self.counts["patches"] += sum(packed.images.bounds.lengths) if packed.images else 0
        self.counts["reused_tokens"] += sum(map(len, packed.prefixes))
        if self.model.replay:
            self.counts["recordings"], self.counts["replayed_passes"] = self.model.replay.counts

    def _finish(self, row: NDArray[np.float32], prepared: Prepared, forward_ms: float, items: int) -> Answer:
        recipe, sequence, calibration = prepared.recipe, prepared.sequence, self.preparer.calibration
        try:
            if recipe.center and calibration is not None:
                row = calibration.apply(row, "text" if sequence.patches is None else "image")
            vector = finish(row, recipe)
        except EmbedError as error:
            return error
        return Embedding(recipe, len(sequence), prepared.preprocess_ms, prepared.warnings, forward_ms, items, vector)

    def _describe(self) -> dict[str, Any]:
        """What makes the vectors, for `/info`, and an `id` of it for caches, indexes and jobs.

        Models of one id give the same vector, but for rounding, for the same input and options. What changes no vector
        is not in it: limits, the device, its kernels, where the checkpoint lies. Nor are versions of libraries, whose
        vectors the tests compare: `release`, in the recipe, tells of those that became others.
        """
        config, prompts, calibration = self.config, self.published.prompts, self.preparer.calibration
        recipe = self.preparer.recipe(Options()).describe()
        decisive = {
            "checkpoint": self.checkpoint.fingerprint,
            "recipe": recipe,  # of a request that says nothing
            "prompts": {name: asdict(prompt) for name, prompt in prompts.items() if name not in PROMPTS},
            "calibration": calibration and calibration.about["hash"],
            "dtype": config.dtype,
            "weights": "float8_e4m3fn" if config.weights == "float8" else config.dtype,
        }
        return {
            "id": hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16],
            "checkpoint": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "content": self.checkpoint.fingerprint[:16],
            "model_type": self.checkpoint.model_type,
            "dimension": self.model.dimension,
            "layers": self.model.layers,
            "prompt": config.prompt,
            "prompts": list(prompts),
            "own_prompts": [name for name in prompts if name not in {*PROMPTS, OWN}],
            "recipe": recipe,
            "calibration": calibration and calibration.about,
            "dtype": decisive["dtype"],
            "weights": decisive["weights"],
            "device": str(self.model.device),
            "attention": self.model.attention,
            "fused": self.model.operations.fused,
            "limits": config.model_dump(include={"max_text_tokens", "max_image_bytes", "max_image_pixels"}),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "pillow": Image.__version__,
            },
            "batch_tokens": self.batch_tokens,
            "warnings": self.published.warnings,
        }


@dataclass(eq=False)
class Pass:
    """One that is launched; `error` says why not."""

    embedder: Embedder
    items: list[Prepared]
    started: dict[torch.device, Moment] = field(default_factory=dict)
    rows: Arriving | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class UnderWay:
    """Passes that are launched over what was prepared, and the answers of what was not."""

    prepared: SequenceOf[Prepared | Answer]
    passes: list[tuple[list[int], Pass]]

    @property
    def tokens(self) -> int:
        return sum(len(item.sequence) for _, launched in self.passes for item in launched.items)

    def there(self) -> bool:
        """Whether `answers` would not wait. Raises RuntimeError: the GPU is lost to this process."""
        return all(launched.rows is None or launched.rows.there() for _, launched in self.passes)

    def answers(self) -> list[Answer]:
        """One for each input, in order. Raises RuntimeError: the GPU is lost to this process."""
        found = {i: item for i, item in enumerate(self.prepared) if not isinstance(item, Prepared)}
        for batch, launched in self.passes:
            found |= zip(batch, launched.embedder._finish_pass(launched), strict=True)
        return [found[i] for i in range(len(self.prepared))]
