"""One input, made ready for the model: options resolved, image decoded and cut, text rendered. Knows no tensors.

Nothing here waits for a device or changes anything shared, so any number of threads may prepare at once.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from time import perf_counter

from ..checkpoint import Checkpoint
from ..config import EmbedderConfig
from ..errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from ..forward.packing import Sequence
from ..inputs import EmbedInput, Options
from ..published import SERIES_PIXELS, Published
from . import images
from .calibration import Calibration
from .recipes import Recipe, Sizes
from .renderer import Renderer

EOS = "<|endoftext|>"  # the token that Qwen3-VL-Embedding's report appends and pools
MAX_PIXELS = 1024 * 1024  # default bound: quality saturates near 1,000 image tokens (Qwen3-VL-Embedding report)


@dataclass(frozen=True)
class Prepared:
    """One input, ready for the model."""

    sequence: Sequence
    recipe: Recipe
    render: bool
    took_ms: float


class Preparer:
    """Prepares inputs for one checkpoint and one server's settings."""

    def __init__(
        self, config: EmbedderConfig, checkpoint: Checkpoint, published: Published, renderer: Renderer
    ) -> None:
        self.config, self.checkpoint, self.published, self.renderer = config, checkpoint, published, renderer
        self.calibration = Calibration.load(config.calibration) if config.calibration else None
        self.recipe = lru_cache(maxsize=1024)(self._resolve)
        self._patch = checkpoint.config.vision_config.patch_size
        self._context = checkpoint.config.text_config.max_position_embeddings
        text = checkpoint.config.text_config
        self._sizes = Sizes(text.num_hidden_layers, text.hidden_size, *pixel_bounds(config, checkpoint, published))

    def check(self) -> None:
        """Draw the server's own prompt around a text and around an image.

        Raises:
            UnsupportedCheckpoint: the checkpoint's chat template cannot.
        """
        recipe = self.recipe(Options())
        try:
            for text, image_tokens in (("a", 0), (None, 1)):
                self.renderer.render(recipe.prompt, recipe.system, text, image_tokens)
        except InvalidInput as error:
            raise UnsupportedCheckpoint(f"{self.checkpoint.name}: {error}") from None

    def attempt(self, item: EmbedInput) -> Prepared | EmbedError:
        """Whatever an input does, it fails alone."""
        try:
            return self.prepare(item)
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
        if item.text is not None and item.image is not None and recipe.center:
            raise InvalidInput("options.center: the calibration knows texts and images, not both in one input")
        patches = None if item.image is None else self._patches(item.image, recipe)
        close = EOS if recipe.pooling == "eos" else None
        image_tokens = patches.tokens if patches else 0
        tokens = self.renderer.render(recipe.prompt, recipe.system, item.text, image_tokens, close)
        if len(tokens.ids) > self._context:
            raise InvalidInput(f"the input has {len(tokens.ids)} tokens; this checkpoint reads at most {self._context}")
        if recipe.whole:
            tokens = replace(tokens, content=((0, len(tokens.ids)),), prefix=0)
        took_ms = (perf_counter() - started) * 1e3
        return Prepared(Sequence(tokens, patches), recipe, bool(item.options.render), took_ms)

    def _resolve(self, options: Options) -> Recipe:
        recipe = Recipe.resolve(options, self.config, self._sizes, self.published)
        if recipe.center:
            if self.calibration is None:
                raise InvalidInput("options.center: this server has no calibration; set EMBED_CALIBRATION")
            self.calibration.check(recipe.forward, self.checkpoint.fingerprint)
        return recipe

    def _patches(self, data: bytes, recipe: Recipe) -> images.Patches:
        image = images.decode(data, self.config.max_image_bytes, self.config.max_image_pixels)
        return images.to_patches(images.resize(image, self._patch, recipe.min_pixels, recipe.max_pixels), self._patch)


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
        raise UnsupportedCheckpoint(f"min_pixels {lower} is above max_pixels {upper}; set EMBED_MAX_PIXELS too")
    return lower, upper
