"""The HTTP adapter in front of the Triton model `qwen3_vl_embed`.

Knows HTTP, JSON and Triton's tensors. Knows nothing of torch, Qwen3-VL or pooling: what a vector means is the model's
business.
"""

__version__ = "0.1.0"
