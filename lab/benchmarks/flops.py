"""Floating point operations of one input, counted from config.json: what the model as published costs, unpadded.

A multiply-add is two operations. Matrix products and attention count; norms, activations and rotations do not (below
1 %). Not counted either: the language-model head, which embeddings do not need, and a still image's second frame, which
equals its first. Causal attention counts only what a token sees, about half of the square. An implementation that
skips work (a cached prefix, the last layer's MLP of tokens that nobody reads) is counted as if it had done it.
"""

from dataclasses import dataclass

MERGED = 4  # patches of one language-model token


@dataclass(frozen=True)
class Flops:
    """One input's operations, by part."""

    language: float
    language_attention: float
    vision: float
    vision_attention: float
    mergers: float

    @property
    def total(self) -> float:
        return self.language + self.language_attention + self.vision + self.vision_attention + self.mergers


def count(config: dict, tokens: int, patches: int) -> Flops:
    """Of a sequence of `tokens`, whose image (if it has one) has `patches` patches of 16×16 pixels."""
    text, vision = config["text_config"], config["vision_config"]
    width = vision["hidden_size"]
    seen = tokens * (tokens + 1) / 2
    merged = MERGED * width
    mergers = 1 + len(vision["deepstack_visual_indexes"])
    return Flops(
        language=2 * language_weights(config) * tokens,
        language_attention=2 * 2 * text["num_hidden_layers"] * _query_width(text) * seen,
        vision=2 * _vision_weights(vision) * patches,
        vision_attention=2 * 2 * vision["depth"] * width * patches**2,
        mergers=2 * mergers * (merged**2 + merged * vision["out_hidden_size"]) * patches / MERGED,
    )


def language_weights(config: dict) -> int:
    """Numbers that every token is multiplied with: all of the language model's but the embedding table."""
    text = config["text_config"]
    queries = _query_width(text)
    keys = text["num_key_value_heads"] * text["head_dim"]
    attention = text["hidden_size"] * (2 * queries + 2 * keys)  # q, o; k, v
    return text["num_hidden_layers"] * (attention + 3 * text["hidden_size"] * text["intermediate_size"])


def _query_width(text: dict) -> int:
    return text["num_attention_heads"] * text["head_dim"]  # not hidden_size: 4096 against 2560 in the 4B


def _vision_weights(vision: dict) -> int:
    """Per patch: the patch embedding of one frame, then q, k, v, o and a two-matrix MLP in each block."""
    width = vision["hidden_size"]
    pixels = vision.get("in_channels", 3) * vision["patch_size"] ** 2
    return pixels * width + vision["depth"] * (4 * width**2 + 2 * width * vision["intermediate_size"])
