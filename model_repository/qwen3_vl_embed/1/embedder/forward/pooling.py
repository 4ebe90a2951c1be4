"""Hidden states -> vectors: pick or average tokens, norm, truncate, normalise, refuse what is no vector."""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InferenceFailed
from ..prepare.recipes import Layer, Recipe
from .device import to_device
from .model import PackedModel
from .packing import Packed


def pool(model: PackedModel, packed: Packed, recipes: list[Recipe]) -> NDArray[np.float32]:
    """One forward pass, one row for each sequence: float32 (N, D). The caller turns gradients off."""
    picked = [_tokens(packed, row, recipe.pooling) for row, recipe in enumerate(recipes)]
    states = model.hidden(packed, {recipe.layer for recipe in recipes}, to_device(np.concatenate(picked), model.device))
    counts = [len(tokens) for tokens in picked]
    groups: dict[tuple[Layer, bool], list[int]] = defaultdict(list)
    for row, recipe in enumerate(recipes):
        groups[recipe.layer, recipe.final_norm].append(row)
    if len(groups) == 1:
        ((layer, final_norm),) = groups
        return average(model, states[layer], counts, final_norm)
    rows = np.empty((len(recipes), model.dimension), dtype=np.float32)
    for (layer, final_norm), members in groups.items():
        parts = states[layer].split(counts)
        chosen = torch.cat([parts[row] for row in members])
        rows[members] = average(model, chosen, [counts[row] for row in members], final_norm)
    return rows


def pool_all(
    model: PackedModel, packed: Packed, layers: list[Layer]
) -> dict[tuple[Layer, str, bool], NDArray[np.float32]]:
    """One forward pass, every (layer, `last` or `mean`, with the final norm or not): float32 (N, D) each."""
    sequences = range(len(packed.contents))
    picked = {pooling: [_tokens(packed, row, pooling) for row in sequences] for pooling in ("last", "mean")}
    rows = {pooling: np.concatenate(tokens) for pooling, tokens in picked.items()}
    states = model.hidden(packed, layers, to_device(np.concatenate(list(rows.values())), model.device))
    found = {}
    for layer in layers:
        parts = states[layer].split([len(tokens) for tokens in rows.values()])
        for (pooling, tokens), chosen in zip(picked.items(), parts, strict=True):
            for final_norm in (True, False):
                counts = [len(each) for each in tokens]
                found[layer, pooling, final_norm] = average(model, chosen, counts, final_norm)
    return found


def average(model: PackedModel, chosen: torch.Tensor, counts: list[int], final_norm: bool) -> NDArray[np.float32]:
    """The mean of each sequence's states, `counts` of them in a row: (tokens of all, D) -> (sequences, D) float32.

    Summed per sequence in float32: a bfloat16 cumulative sum loses the vector (cosine 0.84, seen in SGLang).
    """
    chosen = (model.final_norm(chosen) if final_norm else chosen).float().cpu()
    if len(chosen) > len(counts):
        lengths = torch.tensor(counts)
        owner = torch.arange(len(counts)).repeat_interleave(lengths)
        sums = torch.zeros(len(counts), chosen.shape[1]).index_add_(0, owner, chosen)
        chosen = sums / lengths[:, None]
    means: NDArray[np.float32] = chosen.numpy()
    return means


def _tokens(packed: Packed, row: int, pooling: str) -> NDArray[np.int64]:
    """The indices, among all packed tokens, that make this row's vector.

    `last`, `eos`: the last token. `mean`: the content's own tokens (the text's, the image's).
    """
    if pooling == "mean":
        return np.concatenate([np.arange(start, stop) for start, stop in packed.contents[row]])
    return np.array([packed.ends[row] - 1])


def finish(row: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
    """Truncate, then divide by the L2 norm: float32 (dimensions or D,).

    Raises:
        InferenceFailed: NaN, infinity or zero; such a row is never a vector.
    """
    row = row[: recipe.dimensions]
    norm = float(np.linalg.norm(row))
    if not np.isfinite(norm) or norm == 0.0:
        raise InferenceFailed(f"the model produced a vector of norm {norm} for this input; it is not served")
    return row / norm if recipe.normalize else row.copy()
