"""One input, made ready for the model: options resolved, image decoded and cut, text rendered.

Nothing here waits for a device, and nothing imports what computes. Any number of threads may prepare at once.
"""

import re
from dataclasses import dataclass, replace
from enum import IntFlag
from time import perf_counter
from typing import Any

from ..checkpoint import Checkpoint
from ..config import PREFIX, EmbedderConfig
from ..errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from ..inputs import EmbedInput
from ..options import Options, Sizes
from ..poolings import POOLINGS, Span
from ..published import SERIES_PIXELS, Published
from . import images
from .calibration import Calibration
from .recipes import Recipe
from .renderer import Renderer
from .sequence import Sequence

RECIPES = 1024  # that are remembered, by their options
MAX_PIXELS = 1024 * 1024  # default bound: quality saturates near 1,000 image tokens (Qwen3-VL-Embedding report)


class Warnings(IntFlag):
    """What is doubtful about a vector. The adapter has a sentence for each bit (`client/items.py`)."""

    NONE = 0
    UNTRAINED_DIMENSIONS = 1


@dataclass(frozen=True)
class Prepared:
    """One input, ready for the model."""

    sequence: Sequence
    recipe: Recipe
    pooled: tuple[Span, ...]  # the tokens of the sequence that make its vector
    preprocess_ms: float
    warnings: Warnings = Warnings.NONE


@dataclass(frozen=True)
class Result:
    """What every answer tells that is no error: by which recipe, and what it took."""

    recipe: Recipe
    tokens: int  # of the whole sequence, prompt included
    preprocess_ms: float  # of this input
    warnings: Warnings
    forward_ms: float  # of the forward pass that it was part of
    batch_items: int  # inputs in that pass


@dataclass(frozen=True)
class Rendering(Result):
    """What the model would see of an input: the answer to the option `render`. No forward pass runs: no vector."""

    sequence: dict[str, Any]  # as JSON: prompt, ids, positions, grid, content, pooled


class Description(Result):
    """The answer to the option `describe`: `Embedder.info` is meant. Nothing is prepared, no forward pass runs."""


class Preparer:
    """Prepares inputs for one checkpoint and one server's settings."""

    def __init__(
        self, config: EmbedderConfig, checkpoint: Checkpoint, published: Published, renderer: Renderer
    ) -> None:
        self.config, self.checkpoint, self.published, self.renderer = config, checkpoint, published, renderer
        self.calibration = Calibration.load(config.calibration) if config.calibration else None
        self._recipes: dict[Options, Recipe] = {}
        self._patch = checkpoint.config.vision_config.patch_size
        self._context = checkpoint.config.text_config.max_position_embeddings
        text = checkpoint.config.text_config
        self._sizes = Sizes(text.num_hidden_layers, text.hidden_size, *pixel_bounds(config, checkpoint, published))

    def check(self) -> None:
        """Draw the server's own prompt around a text and around an image.

        Raises:
            UnsupportedCheckpoint: the checkpoint's chat template cannot, or a setting asks for what it has not.
        """
        try:
            recipe = self.recipe(Options())
            for text, image_tokens in (("a", 0), (None, 1)):
                self.renderer.render(recipe.prompt, recipe.system, text, image_tokens)
        except InvalidInput as error:  # what is an option of a request is a setting here
            named = re.sub(r"^options\.(\w+)(?=: )", lambda option: PREFIX + option[1].upper(), str(error))
            raise UnsupportedCheckpoint(f"{self.checkpoint.name}: {named}") from None

    def recipe(self, options: Options) -> Recipe:
        """These options over the server's settings; the same object each time.

        Raises:
            InvalidInput: an option is impossible for this checkpoint or this server.
        """
        if (known := self._recipes.get(options)) is not None:
            return known
        recipe = Recipe.resolve(options, self.config, self._sizes, self.published)
        if recipe.center:
            if self.calibration is None:
                raise InvalidInput("options.center: this server has no calibration; set EMBED_CALIBRATION")
            self.calibration.check(recipe.forward, self.checkpoint.fingerprint)
        if len(self._recipes) >= RECIPES:
            self._recipes.clear()
        self._recipes[options] = recipe
        return recipe

    def attempt(self, item: EmbedInput | Prepared | EmbedError) -> Prepared | Result | EmbedError:
        """`prepare`, or what the options ask for in place of a vector. Whatever an input does, it fails alone.

        What is prepared or refused already is given back as it is.
        """
        if not isinstance(item, EmbedInput):
            return item
        try:
            if item.options.describe:
                return Description(self.recipe(item.options), 0, 0.0, Warnings.NONE, 0.0, 0)
            return self.render(item) if item.options.render else self.prepare(item)
        except EmbedError as error:
            return error
        except Exception as error:
            failure = InferenceFailed("this input could not be prepared; the fault is the server's")
            failure.__cause__ = error
            return failure

    def prepare(self, item: EmbedInput) -> Prepared:
        """What the model will see of this input.

        Raises:
            InvalidInput: the input or its options cannot be embedded.
        """
        started = perf_counter()
        recipe = self.recipe(item.options)
        if item.text is None and item.image is None:
            raise InvalidInput("give a text, an image, or both")
        both = item.text is not None and item.image is not None
        if both and recipe.center:
            raise InvalidInput("options.center: the calibration knows texts and images, not both in one input")
        if not both and recipe.image_at:
            raise InvalidInput("options.image_at: it is where an image stands in a text: send both, or leave it out")
        patches = None
        if item.image is not None:
            image = images.decode(item.image, self.config.max_image_bytes, self.config.max_image_pixels)
            image = images.resize(image, self._patch, recipe.min_pixels, recipe.max_pixels)
            patches = images.to_patches(image, self._patch)
        image_tokens = patches.tokens if patches else 0
        close = POOLINGS[recipe.pooling].append
        tokens = self.renderer.render(recipe.prompt, recipe.system, item.text, image_tokens, close, recipe.image_at)
        if len(tokens.ids) > self._context:
            raise InvalidInput(f"the input has {len(tokens.ids)} tokens; this checkpoint reads at most {self._context}")
        if recipe.whole:
            tokens = replace(tokens, content=((0, len(tokens.ids)),), prefix=0)
        cut = recipe.dimensions and not self.published.series
        warnings = Warnings.UNTRAINED_DIMENSIONS if cut else Warnings.NONE
        sequence = Sequence(tokens, patches)
        sequence.positions  # noqa: B018 - computed here, not in the thread that everybody's pass waits for
        took_ms = (perf_counter() - started) * 1e3
        return Prepared(sequence, recipe, sequence.pooled(recipe.pooling), took_ms, warnings)

    def render(self, item: EmbedInput) -> Rendering:
        """What ends a "my vector differs": the exact sequence, and the tokens that are pooled.

        Raises:
            InvalidInput: as `prepare`.
        """
        prepared = self.prepare(item)
        sequence = prepared.sequence
        description = {
            "prompt": self.renderer.decode(sequence.tokens.ids),
            "ids": sequence.tokens.ids.tolist(),
            "positions": sequence.positions.tolist(),
            "grid": [1, *sequence.patches.grid] if sequence.patches else None,
            "content": sequence.tokens.content,
            "pooled": prepared.pooled,
        }
        return Rendering(prepared.recipe, len(sequence), prepared.preprocess_ms, prepared.warnings, 0.0, 0, description)


def pixel_bounds(config: EmbedderConfig, checkpoint: Checkpoint, published: Published) -> tuple[int, int]:
    """(smallest, largest) area that images are brought to.

    The settings'; else those of Qwen3-VL-Embedding's code for that series; else the checkpoint's, at most 1024×1024.

    Raises:
        UnsupportedCheckpoint: the bounds contradict each other.
    """
    smallest, largest = SERIES_PIXELS if published.series else checkpoint.pixel_bounds
    upper = config.max_pixels or (largest if published.series else min(largest, MAX_PIXELS))
    lower = config.min_pixels or min(smallest, upper)
    if lower > upper:
        raise UnsupportedCheckpoint(f"EMBED_MIN_PIXELS {lower} is above max_pixels {upper}; set EMBED_MAX_PIXELS too")
    context = checkpoint.config.text_config.max_position_embeddings
    edge = checkpoint.config.vision_config.patch_size * images.MERGE
    if config.max_pixels and upper > (most := context * edge**2):  # or a request might enlarge images beyond all memory
        raise UnsupportedCheckpoint(
            f"EMBED_MAX_PIXELS: at most {most}; this checkpoint reads {context} tokens, one for {edge}×{edge} pixels"
        )
    return lower, upper
