"""Hidden states -> vectors: pick or average tokens, norm, truncate, normalise, refuse what is no vector."""

from collections import defaultdict
from itertools import accumulate

import numpy as np
import torch

from embedder.errors import InferenceFailed
from embedder.model import PackedModel
from embedder.packing import Packed
from embedder.recipes import Layer, Recipe


def pool(model: PackedModel, packed: Packed, recipes: list[Recipe]) -> np.ndarray:
    """One forward pass, one row for each sequence: float32 (N, D). The caller turns gradients off.

    `last`, `eos`: the last token's state. `mean`: the mean over the content's own tokens (the text's, the image's),
    summed per sequence in float32 (a bfloat16 cumulative sum loses the vector: cosine 0.84, seen in SGLang).
    """
    states = model.hidden(packed, {recipe.layer for recipe in recipes})
    groups: dict[tuple[Layer, bool], list[int]] = defaultdict(list)
    for row, recipe in enumerate(recipes):
        groups[recipe.layer, recipe.final_norm].append(row)
    rows = np.empty((len(recipes), model.dimension), dtype=np.float32)
    for (layer, final_norm), members in groups.items():
        picked = [_tokens(packed, row, recipes[row].pooling) for row in members]
        index = torch.cat(picked).to(states[layer].device)
        chosen = states[layer][index]  # (tokens of all members, D)
        chosen = (model.final_norm(chosen) if final_norm else chosen).float().cpu()
        bounds = [0, *accumulate(len(tokens) for tokens in picked)]
        for row, start, stop in zip(members, bounds, bounds[1:], strict=False):
            rows[row] = chosen[start:stop].mean(dim=0).numpy()
    return rows


def _tokens(packed: Packed, row: int, pooling: str) -> torch.Tensor:
    """The indices, among all packed tokens, that make this row's vector."""
    if pooling == "mean":
        return torch.cat([torch.arange(start, stop) for start, stop in packed.contents[row]])
    return packed.bounds[row + 1 : row + 2].long() - 1


def finish(row: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Truncate, then divide by the L2 norm: float32 (dimensions or D,).

    Raises:
        InferenceFailed: NaN, infinity or zero; such a row is never a vector.
    """
    row = row[: recipe.dimensions]
    norm = float(np.linalg.norm(row))
    if not np.isfinite(norm) or norm == 0.0:
        raise InferenceFailed(f"the model produced a vector of norm {norm} for this input; it is not served")
    return row / norm if recipe.normalize else row.copy()
