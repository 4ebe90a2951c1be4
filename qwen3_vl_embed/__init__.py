"""Text and image embeddings of a Qwen3-VL model: `from qwen3_vl_embed import Client`, and the command line.

In a checkout also what evaluates (`evaluation`), and what serves it (`serving`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qwen3_vl_embed.errors import AdapterError, ItemError

if TYPE_CHECKING:
    from qwen3_vl_embed.client import AsyncClient, Client
    from qwen3_vl_embed.items import Embedded, Item

__all__ = ["AdapterError", "AsyncClient", "Client", "Embedded", "Item", "ItemError"]


def __getattr__(name: str) -> Any:
    """What needs NumPy and httpx, when it is asked for: `qwen3-vl-embed --help` is not to wait for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "client" if name in ("AsyncClient", "Client") else "items"
    return getattr(import_module(f"{__name__}.{home}"), name)
