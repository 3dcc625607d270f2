"""Density clustering inside one structural signature, believed only where it is plain to see.

HDBSCAN (Campello, Moulavi & Sander 2013) on prompt and action proposes groups; they count only if
the *prompt alone* tells them apart by nearest centroid, because that is all the gateway has. Groups
whose centroids are close are topics of one task and are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.tasks.embedding import Vector
from trainers.discover.phrases import Phrases, ask_otherwise, instruction

MERGE_COSINE = 0.3
"""Centroids at least this close are one task. Measured on hashed n-grams: topics of one task have
0.4 to 0.9, different tasks 0.05 to 0.2."""
MIN_SILHOUETTE = 0.25
"""Mean of (b - a) / b, with a and b the distances to the own and the next centroid."""
MIN_AGREEMENT = 0.95
"""Share of clustered prompts whose nearest centroid is their own group's."""
ACTION_WEIGHT = 0.5
MAX_POINTS = 3000
REDUCED_DIMENSIONS = 16
RADIUS_QUANTILE = 0.98
RADIUS_SLACK = 0.02

Labels = NDArray[np.int64]


class Rival(NamedTuple):
    """A task that is there already."""

    centroid: Sequence[float]
    instruction: Phrases = frozenset()


@dataclass(frozen=True)
class Centre:
    centroid: tuple[float, ...]
    """Unit vector; all zeros when the members' prompts hold nothing to embed."""
    radius: float
    """Cosine distance."""


def centre(vectors: Vector, floor: float, ceiling: float) -> Centre:
    """Centroid of unit vectors and a radius calibrated on their distances to it.

    The radius holds 98 % of the members and a little slack, within [floor, ceiling]: how far apart
    short texts of one task lie depends on the task, so no constant fits.
    """
    mean = np.asarray(vectors, dtype=np.float64).mean(axis=0)
    norm = float(np.linalg.norm(mean))
    unit = np.round(mean / norm, 6) if norm > 0 else mean
    distances = 1.0 - np.asarray(vectors, dtype=np.float64) @ unit
    spread = float(np.quantile(distances, RADIUS_QUANTILE)) + RADIUS_SLACK
    return Centre(tuple(map(float, unit)), round(min(ceiling, max(floor, spread)), 6))


def separate_groups(
    prompts: Vector,
    actions: Vector,
    sizes: NDArray[np.int64],
    min_size: int,
    against: Sequence[Rival] = (),
    phrases: Sequence[Phrases] = (),
) -> Labels:
    """Group of each point, -1 for none.

    Args:
        prompts: unit vectors of distinct prompts, shape (n, dimensions).
        actions: unit vectors of what was answered, shape (n, dimensions).
        sizes: calls that each point stands for, shape (n,).
        min_size: calls a group needs.
        against: tasks that a group must stand apart from as well.
        phrases: of each prompt, where instructions tell tasks apart, shape (n,); else none.

    Returns:
        Labels 0, 1, ... by falling size. All -1 when nothing stands apart.
    """
    none = np.full(len(prompts), -1, dtype=np.int64)
    if int(sizes.sum()) < min_size or len(prompts) < 5:
        return none
    chosen = _sample(len(prompts))
    proposed = _propose(prompts[chosen], actions[chosen])
    said = [phrases[int(index)] for index in chosen] if phrases else []
    groups = _merge(
        [np.flatnonzero(proposed == k) for k in sorted(set(proposed) - {-1})],
        prompts[chosen],
        said,
    )
    groups = [
        group
        for group in groups
        if all(
            _mean(prompts[chosen[group]]) @ np.asarray(other.centroid) < MERGE_COSINE
            or ask_otherwise(_instruction(said, group), other.instruction)
            for other in against
        )
    ]
    if not groups:
        return none
    centroids = np.stack([_mean(prompts[chosen[group]]) for group in groups])
    rivals = np.array(
        [list(other.centroid) for other in against if np.any(other.centroid)], dtype=np.float64
    )
    everything = np.vstack([centroids, rivals]) if len(rivals) else centroids
    members = np.concatenate(groups)
    own = np.concatenate([np.full(len(group), k) for k, group in enumerate(groups)])
    if len(everything) > 1:
        distances = 1.0 - prompts[chosen[members]] @ everything.T
        if (distances.argmin(axis=1) == own).mean() < MIN_AGREEMENT:
            return none
        rows = np.arange(len(members))
        a = distances[rows, own].copy()
        distances[rows, own] = np.inf
        if float(((distances.min(axis=1) - a) / distances.min(axis=1)).mean()) < MIN_SILHOUETTE:
            return none
    # Every point, also those that were not sampled or were noise, goes to the centroid it is close
    # to, if it lies as close as the group's own members do.
    distances = 1.0 - prompts @ everything.T
    labels = distances.argmin(axis=1).astype(np.int64)
    reach = np.array(
        [centre(prompts[chosen[group]], 0.2, 0.95).radius for group in groups]
        + [2.0] * (len(everything) - len(groups))
    )
    labels[distances[np.arange(len(labels)), labels] > reach[labels]] = -1
    labels[labels >= len(groups)] = -1
    kept = [k for k in range(len(groups)) if int(sizes[labels == k].sum()) >= min_size]
    kept.sort(key=lambda k: (-int(sizes[labels == k].sum()), int(np.flatnonzero(labels == k)[0])))
    renamed = {k: position for position, k in enumerate(kept)}
    return np.array([renamed.get(int(k), -1) for k in labels], dtype=np.int64)


def _sample(count: int) -> NDArray[np.int64]:
    """Indices of the points that are clustered: all of them, or some evenly spread."""
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, MAX_POINTS).astype(np.int64))


def _propose(prompts: Vector, actions: Vector) -> Labels:
    from sklearn.cluster import HDBSCAN
    from sklearn.decomposition import TruncatedSVD

    # Centred, so that an action that all share pulls nothing together.
    joint = np.hstack([prompts, ACTION_WEIGHT * (actions - actions.mean(axis=0))])
    dimensions = min(REDUCED_DIMENSIONS, len(joint) - 1, joint.shape[1] - 1)
    reduced = TruncatedSVD(dimensions, random_state=0).fit_transform(joint)
    reduced /= np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-9)
    labels = np.full(len(joint), -1, dtype=np.int64)
    for single in (False, True):
        model = HDBSCAN(
            min_cluster_size=max(5, len(joint) // 20),
            min_samples=min(5, len(joint) - 1),
            allow_single_cluster=single,
            copy=True,
        )
        labels = np.asarray(model.fit(reduced).labels_, dtype=np.int64)
        if labels.max() >= 0:
            break
    return labels


def _merge(
    groups: list[NDArray[np.int64]], prompts: Vector, said: Sequence[Phrases]
) -> list[NDArray[np.int64]]:
    """Join the two groups with the closest centroids until none are closer than MERGE_COSINE, but for
    those that are told to do something else."""
    groups = list(groups)
    while len(groups) > 1:
        centroids = np.stack([_mean(prompts[group]) for group in groups])
        cosines = centroids @ centroids.T
        np.fill_diagonal(cosines, -1.0)
        told = [_instruction(said, group) for group in groups]
        for one, other in combinations(range(len(groups)), 2):
            if ask_otherwise(told[one], told[other]):
                cosines[one, other] = cosines[other, one] = -1.0
        first, second = divmod(int(cosines.argmax()), len(groups))
        if cosines[first, second] < MERGE_COSINE:
            break
        joined = np.concatenate([groups[first], groups[second]])
        groups = [g for k, g in enumerate(groups) if k not in (first, second)] + [np.sort(joined)]
    return groups


def _instruction(said: Sequence[Phrases], group: NDArray[np.int64]) -> Phrases:
    return instruction([said[index] for index in group]) if said else frozenset()


def _mean(vectors: Vector) -> NDArray[np.float64]:
    mean = np.asarray(vectors, dtype=np.float64).mean(axis=0)
    norm = float(np.linalg.norm(mean))
    return mean / norm if norm > 0 else mean


def apart(
    prompts: Vector, actions: Vector, sizes: NDArray[np.int64], parts: int | None = None
) -> Labels:
    """Parts of what a person wants apart, however close they lie: labels 0, 1, ... by falling size.

    What density finds, or halves where that finds one; then each prompt goes to the centroid that it is
    closest to, which is all that the gateway has.

    Args:
        prompts, actions, sizes: as ``separate_groups`` takes them.
        parts: how many; None: as many as stand out.
    """
    labels = np.zeros(len(prompts), dtype=np.int64)
    if len(prompts) < 2:
        return labels
    chosen = _sample(len(prompts))
    found = np.zeros(len(chosen), dtype=np.int64)
    if parts is None and len(chosen) >= 5:
        found = _propose(prompts[chosen], actions[chosen])
    if found.max() < 1:
        found = _halves(prompts[chosen], actions[chosen], sizes[chosen], parts or 2)
    groups = [chosen[found == label] for label in range(int(found.max()) + 1)]
    for _ in range(10):
        centroids = np.stack([_mean(prompts[group]) for group in groups if len(group)])
        labels = (np.asarray(prompts, dtype=np.float64) @ centroids.T).argmax(axis=1)
        closest = [np.flatnonzero(labels == label) for label in range(len(centroids))]
        if len(closest) == len(groups) and all(map(np.array_equal, closest, groups)):
            break
        groups = closest
    order = sorted(
        set(labels.tolist()), key=lambda label: (-int(sizes[labels == label].sum()), label)
    )
    renamed = {label: position for position, label in enumerate(order)}
    return np.array([renamed[int(label)] for label in labels], dtype=np.int64)


def _halves(prompts: Vector, actions: Vector, sizes: NDArray[np.int64], parts: int) -> Labels:
    from sklearn.cluster import KMeans

    joint = np.hstack([prompts, ACTION_WEIGHT * (actions - actions.mean(axis=0))])
    model = KMeans(min(parts, len(np.unique(joint, axis=0))), n_init=10, random_state=0)
    return np.asarray(model.fit(joint, sample_weight=sizes).labels_, dtype=np.int64)
