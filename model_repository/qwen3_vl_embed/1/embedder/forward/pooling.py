"""Hidden states -> vectors: norm, average, truncate, normalise; refuse what is no vector."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InferenceFailed
from ..options import Layer
from ..poolings import POOLINGS
from ..prepare.recipes import Recipe

Norm = Callable[[torch.Tensor], torch.Tensor]  # (R, D) -> (R, D): the model's final norm


def pool(
    states: dict[Layer, torch.Tensor], counts: list[int], recipes: list[Recipe], final_norm: Norm
) -> NDArray[np.float32]:
    """The states of the pooled tokens -> one row for each sequence, float32 (N, D).

    `states`: (R, D) for each layer that a recipe asks for, sequence after sequence. `counts`: of the R rows, how many
    are each sequence's.
    """
    weights = [POOLINGS[recipe.pooling].weights(count) for recipe, count in zip(recipes, counts, strict=True)]
    groups: dict[tuple[Layer, bool], list[int]] = defaultdict(list)
    for row, recipe in enumerate(recipes):
        groups[recipe.layer, recipe.final_norm].append(row)
    if len(groups) == 1:
        ((layer, normed),) = groups
        return average(states[layer], weights, final_norm if normed else None)
    rows = np.empty((len(recipes), next(iter(states.values())).shape[1]), dtype=np.float32)
    for (layer, normed), members in groups.items():
        parts = states[layer].split(counts)
        chosen = torch.cat([parts[row] for row in members])
        rows[members] = average(chosen, [weights[row] for row in members], final_norm if normed else None)
    return rows


def average(states: torch.Tensor, weights: list[NDArray[np.float32]], norm: Norm | None) -> NDArray[np.float32]:
    """The weighted mean of each sequence's states: (R, D) -> (N, D) float32.

    `weights`: float32 (n,) for each sequence, whose n states lie in a row; only their proportions count. Summed per
    sequence in float32: a bfloat16 cumulative sum loses the vector (cosine 0.84, seen in SGLang).
    """
    states = (states if norm is None else norm(states)).float().cpu()
    if len(states) > len(weights):
        owner = torch.arange(len(weights)).repeat_interleave(torch.tensor(list(map(len, weights))))
        weighted = states * torch.from_numpy(np.concatenate(weights))[:, None]
        sums = torch.zeros(len(weights), states.shape[1]).index_add_(0, owner, weighted)
        states = sums / torch.tensor([float(each.sum()) for each in weights])[:, None]
    means: NDArray[np.float32] = states.numpy()
    return means


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
