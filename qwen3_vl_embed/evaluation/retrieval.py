"""Do paired vectors find each other: row i of one side belongs to row i of the other.

Alone, a side is searched by the other. In one pool, texts and images are candidates together.
"""

from functools import partial

import numpy as np

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean, median
from qwen3_vl_embed.evaluation.space import TIE, Space, unit

KS = (1, 5, 10)


def cosine(queries: FloatArray, candidates: FloatArray) -> FloatArray:
    """Cosine similarity of (Q, D) with (C, D): float64 (Q, C); 0 where a vector has no direction."""
    return unit(queries) @ unit(candidates).T


def ranks(similarity: FloatArray) -> FloatArray:
    """Rank of each row's own partner (the diagonal), 1 is best: int (N,). Ties count against the model."""
    own = np.diag(similarity)[:, None]
    return (similarity >= own - TIE).sum(axis=1)


def figures(space: Space, resampling: Resampling) -> dict[str, Figure]:
    """Recalls, mean reciprocal rank and median rank, both ways, and in one pool of texts and images.

    Beside them what N shuffled answers would give.
    """
    found: dict[str, Figure] = {}
    hits, mixed_hits = [], []
    for direction, within in (("text_to_image", "text_to_text"), ("image_to_text", "image_to_image")):
        across, alike = getattr(space, direction), getattr(space, within)
        rank = ranks(across)
        places = np.arange(1, len(rank) + 1)
        for k in KS:
            near = partial(mean, values=(rank <= k).astype(float))
            found[f"{direction}_recall_{k}"] = resampling.figure(near, min(k / len(rank), 1))
        found[f"{direction}_mrr"] = resampling.figure(partial(mean, values=1 / rank), float((1 / places).mean()))
        median_rank = partial(median, values=rank)
        found[f"{direction}_median_rank"] = resampling.figure(median_rank, float(np.median(places)))
        hits.append((rank == 1).astype(float))
        first, wrong = in_one_pool(across, alike)
        mixed_hits.append(first)
        others = 2 * len(rank) - 1  # all that a query is compared with
        found[f"{direction}_mixed_recall_1"] = resampling.figure(partial(mean, values=first), 1 / others)
        share = partial(mean, values=wrong)
        found[f"{direction}_wrong_modality"] = resampling.figure(share, (len(rank) - 1) / others)
    for name, (forth, back) in {"recall_1": hits, "mixed_recall_1": mixed_hits}.items():
        found[f"asymmetry_{name}"] = resampling.figure(partial(mean, values=forth - back), 0.0)
    return found


def in_one_pool(across: FloatArray, alike: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of each query, 0 or 1, float64 (N,): is its partner the first of all texts and images, is the first one alike.

    `across`: cosines with the other modality, partners on the diagonal; `alike`: with the query's own, itself left out.
    A tie counts against the model. MMEB-V3 (arXiv 2604.23321, April 2026) finds that models return the modality of the
    query, and that the directions differ.
    """
    others = np.where(np.eye(len(alike), dtype=bool), -np.inf, alike).max(axis=1)
    first = (ranks(across) == 1) & (others < np.diag(across) - TIE)
    return first.astype(float), (others >= across.max(axis=1) - TIE).astype(float)
