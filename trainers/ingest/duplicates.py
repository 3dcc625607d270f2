"""Which calls say the same: exact copies of a whole exchange, and near copies by MinHash.

Broder, "On the resemblance and containment of documents" (1997). The steps of one agent loop
contain each other and are *not* duplicates: only exchanges of the same structure and the same
number of messages are compared, by what is new in them (after the last assistant message) and by
the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.prompting.template import content_text
from infra.tasks.signature import items, role_of

PERMUTATIONS = 64
SHINGLE_WORDS = 3
MAX_WORDS = 1000
MAX_BUCKET = 64
"""Candidates compared with one call at most, so that a flood of near copies stays linear."""


@dataclass(frozen=True)
class Exchange:
    """What two calls are compared by."""

    structure: str
    """Compared only within: signature digest and number of messages."""
    digest: str
    """sha256 of the whole exchange; equal: exact copies."""
    text: str
    """New messages and the answer."""


def exchange(
    request: Mapping[str, Any], answer: Mapping[str, Any] | None, signature: str
) -> Exchange:
    """The comparable form of one call. Total: odd messages count as empty."""
    messages = items(request.get("messages"))
    new: list[str] = []
    for message in reversed(messages):
        if role_of(message) == "assistant":
            break
        if role_of(message) not in ("system", "developer"):
            new.append(_said(message))
    said = "\n".join([*reversed(new), _said(answer or {})])
    whole = {
        "messages": messages,
        "answer": _said(answer or {}),
        "structure": signature,
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()
    return Exchange(f"{signature}/{len(messages)}", digest, said)


def group(exchanges: Sequence[Exchange], similarity: float) -> list[int]:
    """For each exchange the index of the first one it repeats, exactly or nearly (or its own).

    Args:
        similarity: least Jaccard similarity (0 to 1] of word 3-shingles, as MinHash estimates it.
    """
    first: dict[str, int] = {}
    leaders = [first.setdefault(item.digest, index) for index, item in enumerate(exchanges)]
    by_structure: defaultdict[str, list[int]] = defaultdict(list)
    for index in first.values():
        by_structure[exchanges[index].structure].append(index)
    near: dict[int, int] = {}
    for indices in by_structure.values():
        if len(indices) > 1:
            near.update(_near([(i, exchanges[i].text) for i in indices], similarity))
    return [near.get(leader, leader) for leader in leaders]


def weights(leaders: Sequence[int]) -> list[float]:
    """One over the size of each one's group: a group of copies weighs as much as one call."""
    sizes: defaultdict[int, int] = defaultdict(int)
    for leader in leaders:
        sizes[leader] += 1
    return [1 / sizes[leader] for leader in leaders]


def repeated(asked: Sequence[Exchange], of: Sequence[Exchange], similarity: float) -> list[bool]:
    """For each of ``asked`` whether it repeats one of the others, exactly or nearly; each is hashed once."""
    from datasketch import MinHash

    exact = {item.digest for item in of}
    found = [item.digest in exact for item in asked]
    kept: defaultdict[str, set[str]] = defaultdict(set)
    for item in of:
        kept[item.structure].add(item.text)
    left: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(asked):
        if not found[index] and item.structure in kept:
            left[item.structure].append(index)
    bands, rows = _bands(similarity)
    for structure, indices in left.items():
        texts = [*sorted(kept[structure]), *(asked[index].text for index in indices)]
        hashes = MinHash.bulk([_shingles(text) for text in texts], num_perm=PERMUTATIONS)
        first = len(kept[structure])
        buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        for position in range(first):
            for key in _keys(hashes[position].hashvalues, bands, rows):
                buckets[key].append(position)
        for position, index in enumerate(indices, first):
            keys = _keys(hashes[position].hashvalues, bands, rows)
            candidates = {c for key in keys for c in buckets.get(key, ())}
            found[index] = any(
                hashes[position].jaccard(hashes[c]) >= similarity for c in candidates
            )
    return found


def _keys(values: Any, bands: int, rows: int) -> list[tuple[int, bytes]]:
    return [(b, values[b * rows : (b + 1) * rows].tobytes()) for b in range(bands)]


def _near(texts: Sequence[tuple[int, str]], similarity: float) -> dict[int, int]:
    from datasketch import MinHash

    hashes = MinHash.bulk([_shingles(text) for _, text in texts], num_perm=PERMUTATIONS)
    bands, rows = _bands(similarity)
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for position, (index, _) in enumerate(texts):
        keys = _keys(hashes[position].hashvalues, bands, rows)
        # Compared with leaders only: chains of ever so slightly different texts do not join up.
        candidates = sorted({c for key in keys for c in buckets.get(key, ())})[:MAX_BUCKET]
        match = next(
            (c for c in candidates if hashes[position].jaccard(hashes[c]) >= similarity), None
        )
        if match is not None:
            found[index] = texts[match][0]
            continue
        for key in keys:
            if len(buckets[key]) < MAX_BUCKET:
                buckets[key].append(position)
    return found


def _bands(similarity: float) -> tuple[int, int]:
    """Bands and rows whose collision threshold, (1/bands)^(1/rows), lies safely below."""
    for rows in (16, 8, 4, 2):
        bands = PERMUTATIONS // rows
        if (1 / bands) ** (1 / rows) <= similarity - 0.05:
            return bands, rows
    return PERMUTATIONS, 1


def _shingles(text: str) -> list[bytes]:
    words = text.lower().split()[:MAX_WORDS]
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return [
        " ".join(words[i : i + SHINGLE_WORDS]).encode("utf-8", "surrogatepass")
        for i in range(count)
    ]


def _said(message: Any) -> str:
    """Content and tool calls of a message as text, without the calls' random ids."""
    if not isinstance(message, Mapping):
        return ""
    content = message.get("content")
    texts = [content_text(content) if isinstance(content, str | list) else ""]
    for call in items(message.get("tool_calls")):
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            texts.append(f"{function.get('name')} {function.get('arguments')}")
    return "\n".join(text for text in texts if text)
