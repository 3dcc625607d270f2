"""Distances between two samples, and how large they get when nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_DISTANCE = 0.1
"""Distances below this are never drift, however many rows show them."""
NULL_SPLITS = 200
NULL_QUANTILE = 0.99


def null_threshold(
    first: NDArray[Any],
    second: NDArray[Any],
    distance: Callable[[NDArray[Any], NDArray[Any]], float],
    random: np.random.Generator,
) -> float:
    """The distance that two random parts of the pooled rows, of the same sizes, hardly ever reach.

    A permutation test turned into a threshold: NULL_QUANTILE of NULL_SPLITS random splits, and at
    least LEAST_DISTANCE.
    """
    pooled = np.concatenate([first, second])
    distances = []
    for _ in range(NULL_SPLITS):
        shuffled = random.permutation(pooled)
        distances.append(distance(shuffled[: len(first)], shuffled[len(first) :]))
    return max(LEAST_DISTANCE, float(np.quantile(distances, NULL_QUANTILE)))


def wasserstein(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Divided by the standard deviation of the first sample, the reference, as the report does."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(first, second)) / max(float(np.std(first)), 0.001)


def jensen_shannon(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    from scipy.spatial.distance import jensenshannon

    size = int(max(first.max(), second.max())) + 1
    return float(
        jensenshannon(np.bincount(first, minlength=size), np.bincount(second, minlength=size))
    )
