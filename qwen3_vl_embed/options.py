"""The options of a request. `make options` writes this file, from the embedder's `options.py`."""

from typing import Annotated, Literal, TypedDict


class TextOptions(TypedDict, total=False):
    """What texts and images may ask for; what is left out stays as the server is set."""

    prompt: Annotated[
        str,
        "A preset (`eol`, `colour`, `freeret`, `hierarchical`, `echo`, `chat`, `embedding`, `none`, or one of the checkpoint's own: `/info` lists them), or a template that holds `{content}` once, or twice for texts alone.",
    ]
    pooling: Annotated[
        Literal["last", "mean", "eos"],
        "`last`: the last token; `mean`: the mean of the content's own tokens, none of the prompt's; `eos`: an appended `<|endoftext|>`.",
    ]
    layer: Annotated[
        int | Literal["attn"], "0 (the input) … L (the last), or from the end (-1); `attn`: before the last MLP."
    ]
    final_norm: Annotated[bool, "Apply the model's final norm, whatever the layer."]
    center: Annotated[
        bool,
        "Apply the server's calibration: it takes away what all vectors of a modality share, or moves texts to where images are.",
    ]
    normalize: Annotated[bool, "Scale the vector to length 1."]
    dimensions: Annotated[
        int, "Keep the first so many numbers, then normalise. Instruct checkpoints were not trained for it."
    ]
    instruction: Annotated[str, "What the vector is for, such as `Name the colour.`: the system turn of the prompt."]


class ImageOptions(TextOptions, total=False):
    """What images may ask for."""

    min_pixels: Annotated[int, "Enlarge smaller images to this area."]
    max_pixels: Annotated[int, "Reduce larger images to this area; a request may not pass the server's own."]
