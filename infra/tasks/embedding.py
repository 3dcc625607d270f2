"""Hashed n-gram embeddings: deterministic everywhere, numpy only, fast enough for the hot path.

The hashing trick with signs (Weinberger et al., "Feature Hashing for Large Scale Multitask
Learning", 2009) over words, word pairs and character n-grams inside words. Such vectors know
spelling, not meaning: they tell apart *kinds* of prompt inside one structural signature, which
already fixes tools, format and system prompt.
"""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.tasks.masking import stable_words
from infra.tasks.signature import items, message_text, role_of

DIMENSIONS = 512
MAX_PROMPT_WORDS = 400
MAX_PROMPT_CHARACTERS = 20_000
MAX_KNOWN_WORDS = 8192
MAX_KNOWN_PAIRS = 16384
GRAMS_WEIGHT = 0.7
PAIR_WEIGHT = 0.4
"""Of a word's character n-grams together, and of a pair of words, against a word's own weight of 1."""
LONG_WORDS, FIRST_WORDS, LAST_WORDS = 40, 16, 12
END_WEIGHT = 3.0
"""Of the first and last words of a text that has at least LONG_WORDS."""
_GRAM_PREFIX = zlib.crc32(b"c ")
_SPREAD = 2654435761
_PIECES = re.compile(r"[^\W_]+", re.UNICODE)

Vector = NDArray[np.float32]


def prompt_text(request: Any) -> str:
    """The text a call is assigned by: its last run of user messages.

    All steps of an agent's loop answer the same user message, so they get the same embedding and
    stay in one task. Never raises; a request without user messages gives the empty string.
    """
    messages = items(request.get("messages")) if isinstance(request, Mapping) else []
    last: list[str] = []
    for message in reversed(messages):
        role = role_of(message)
        if role == "user":
            last.append(message_text(message))
        elif last and role:
            break
    return "\n".join(reversed(last))[:MAX_PROMPT_CHARACTERS]


def embed(texts: Iterable[str], dimensions: int = DIMENSIONS) -> Vector:
    """Unit vectors, float32, shape (number of texts, dimensions).

    A text without stable words (empty, or only numbers and placeholders) is the zero vector, whose
    cosine distance to everything is 1.
    """
    rows = [_row(text, dimensions) for text in texts]
    if len(rows) == 1:
        return rows[0][np.newaxis]
    return np.stack(rows) if rows else np.zeros((0, dimensions), dtype=np.float32)


def cosine_distances(vectors: Vector, centroid: Vector | Sequence[float]) -> NDArray[np.float64]:
    """1 - cosine of each unit row of ``vectors`` to the unit vector ``centroid``; 0 to 2."""
    centre = np.asarray(centroid, dtype=np.float64)
    return 1.0 - np.asarray(vectors, dtype=np.float64) @ centre


class Centred(Protocol):
    """What a task needs to be found by embedding."""

    @property
    def centroid(self) -> Sequence[float] | NDArray[np.float64]: ...

    @property
    def radius(self) -> float: ...


T = TypeVar("T", bound=Centred)
F = TypeVar("F")


def nearest(embedding: Vector | Sequence[float], tasks: Iterable[T]) -> T | None:
    """The task whose centroid is closest, among those whose radius the embedding lies within.

    Ties go to the first task given. None: nobody claims it (the caller then asks the teacher).
    Tasks without a centroid, or with one of another dimension, are passed over.
    """
    vector = np.asarray(embedding, dtype=np.float64)
    best: T | None = None
    best_distance = math.inf
    for task in tasks:
        if len(task.centroid) != vector.shape[0]:
            continue
        distance = 1.0 - float(vector @ np.asarray(task.centroid, dtype=np.float64))
        if distance <= task.radius + 1e-9 and distance < best_distance:
            best, best_distance = task, distance
    return best


def _row(text: str, dimensions: int) -> Vector:
    words: list[str] = []
    for token in stable_words(text, MAX_PROMPT_WORDS):
        words += (token,) if token.isalnum() else _PIECES.findall(token)
    # An instruction stands first or last; what it is about fills the rest of a long prompt.
    loud, loud_pairs = _ends(words)
    places: list[bytes] = []
    weights: list[bytes] = []
    for word, count in _counted(words).items():
        where, much = _word(word, dimensions)
        places.append(where)
        if count > 1 or word in loud:
            much = _times(much, _often(count) * (END_WEIGHT if word in loud else 1.0))
        weights.append(much)
    pairs = _counted(pairwise(words))
    signed = [_pair(first, second, dimensions) for first, second in pairs]
    places.append(array("q", [abs(place) - 1 for place in signed]).tobytes())
    heights = [
        PAIR_WEIGHT
        if count == 1 and pair not in loud_pairs
        else PAIR_WEIGHT * _often(count) * (END_WEIGHT if pair in loud_pairs else 1.0)
        for pair, count in pairs.items()
    ]
    weights.append(array("d", map(math.copysign, heights, signed)).tobytes())
    # Adds one after the other, in this order: the same sums to the last bit wherever they are made.
    vector = np.bincount(
        np.frombuffer(b"".join(places), dtype=np.int64),
        np.frombuffer(b"".join(weights)),
        dimensions,
    )
    norm = math.sqrt(float(vector @ vector))
    return (vector / norm if norm > 0 else vector).astype(np.float32)


def _counted(features: Iterable[F]) -> dict[F, int]:
    """As a ``Counter``, whose making takes longer than counting one prompt's words."""
    counts: dict[F, int] = {}
    for feature in features:
        counts[feature] = counts.get(feature, 0) + 1
    return counts


def _often(count: int) -> float:
    """What a repeated word says: little more than one."""
    return 1 + math.log(count)


def _times(weights: bytes, factor: float) -> bytes:
    return (np.frombuffer(weights) * factor).tobytes()


def _ends(words: list[str]) -> tuple[set[str], set[tuple[str, str]]]:
    """Words and pairs of words at both ends of a long text; none of a short one."""
    if len(words) < LONG_WORDS:
        return set(), set()
    ends = words[:FIRST_WORDS], words[-LAST_WORDS:]
    return {*ends[0], *ends[1]}, {*pairwise(ends[0]), *pairwise(ends[1])}


@lru_cache(maxsize=MAX_KNOWN_WORDS)
def _word(word: str, dimensions: int) -> tuple[bytes, bytes]:
    """Where a word and its character n-grams count, and how much: the memory of arrays of int64 and
    float64. The same words come in call after call, and small memory is near memory."""
    sums = _gram_sums(word[:40])
    # Short words are mostly function words.
    weight = min(len(word), 6) / 6
    share = GRAMS_WEIGHT * weight / math.sqrt(len(sums)) if sums else 0.0
    # As ``_folded``, which is called less often.
    own, *spread = [
        (value * _SPREAD) & 0xFFFFFFFF for value in (zlib.crc32(b"w " + _spelt(word)), *sums)
    ]
    places = array("q", [(value >> 1) % dimensions for value in (own, *spread)])
    weights = [share if value >> 31 else -share for value in spread]
    return places.tobytes(), array("d", [weight if own >> 31 else -weight, *weights]).tobytes()


@lru_cache(maxsize=MAX_KNOWN_PAIRS)
def _pair(first: str, second: str, dimensions: int) -> int:
    return _folded(zlib.crc32(_spelt(f"p {first} {second}")), dimensions)


def _gram_sums(word: str) -> list[int]:
    """Check sums of a word's n-grams of three and four characters, each after a prefix of its own."""
    marked = f"^{word}$"
    if marked.isascii():
        letters = marked.encode()
        cuts = [letters[i : i + n] for n in (3, 4) for i in range(len(letters) - n + 1)]
    else:
        cuts = [_spelt(marked[i : i + n]) for n in (3, 4) for i in range(len(marked) - n + 1)]
    return [zlib.crc32(cut, _GRAM_PREFIX) for cut in cuts]


def _spelt(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _folded(check_sum: int, dimensions: int) -> int:
    """Where a feature counts: its dimension plus one, negative where it counts against."""
    # crc32 is linear in its input; the multiplication (Knuth's constant) spreads it over all bits.
    value = (check_sum * _SPREAD) & 0xFFFFFFFF
    index = (value >> 1) % dimensions + 1
    return index if value >> 31 else -index
