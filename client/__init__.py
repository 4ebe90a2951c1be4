"""The HTTP adapter in front of the Triton model `qwen3_vl_embed`."""

__version__ = "0.1.0"
