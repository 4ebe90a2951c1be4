"""The command line `qwen3-vl-embed` with all its commands."""

from qwen3_vl_embed.cli import collection, commands, compare, offline  # noqa: F401  (each adds its commands)
from qwen3_vl_embed.cli.app import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
