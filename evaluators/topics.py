"""Texts of both windows in groups of like ones: drift of embeddings as a category that can be shown.

The groups are made of both windows together, so that they favour neither: what is new makes a group of
its own, and a shifted mix changes the groups' shares.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from infra.tasks.embedding import embed

MOST = 16
ROWS_EACH = 25
"""So many rows to a group at least, on average."""
MAX_FITTED = 2000
ROUNDS = 12
DIMENSIONS = 256

Embedder = Callable[[Iterable[str]], NDArray[np.float32]]


def embedded(texts: Iterable[str]) -> NDArray[np.float32]:
    return embed(texts, DIMENSIONS)


def topics(
    texts: Sequence[str], random: np.random.Generator, embedder: Embedder = embedded
) -> list[str]:
    """The group of each text, ``topic 01`` the largest; all one where there are few rows or texts."""
    count = min(MOST, len(texts) // ROWS_EACH)
    vectors = embedder(texts)
    if count < 2 or len(np.unique(vectors, axis=0)) <= count:
        return ["topic 01"] * len(texts)
    from sklearn.cluster import KMeans

    chosen = vectors
    if len(vectors) > MAX_FITTED:
        chosen = vectors[random.choice(len(vectors), MAX_FITTED, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = KMeans(
            count, n_init=1, max_iter=ROUNDS, random_state=int(random.integers(2**31))
        ).fit(chosen)
        labels = made.predict(vectors)
    sizes = np.bincount(labels, minlength=count)
    rank = np.empty(count, dtype=int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return [f"topic {rank[label] + 1:02d}" for label in labels]
