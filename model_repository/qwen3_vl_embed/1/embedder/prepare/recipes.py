"""A recipe: everything that decides what vector an input gets, with nothing left to defaults. Knows no tensors."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self

from ..config import EmbedderConfig
from ..errors import InvalidInput
from ..inputs import Options
from ..published import Published
from .prompts import Prompt, prompt

Layer = int | Literal["attn"]  # 0 (the input embeddings) … L (the last layer), or the state before the last MLP


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint allows: recipes are resolved within it."""

    layers: int  # L
    dimension: int  # D
    min_pixels: int  # the server's own bounds of an image's area
    max_pixels: int


@dataclass(frozen=True)
class Recipe:
    """One resolved recipe; equal recipes make equal vectors of equal inputs."""

    prompt: Prompt
    system: str | None
    pooling: Literal["last", "mean", "eos"]
    whole: bool  # `mean` takes every token of the sequence, not the content's own
    layer: Layer
    final_norm: bool
    center: bool
    normalize: bool
    dimensions: int | None
    min_pixels: int
    max_pixels: int

    @classmethod
    def resolve(cls, options: Options, config: EmbedderConfig, sizes: Sizes, published: Published) -> Self:
        """A request's options over the server's defaults, which are its settings over the checkpoint's own.

        Raises:
            InvalidInput: an option is impossible for this checkpoint or this server.
        """
        template = prompt(options.prompt or config.prompt, published.prompts)
        instruction = config.instruction if options.instruction is None else options.instruction
        chosen = {name: given(getattr(options, name), getattr(config, name)) for name in CHOICES}
        low, high = _pixels(options, sizes)
        dimensions = options.dimensions or config.dimensions
        if dimensions and dimensions > sizes.dimension:
            raise InvalidInput(f"options.dimensions: at most {sizes.dimension}, the size of this model's vectors")
        return cls(
            prompt=template,
            system=template.system if instruction is None else template.instructed(instruction) or None,
            whole=published.whole and chosen["pooling"] == "mean",
            layer=_layer(given(options.layer, config.layer), sizes.layers),
            dimensions=dimensions,
            min_pixels=low,
            max_pixels=high,
            **chosen,
        )

    def describe(self) -> dict[str, Any]:
        """As JSON, with its id."""
        return {"id": self.id, **asdict(self)}

    @cached_property
    def id(self) -> str:
        """Twelve hex digits that change with anything in it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def forward(self) -> dict[str, Any]:
        """What of it decides the pooled state, which is what a calibration is fitted to."""
        after = ("center", "normalize", "dimensions")
        return {name: value for name, value in asdict(self).items() if name not in after}


CHOICES = ("pooling", "final_norm", "center", "normalize")


def given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _layer(layer: Layer, layers: int) -> Layer:
    if layer == "attn":
        return layer
    if not -layers - 1 <= layer <= layers:
        raise InvalidInput(f"options.layer: 0 (the input) … {layers} (the last), or -1 … {-layers - 1}, or attn")
    return layer % (layers + 1)


def _pixels(options: Options, sizes: Sizes) -> tuple[int, int]:
    high = options.max_pixels or sizes.max_pixels
    low = options.min_pixels or min(sizes.min_pixels, high)
    if high > sizes.max_pixels:
        raise InvalidInput(f"options.max_pixels: at most {sizes.max_pixels}, this server's own limit")
    if low > high:
        raise InvalidInput(f"options.min_pixels: {low} is above max_pixels, {high}")
    return low, high
