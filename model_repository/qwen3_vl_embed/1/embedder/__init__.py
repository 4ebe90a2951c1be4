"""Text and image embeddings from a Qwen3-VL checkpoint.

embedder = Embedder.load(EmbedderConfig(checkpoint="checkpoints/qwen3-vl-color-tiny"))
red, swatch = embedder.embed([EmbedInput(text="red"), EmbedInput(image=png_bytes)])
"""

import os

# GNU OpenMP reads it when torch is loaded, hence before the imports: how long a core that is done waits for the others
# before it sleeps. For ever, nearly, is the default, and where other processes want the same cores a forward pass then
# takes ten times as long and more; not at all costs a quiet machine half of its speed (docs/log.md, 2026-11-24 and 25).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# Pillow reads it when it is imported: one block for an image, which malloc gives back to the system when it is freed.
# Of the default, 16 MB, each thread that decodes keeps up to a gigabyte (docs/log.md, 2026-11-25).
os.environ.setdefault("PILLOW_BLOCK_SIZE", "256m")

# torch reads it at its first CUDA allocation: passes of ever other sizes grow segments in place of leaving gaps between
# them. (The second name is the older one, which a user may have set.)
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from .config import EmbedderConfig
from .embedder import Answer, Embedder, Embedding
from .errors import Abandoned, EmbedError, InferenceFailed, InvalidInput, UnsupportedCheckpoint
from .forward.replay import CaptureFailed
from .inputs import EmbedInput
from .options import Options
from .prepare.preparer import Description, Rendering, Result, Warnings

__all__ = [
    "Abandoned",
    "Answer",
    "CaptureFailed",
    "Description",
    "EmbedError",
    "EmbedInput",
    "Embedder",
    "EmbedderConfig",
    "Embedding",
    "InferenceFailed",
    "InvalidInput",
    "Options",
    "Rendering",
    "Result",
    "UnsupportedCheckpoint",
    "Warnings",
]
