"""One thing to embed and the options it may carry. Knows no model and no defaults: an unset option is None."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InvalidInput

MAX_OPTIONS_BYTES = 2**14  # a prompt and an instruction are some sentences; a thousand different ones are remembered


class Options(BaseModel):
    """Per-request choices; None means the server's default (`EmbedderConfig`)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str | None = None
    pooling: Literal["last", "mean", "eos"] | None = None
    layer: int | Literal["attn"] | None = None
    final_norm: bool | None = None
    center: bool | None = None
    normalize: bool | None = None
    dimensions: int | None = Field(None, ge=8)
    instruction: str | None = None
    min_pixels: int | None = Field(None, ge=1024)
    max_pixels: int | None = Field(None, ge=4096)
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
            raise InvalidInput(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"][:1]))
    if first["type"] == "extra_forbidden":
        return f"options: {key!r} is not an option; the options are {', '.join(Options.model_fields)}"
    return f"options{'.' + key if key else ''}: {first['msg']}"


NO_OPTIONS = Options()


@dataclass(frozen=True)
class EmbedInput:
    """A text, an image, or both for one vector; neither is answered with `InvalidInput`."""

    text: str | None = None
    image: bytes | None = None  # an encoded file: PNG, JPEG, WebP, GIF, BMP or TIFF
    options: Options = NO_OPTIONS
