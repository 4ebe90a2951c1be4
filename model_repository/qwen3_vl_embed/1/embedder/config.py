"""The embedder's settings: one frozen object per process, from `EMBED_*` environment variables."""

import os
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from .options import ImageOptions
from .paths import utf8

PREFIX = "EMBED_"


class EmbedderConfig(BaseSettings, ImageOptions):
    """What to serve and within which limits; unknown names and bad values are refused (`pydantic.ValidationError`).

    Each option is a setting too, of the same rule: what a request gets that leaves it out. Options that are unset here
    are the checkpoint's own (`published.py`, pixel bounds in `preparer.py`), or else have their default.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    checkpoint: str = Field(description="a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct")
    revision: str | None = Field(None, description="the hub revision: a branch, a tag or (best) a commit")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the arithmetic; auto: bfloat16 on CUDA, and of weights stored so on a CPU with AMX or AMD's "
        "AVX512-BF16; else float32",
    )
    weights: Literal["auto", "float8"] = Field(
        "auto",
        description="auto: as EMBED_DTYPE; float8: the layers' as 8-bit floats, on a GPU since sm_89; refused where a "
        "vector of our own inputs has less than cosine 0.99 to that by bfloat16 ones",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU where there is one")
    calibration: str | None = Field(None, description="a file that `qwen3-vl-embed calibrate` wrote")
    max_text_tokens: int = Field(8192, ge=1, description="longer texts are refused, never truncated")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="larger image files are refused")
    max_image_pixels: int = Field(40_000_000, ge=1, description="larger images are refused before they are decoded")
    max_concurrent_pixels: int = Field(
        64_000_000,
        ge=1,
        description="pixels of large images that are decoded at once, up to 14 bytes each; one that has more is alone",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens (text and image) of a forward pass; unset: as many as fit into free memory, at most 2048 "
        "on a CPU and 16384 on a GPU, where they take 0.25 s",
    )

    pipeline: bool | None = Field(
        None, description="prepare inputs while others are computed, on threads of their own; unset: on a GPU"
    )

    graphs: bool = Field(
        True, description="replay passes of small batches: CUDA graphs on a GPU, traces of single inputs on a CPU"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _in_utf8(cls, value: Any) -> Any:
        return utf8(value) if isinstance(value, str) else value

    @field_validator("prompt")
    @classmethod
    def _auto_is_unset(cls, value: str | None) -> str | None:
        return None if value == "auto" else value

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
        ours = (name for name in os.environ if name.upper().startswith(PREFIX))
        if unknown := sorted(name for name in ours if name.upper() not in known):
            raise ValueError(f"{', '.join(unknown)}: no such setting; the settings are {', '.join(sorted(known))}")
        try:
            return cls()
        except ValidationError as error:
            raise ValueError("; ".join(map(_sentence, error.errors()))) from None

    def on_gpu(self, own: int, gpus: int) -> Self:
        """Those of the instance on the GPU number `own`, where each of so many GPUs has one.

        Raises:
            ValueError: by its device all instances would compute in the same place.
        """
        if self.device in ("auto", "cuda"):
            return self.model_copy(update={"device": f"cuda:{own}"})
        if gpus > 1:
            raise ValueError(
                f"EMBED_DEVICE={self.device}: each of {gpus} GPUs here has an instance, and all would compute there: "
                "unset it, and let CUDA_VISIBLE_DEVICES name the GPUs to use (empty: none, hence the CPU)"
            )
        return self


def _sentence(problem: ErrorDetails) -> str:
    if not problem["loc"]:  # from the validator above, which names the settings itself
        return problem["msg"].removeprefix("Value error, ")
    name = f"{PREFIX}{problem['loc'][0]}".upper()
    if problem["type"] == "missing":
        return f"{name} must be set"
    return f"{name}: {problem['msg']}, not {problem['input']!r}"
