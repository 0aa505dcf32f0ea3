"""The metrics, row by row where a metric is a mean over rows."""

from __future__ import annotations

import numpy as np

from dropforge.training.labels import Floats, Ints

# A probability of 0 for what happened costs this much less than infinity; single precision holds no smaller doubt.
_CLIP = 1e-7


def log_loss(probabilities: Floats, y: Ints) -> Floats:
    """-log of the probability that was given to what happened. `y` -1: a class that the model does not know."""
    losses: Floats = -np.log(np.maximum(_given_to(probabilities, y), _CLIP))
    return losses


def brier(probabilities: Floats, y: Ints) -> Floats:
    """Squared error of the probabilities, summed over the classes (0 to 2)."""
    squares: Floats = (probabilities**2).sum(axis=1) - 2.0 * _given_to(probabilities, y) + 1.0
    return squares


def error_rate(probabilities: Floats, y: Ints) -> Floats:
    """1 where the most probable class is not what happened."""
    wrong: Floats = (probabilities.argmax(axis=1) != y).astype(np.float64)
    return wrong


def mae(predicted: Floats, y: Floats) -> Floats:
    return np.abs(predicted - y)


def mse(predicted: Floats, y: Floats) -> Floats:
    return (predicted - y) ** 2


def auc(scores: Floats, positive: Ints) -> float | None:
    """How often a positive row scores above a negative one, ties counting half; None when one of them is missing."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    ranks = float(mean_rank[inverse][positive == 1].sum())
    return (ranks - positives * (positives + 1) / 2.0) / (positives * negatives)


def _given_to(probabilities: Floats, y: Ints) -> Floats:
    given: Floats = probabilities[np.arange(len(y)), np.maximum(y, 0)]
    return np.where(y >= 0, given, 0.0)


CLASS_LOSSES = {"log_loss": log_loss, "brier": brier, "error_rate": error_rate}
NUMBER_LOSSES = {"mae": mae, "mse": mse}
