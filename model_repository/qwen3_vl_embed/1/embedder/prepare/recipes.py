"""A recipe: everything that decides what vector an input gets, with nothing left to defaults."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from ..options import ImageOptions, Layer, Options, Sizes, resolve
from ..poolings import PoolingName
from ..published import Published
from .prompts import Prompt, prompt

RELEASE = 1  # a change that makes other vectors by the same recipe raises it, and says so in CHANGELOG.md


@dataclass(frozen=True)
class Recipe:
    """One resolved recipe; equal recipes make equal vectors of equal inputs."""

    prompt: Prompt
    system: str | None
    pooling: PoolingName
    whole: bool  # `mean` takes every token of the sequence, not the content's own
    layer: Layer
    final_norm: bool
    center: bool
    normalize: bool
    dimensions: int | None
    min_pixels: int
    max_pixels: int
    image_at: int  # of a text with an image: characters before it, or from the end (-1: after the last)
    release: int = RELEASE  # so that what outlives an upgrade (indexes, jobs, calibrations) is not mixed with others

    @classmethod
    def resolve(cls, options: Options, config: ImageOptions, sizes: Sizes, published: Published) -> Self:
        """A request's options over the server's defaults, which are its settings over the checkpoint's own.

        Raises:
            InvalidInput: an option is impossible for this checkpoint or this server.
        """
        chosen = resolve(options, config, sizes)
        template, instruction = prompt(chosen.pop("prompt"), published.prompts), chosen.pop("instruction")
        return cls(
            prompt=template,
            system=template.system if instruction is None else template.instructed(instruction) or None,
            whole=published.whole and chosen["pooling"] == "mean",
            image_at=options.image_at or 0,
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
        after = ("center", "normalize", "dimensions", "image_at")  # a text or an image alone has no place for it
        return {name: value for name, value in asdict(self).items() if name not in after}
