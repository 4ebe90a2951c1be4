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
from .device import to_device

Norm = Callable[[torch.Tensor], torch.Tensor]  # (R, D) -> (R, D): the model's final norm


def pool(
    states: dict[Layer, torch.Tensor], counts: tuple[int, ...], recipes: list[Recipe], final_norm: Norm
) -> torch.Tensor:
    """The states of the pooled tokens -> one row for each sequence, float32 (N, D), on their device.

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
    rows = []
    for (layer, normed), members in groups.items():
        parts = states[layer].split(counts)
        chosen = torch.cat([parts[row] for row in members])
        rows.append(average(chosen, [weights[row] for row in members], final_norm if normed else None))
    order = np.argsort([row for members in groups.values() for row in members])
    return torch.cat(rows).index_select(0, to_device(order, rows[0].device))


def average(states: torch.Tensor, weights: list[NDArray[np.float32]], norm: Norm | None) -> torch.Tensor:
    """The weighted mean of each sequence's states: (R, D) -> (N, D) float32, on their device.

    `weights`: float32 (n,) for each sequence, whose n states lie in a row; only their proportions count. Summed per
    sequence in float32, always in the same order: a bfloat16 cumulative sum loses the vector (cosine 0.84, seen in
    SGLang).
    """
    states = (states if norm is None else norm(states)).float()
    if len(states) > len(weights):
        shares = to_device(np.concatenate([each / each.sum() for each in weights]), states.device)
        lengths = to_device(np.array(list(map(len, weights))), states.device)
        # unsafe: it does not wait for the device to check the lengths
        states = torch.segment_reduce(states * shares[:, None], "sum", lengths=lengths, unsafe=True)
    return states


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
