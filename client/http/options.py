"""The options of a request. `make options` writes this file, from the embedder's `options.py`."""

from typing import Literal

from pydantic import BaseModel, Field


class TextOptions(BaseModel):
    """What texts and images may ask for; what is left out stays as the server is set."""

    prompt: str | None = Field(
        None,
        description="A preset (`eol`, `colour`, `freeret`, `hierarchical`, `echo`, `chat`, `embedding`, `none`, or one of the checkpoint's own: `/info` lists them), or a template that holds `{content}` once, or twice for texts alone.",
    )
    pooling: Literal["last", "mean", "eos"] | None = Field(
        None,
        description="`last`: the last token; `mean`: the mean of the content's own tokens, none of the prompt's; `eos`: an appended `<|endoftext|>`.",
    )
    layer: int | Literal["attn"] | None = Field(
        None, description="0 (the input) … L (the last), or from the end (-1); `attn`: before the last MLP."
    )
    final_norm: bool | None = Field(None, description="Apply the model's final norm, whatever the layer.")
    center: bool | None = Field(
        None,
        description="Apply the server's calibration: it takes away what all vectors of a modality share, or moves texts to where images are.",
    )
    normalize: bool | None = Field(None, description="Scale the vector to length 1.")
    dimensions: int | None = Field(
        None,
        ge=8,
        description="Keep the first so many numbers, then normalise. Instruct checkpoints were not trained for it.",
    )
    instruction: str | None = Field(
        None, description="What the vector is for, such as `Name the colour.`: the system turn of the prompt."
    )


class ImageOptions(TextOptions):
    """What images may ask for."""

    min_pixels: int | None = Field(None, ge=1024, description="Enlarge smaller images to this area.")
    max_pixels: int | None = Field(
        None, ge=4096, description="Reduce larger images to this area; a request may not pass the server's own."
    )
