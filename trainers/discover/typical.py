"""What stands for a group of calls: where it lies, its most typical prompt, its commonest structure. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infra.tasks.embedding import Vector
from trainers.discover.clusters import Centre, centre
from trainers.discover.naming import describe
from trainers.ingest.features import Features

MEDOID_WORDS = 40


class Typical(NamedTuple):
    centre: Centre
    prompt: str
    """Masked words of the prompt that is closest to the centre."""
    signature: str
    words: list[str]
    """For the task's id."""
    name: str
    """For people."""

    @property
    def medoid(self) -> str:
        return " ".join(self.prompt.split()[:MEDOID_WORDS])


def typical_of(
    features: Sequence[Features],
    vectors: Vector,
    *,
    floor: float,
    ceiling: float,
    tag: str | None,
    split: bool,
) -> Typical:
    """Of the calls of one task; there is at least one.

    Args:
        vectors: unit vectors of their prompts, shape (n, dimensions).
        floor, ceiling: bounds of the radius, cosine distance; the ceiling wins.
        tag, split: as ``describe`` takes them.
    """
    found = centre(vectors, min(floor, ceiling), ceiling)
    closest = int(np.argmax(vectors.astype(np.float64) @ np.asarray(found.centroid)))
    prompt = features[closest].prompt
    # A tag may cover several structures; the commonest stands for it.
    signature = Counter(feature.signature for feature in features).most_common(1)[0][0]
    alike = [feature for feature in features if feature.signature == signature]
    words, name = describe(alike, prompt, tag, split)
    return Typical(found, prompt, signature, words, name)
