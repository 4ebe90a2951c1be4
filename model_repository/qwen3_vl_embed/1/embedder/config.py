"""The embedder's settings: one frozen object per process, from `EMBED_*` environment variables. Knows no checkpoint."""

import os
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from .paths import utf8

PREFIX = "EMBED_"


class EmbedderConfig(BaseSettings):
    """What to serve and within which limits; unknown names and bad values are refused (`pydantic.ValidationError`).

    Prompt, pooling and normalising left unset are what the checkpoint's files say, if any (`published.py`). Pixel
    bounds left unset come from its preprocessor's file, the upper one capped at 1024×1024.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    checkpoint: str = Field(description="a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct")
    revision: str | None = Field(None, description="the hub revision: a branch, a tag or (best) a commit")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, float32 on CPU")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU where there is one")
    prompt: str = Field("auto", description="auto (what the checkpoint says, else `eol`), a preset, or a template")
    pooling: Literal["last", "mean", "eos"] = Field(
        "last",
        description="last token, mean of the content's tokens, or an appended <|endoftext|>; unset: the checkpoint's",
    )
    layer: int | Literal["attn"] = Field(-1, description="0 (the input) … L or -1 (the last), or attn: before its MLP")
    final_norm: bool = Field(True, description="apply the model's final norm, to whatever layer")
    center: bool = Field(False, description="apply the calibration")
    calibration: str | None = Field(None, description="a file that `qwen3-vl-embed calibrate` wrote")
    normalize: bool = Field(True, description="divide each vector by its L2 norm; unset: the checkpoint's own")
    dimensions: int | None = Field(None, ge=8, description="keep the first so many numbers, then normalise")
    instruction: str | None = Field(None, description="the system turn; unset: the prompt's own, if it has one")
    min_pixels: int | None = Field(
        None, ge=1024, description="smaller images are enlarged to this area, 1024 or more; unset: the checkpoint's own"
    )
    max_pixels: int | None = Field(
        None,
        ge=4096,
        description="larger images are reduced to this area, 4096 or more; unset: the checkpoint's, at most 1024×1024",
    )
    max_text_tokens: int = Field(8192, ge=1, description="longer texts are refused, never truncated")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="larger image files are refused")
    max_image_pixels: int = Field(40_000_000, ge=1, description="larger images are refused before they are decoded")
    max_concurrent_pixels: int = Field(
        64_000_000, ge=1, description="pixels of large images that are decoded at once; up to 14 bytes each"
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, description="tokens (text and image) of one forward pass; unset: as many as fit, at most 16384"
    )

    pipeline: bool | None = Field(
        None, description="prepare inputs while others are computed, on threads of their own; unset: on a GPU"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _in_utf8(cls, value: Any) -> Any:
        return utf8(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _pixel_bounds_in_order(self) -> Self:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"EMBED_MIN_PIXELS ({self.min_pixels}) is above EMBED_MAX_PIXELS ({self.max_pixels})")
        return self

    @classmethod
    def from_environment(cls) -> Self:
        """The settings of this process.

        Raises:
            ValueError: an `EMBED_*` variable is not a setting, or its value is not allowed; the message names it.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; the settings are {', '.join(sorted(known))}")
        try:
            return cls()
        except ValidationError as error:
            raise ValueError("; ".join(map(_sentence, error.errors()))) from None


def _sentence(problem: ErrorDetails) -> str:
    if not problem["loc"]:  # from the validator above, which names the settings itself
        return problem["msg"].removeprefix("Value error, ")
    name = PREFIX + str(problem["loc"][0]).upper()
    if problem["type"] == "missing":
        return f"{name} must be set"
    return f"{name}: {problem['msg']}, not {problem['input']!r}"
