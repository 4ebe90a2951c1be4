"""The options, each written once: its rule, its default, its errors and what it is.

All else is made of this table. The settings (`config.py`) inherit it, and `recipes.py` resolves a request by it. `make
options` writes what the adapter validates and publishes, what client and command line take, and the tables of docs/.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InvalidInput
from .poolings import POOLINGS, PoolingName
from .prepare.prompts import PROMPTS

MAX_OPTIONS_BYTES = 2**14  # a prompt and an instruction are some sentences; a thousand different ones are remembered
Layer = int | Literal["attn"]  # 0 (the input embeddings) … L (the last layer), or the state before the last MLP


@dataclass(frozen=True)
class Default:
    """What holds where neither a request nor a setting says it; `note` where the checkpoint has a word in it."""

    value: Any = None
    note: str = ""

    @property
    def told(self) -> str:
        """For people, in Markdown."""
        return self.note or ("unset" if self.value is None else f"`{json.dumps(self.value)}`")


class TextOptions(BaseModel):
    """The options that texts and images share; None is the server's default."""

    prompt: Annotated[str | None, Default("eol", "the checkpoint's own, else `eol`")] = Field(
        None,
        description=f"A preset ({', '.join(f'`{name}`' for name in PROMPTS)}, or one of the checkpoint's own: `/info` "
        "lists them), or a template that holds `{content}` once, or twice for texts alone.",
    )
    pooling: Annotated[PoolingName | None, Default("last", "the checkpoint's own, else `last`")] = Field(
        None, description="; ".join(f"`{name}`: {each.description}" for name, each in POOLINGS.items()) + "."
    )
    layer: Annotated[Layer | None, Default(-1)] = Field(
        None, description="0 (the input) … L (the last), or from the end (-1); `attn`: before the last MLP."
    )
    final_norm: Annotated[bool | None, Default(True)] = Field(
        None, description="Apply the model's final norm, whatever the layer."
    )
    center: Annotated[bool | None, Default(False)] = Field(
        None,
        description="Apply the server's calibration: it takes away what all vectors of a modality share, or moves "
        "texts to where images are.",
    )
    normalize: Annotated[bool | None, Default(True, "the checkpoint's own, else `true`")] = Field(
        None, description="Scale the vector to length 1."
    )
    dimensions: Annotated[int | None, Default(note="all")] = Field(
        None,
        ge=8,
        description="Keep the first so many numbers, then normalise. Instruct checkpoints were not trained for it.",
    )
    instruction: Annotated[str | None, Default(note="the prompt's own, if it has one")] = Field(
        None, description="What the vector is for, such as `Name the colour.`: the system turn of the prompt."
    )


class ImageOptions(TextOptions):
    """The options of images, which are all that make a recipe."""

    min_pixels: Annotated[int | None, Default(note="the checkpoint's own")] = Field(
        None, ge=1024, description="Enlarge smaller images to this area."
    )
    max_pixels: Annotated[
        int | None, Default(note="the checkpoint's own, but at most 1024×1024, or 1,843,200 for Qwen3-VL-Embedding")
    ] = Field(None, ge=4096, description="Reduce larger images to this area; a request may not pass the server's own.")


class Options(ImageOptions):
    """What a request says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image_at: int | None = Field(
        None, description="Where in its text an image stands: characters before it (default 0), or -1: after the text."
    )
    render: bool | None = None  # the sequence as JSON, in place of a vector
    describe: bool | None = None  # the model as JSON, in place of a vector; the input counts for nothing

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, data: bytes) -> Self:
        """Read a JSON object; empty bytes are no options.

        Raises:
            InvalidInput: too long, not JSON, not an object, an unknown key or a value that is not allowed.
        """
        if len(data) > MAX_OPTIONS_BYTES:
            raise InvalidInput(f"options: {len(data)} bytes; at most {MAX_OPTIONS_BYTES} are allowed")
        try:
            return cls.model_validate_json(data) if data else cls()
        except ValidationError as error:
            first = error.errors()[0]
        key = ".".join(map(str, first["loc"][:1]))
        if first["type"] == "extra_forbidden":
            raise InvalidInput(f"options: {key!r} is not an option; the options are {', '.join(cls.model_fields)}")
        raise InvalidInput(f"options{'.' + key if key else ''}: {first['msg']}")


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint and a server's settings allow."""

    layers: int  # L
    dimension: int  # D
    min_pixels: int  # the server's own bounds of an image's area
    max_pixels: int


def default(name: str) -> Default:
    """An option's."""
    (found,) = (each for each in ImageOptions.model_fields[name].metadata if isinstance(each, Default))
    return found


def said(*layers: ImageOptions) -> dict[str, Any]:
    """Each option, as the first of the layers has it that says it; else its default."""
    found = {name: [value for layer in layers if (value := getattr(layer, name)) is not None] for name in OPTIONS}
    return {name: values[0] if values else default(name).value for name, values in found.items()}


def resolve(options: ImageOptions, settings: ImageOptions, sizes: Sizes) -> dict[str, Any]:
    """A request's options over the settings over the defaults, within what is possible here.

    Raises:
        InvalidInput: an option is impossible for this checkpoint or this server.
    """
    chosen = said(options, settings)
    if (layer := chosen["layer"]) != "attn":
        last = sizes.layers
        if not -last - 1 <= layer <= last:
            raise InvalidInput(f"options.layer: 0 (the input) … {last} (the last), or -1 … {-last - 1}, or attn")
        chosen["layer"] = layer % (last + 1)
    if (chosen["dimensions"] or 0) > sizes.dimension:
        raise InvalidInput(f"options.dimensions: at most {sizes.dimension}, the size of this model's vectors")
    if chosen["dimensions"] == sizes.dimension:  # nothing is cut
        chosen["dimensions"] = None
    high = options.max_pixels or sizes.max_pixels
    low = options.min_pixels or min(sizes.min_pixels, high)
    if high > sizes.max_pixels:
        raise InvalidInput(f"options.max_pixels: at most {sizes.max_pixels}, this server's own limit")
    if low > high:
        raise InvalidInput(f"options.min_pixels: {low} is above max_pixels, {high}")
    return chosen | {"min_pixels": low, "max_pixels": high}


OPTIONS = tuple(ImageOptions.model_fields)
