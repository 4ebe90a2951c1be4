"""Text and image embeddings from a Qwen3-VL checkpoint. Knows Qwen3-VL, images, prompts, torch; not Triton, not HTTP.

embedder = Embedder.load(EmbedderConfig(checkpoint="checkpoints/qwen3-vl-color-tiny"))
red, swatch = embedder.embed([EmbedInput(text="red"), EmbedInput(image=png_bytes)])
"""

from embedder.config import EmbedderConfig
from embedder.embedder import Embedder, Embedding
from embedder.errors import EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from embedder.inputs import EmbedInput, Options

__all__ = [
    "EmbedError",
    "EmbedInput",
    "Embedder",
    "EmbedderConfig",
    "Embedding",
    "InferenceFailed",
    "InvalidInput",
    "Options",
    "UnsupportedCheckpoint",
]
