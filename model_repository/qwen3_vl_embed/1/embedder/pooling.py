"""Hidden states -> vectors: pick or average tokens, norm, truncate, normalise, refuse what is no vector."""

from collections import defaultdict

import numpy as np
import torch

from embedder.errors import InferenceFailed
from embedder.model import PackedModel
from embedder.packing import Packed
from embedder.recipes import Layer, Recipe


def pool(model: PackedModel, packed: Packed, recipes: list[Recipe]) -> np.ndarray:
    """One forward pass, one row for each sequence: float32 (N, D). The caller turns gradients off."""
    states = model.hidden(packed, {recipe.layer for recipe in recipes})
    groups: dict[tuple[Layer, bool], list[int]] = defaultdict(list)
    for row, recipe in enumerate(recipes):
        groups[recipe.layer, recipe.final_norm].append(row)
    rows = np.empty((len(recipes), model.dimension), dtype=np.float32)
    for (layer, final_norm), members in groups.items():
        picked = [_tokens(packed, row, recipes[row].pooling) for row in members]
        rows[members] = average(model, states[layer], picked, final_norm)
    return rows


def pool_all(model: PackedModel, packed: Packed, layers: list[Layer]) -> dict[tuple[Layer, str, bool], np.ndarray]:
    """One forward pass, every (layer, `last` or `mean`, with the final norm or not): float32 (N, D) each."""
    states = model.hidden(packed, layers)
    found = {}
    for pooling in ("last", "mean"):
        picked = [_tokens(packed, row, pooling) for row in range(len(packed.contents))]
        for layer in layers:
            for final_norm in (True, False):
                found[layer, pooling, final_norm] = average(model, states[layer], picked, final_norm)
    return found


def average(model: PackedModel, state: torch.Tensor, picked: list[torch.Tensor], final_norm: bool) -> np.ndarray:
    """The mean state of each sequence's picked tokens, (sequences, D) float32.

    Summed per sequence in float32: a bfloat16 cumulative sum loses the vector (cosine 0.84, seen in SGLang).
    """
    chosen = state[torch.cat(picked).to(state.device)]  # (tokens of all sequences, D)
    chosen = (model.final_norm(chosen) if final_norm else chosen).float().cpu()
    counts = torch.tensor([len(tokens) for tokens in picked])
    if len(chosen) == len(picked):
        return chosen.numpy()
    owner = torch.arange(len(picked)).repeat_interleave(counts)
    sums = torch.zeros(len(picked), chosen.shape[1]).index_add_(0, owner, chosen)
    return (sums / counts[:, None]).numpy()


def _tokens(packed: Packed, row: int, pooling: str) -> torch.Tensor:
    """The indices, among all packed tokens, that make this row's vector.

    `last`, `eos`: the last token. `mean`: the content's own tokens (the text's, the image's).
    """
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
