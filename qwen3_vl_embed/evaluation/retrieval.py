"""Do paired vectors find each other: row i of one side belongs to row i of the other.

The mean matched distance alone can be had for nothing (a constant vector scores 0). So every answer holds the unmatched
distance and the recalls beside it.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean, median
from qwen3_vl_embed.evaluation.space import TIE, Space, unit

KS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Distances are cosine distances, 0…2; recalls are fractions, 0…1, of N queries."""

    matched: float  # mean over the N pairs: the benchmark's metric
    unmatched: float  # mean over the N * (N - 1) pairs that do not belong together
    text_to_image: dict[int, float]  # k -> how often the query's own partner is among the first k
    image_to_text: dict[int, float]
    mrr: float  # mean reciprocal rank, mean of both directions


def cosine(queries: FloatArray, candidates: FloatArray) -> FloatArray:
    """Cosine similarity of (Q, D) with (C, D): float64 (Q, C); 0 where a vector has no direction."""
    return unit(queries) @ unit(candidates).T


def ranks(similarity: FloatArray) -> FloatArray:
    """Rank of each row's own partner (the diagonal), 1 is best: int (N,). Ties count against the model."""
    own = np.diag(similarity)[:, None]
    return (similarity >= own - TIE).sum(axis=1)


def retrieval(text: FloatArray, image: FloatArray, ks: tuple[int, ...] = (1, 10)) -> Retrieval:
    """Compare N paired vectors, both (N, D)."""
    similarity = cosine(text, image)
    pairs, own = len(similarity), np.trace(similarity)
    rank = np.stack([ranks(similarity), ranks(similarity.T)])
    text_to_image, image_to_text = ({k: float((row <= k).mean()) for k in ks} for row in rank)
    return Retrieval(
        matched=float(1 - own / pairs),
        unmatched=float(1 - (similarity.sum() - own) / (pairs * (pairs - 1))),
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        mrr=float((1 / rank).mean()),
    )


def figures(space: Space, resampling: Resampling) -> dict[str, Figure]:
    """Recalls, mean reciprocal rank and median rank, both ways; beside them what N shuffled answers would give."""
    found: dict[str, Figure] = {}
    for direction in ("text_to_image", "image_to_text"):
        rank = ranks(getattr(space, direction))
        places = np.arange(1, len(rank) + 1)
        for k in KS:
            near = partial(mean, values=(rank <= k).astype(float))
            found[f"{direction}_recall_{k}"] = resampling.figure(near, min(k / len(rank), 1))
        found[f"{direction}_mrr"] = resampling.figure(partial(mean, values=1 / rank), float((1 / places).mean()))
        median_rank = partial(median, values=rank)
        found[f"{direction}_median_rank"] = resampling.figure(median_rank, float(np.median(places)))
    return found
