"""Can the colour be read off a vector: a cross-validated ridge regression to CIELAB.

A constant vector cannot game it, and it does not ask texts and images to agree: it tells what each side knows.
"""

from functools import partial

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.resampling import Figure, Resampling, mean
from qwen3_vl_embed.evaluation.space import Space

FOLDS = 5
SEED = 0
PENALTIES = np.logspace(-3, 5, 17)  # chosen inside each fold by leave-one-out


def figures(space: Space, lab: FloatArray, resampling: Resampling) -> dict[str, Figure]:
    """R² of L*, a*, b* (their mean) for pairs that the regression was not fitted on; 0 is guessing the mean colour."""
    found = {}
    for modality in ("text", "image"):
        score = partial(_r2, lab=lab, predicted=predict(space.rows(modality), lab))
        found[f"probe_{modality}"] = resampling.figure(score, chance=0.0)
    return found


def predict(vectors: FloatArray, lab: FloatArray) -> FloatArray:
    """CIELAB of each row, predicted from the other folds: float64 (N, 3)."""
    probe = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return cross_val_predict(probe, vectors, lab, cv=KFold(FOLDS, shuffle=True, random_state=SEED))


def _r2(counts: FloatArray, lab: FloatArray, predicted: FloatArray) -> FloatArray:
    shares = []
    for truth, guess in zip(lab.T, predicted.T, strict=True):
        center = mean(counts, truth)
        variance = mean(counts, (truth - truth.mean()) ** 2) - (center - truth.mean()) ** 2
        shares.append(1 - mean(counts, (truth - guess) ** 2) / variance)
    return np.mean(shares, axis=0)
