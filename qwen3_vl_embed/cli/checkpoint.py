"""Load a checkpoint here, without a server. Needs torch."""

from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from embedder import Embedder, EmbedderConfig
from qwen3_vl_embed.cli import terminal


def load(checkpoint: str) -> Embedder:
    """Raises EmbedError. What it says meanwhile is on stderr, and only on a terminal."""
    disable_progress_bar()
    with terminal.err.status(Text(f"loading {checkpoint} …")):
        return Embedder.load(EmbedderConfig(checkpoint=checkpoint))
