"""Hidden states -> vectors: pick or average tokens, truncate, normalise, refuse what is no vector. Knows no prompts."""

import numpy as np
import torch

from embedder.errors import InferenceFailed
from embedder.packing import Packed


def pool(hidden: torch.Tensor, packed: Packed, poolings: list[str]) -> np.ndarray:
    """One row for each sequence, float32 (N, D), from `hidden` (T, D).

    `last`: the last token's state (after the generation prompt). `mean`: the mean over the content's own tokens (the
    text's, the image's), summed per sequence in float32 (a bf16 cumulative sum loses the vector: cosine 0.84, SGLang).
    """
    rows = hidden[(packed.bounds[1:].long() - 1).to(hidden.device)].float()  # (N, D)
    for row, pooling in enumerate(poolings):
        if pooling == "mean":
            start, stop = packed.contents[row]
            rows[row] = hidden[start:stop].float().mean(dim=0)
    return rows.cpu().numpy()


def finish(row: np.ndarray, dimensions: int | None, normalize: bool) -> np.ndarray:
    """Truncate, then divide by the L2 norm: float32 (dimensions or D,).

    Raises:
        InferenceFailed: NaN, infinity or zero; such a row is never a vector.
    """
    row = row[:dimensions]
    norm = float(np.linalg.norm(row))
    if not np.isfinite(norm) or norm == 0.0:
        raise InferenceFailed(f"the model produced a vector of norm {norm} for this input; it is not served")
    return row / norm if normalize else row.copy()
