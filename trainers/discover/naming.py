"""Readable task ids and names: from the tag, the tools, the response schema, or the words."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from trainers.ingest.features import Features

MAX_ID_CHARACTERS = 41
HASH_CHARACTERS = 6
# Words that say nothing about what a task is.
# fmt: off
_EMPTY = frozenset({
    "a", "about", "all", "an", "and", "answer", "any", "are", "as", "assistant", "at", "be", "by",
    "can", "do", "does", "exactly", "following", "for", "from", "given", "helpful", "how", "i",
    "if", "in", "into", "is", "it", "its", "me", "my", "never", "not", "of", "on", "one", "only",
    "or", "our", "please", "reply", "respond", "so", "that", "the", "their", "them", "then",
    "there", "these", "they", "this", "to", "use", "user", "was", "we", "what", "when", "which",
    "who", "will", "with", "you", "your", "you're",
})
# fmt: on


def task_id(words: Iterable[str], identity: str) -> str:
    """``words-of-the-task-1a2b3c``: at most 41 characters of [a-z0-9-], from a letter or digit.

    Args:
        words: what a person should read in it; may be empty.
        identity: what makes the task this one; the same identity gives the same hash.
    """
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_CHARACTERS]
    slug = ""
    for word in words:
        # Names keep their parts apart: get_order and GetOrder become get-order.
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", word)
        part = re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")
        longer = f"{slug}-{part}" if slug and part else slug or part
        if len(longer) > MAX_ID_CHARACTERS - HASH_CHARACTERS - 1:
            break
        slug = longer
    return f"{slug or 'task'}-{digest}"


def describe(
    members: Sequence[Features], medoid: str, tag: str | None, split: bool
) -> tuple[list[str], str]:
    """(words for the id, name for people) of a group of calls with one structure or one tag.

    Args:
        medoid: masked words of the most typical prompt.
        split: whether other tasks share the structure, so that only the prompts tell them apart.
    """
    if tag:
        return [tag], tag[:200]
    first = members[0]
    used = [name for name, _ in _actions(members).most_common(3)]
    offered = json.loads(first.tools)
    subject = content_words(first.system_words, 4)
    typical = content_words(medoid, 4)
    if offered:
        words = used[:2] or offered[:2]
        shown = ", ".join(used or offered[:3])
        more = len(offered) - len(used or offered[:3])
        name = f"tools: {shown}" + (f" and {more} more offered" if more > 0 else "")
    elif first.response_name:
        words, name = [first.response_name], f"JSON: {first.response_name}"
    else:
        words = [] if split else subject[:3]
        words = words or typical[:3] or subject[:3]
        name = "text: " + " ".join(words) if words else "text"
    if typical and (split or not first.response_name):
        name += f' ("{" ".join(medoid.split()[:8])}")'
    return (words + typical[:2] if split and offered else words), name[:200]


def content_words(text: str, limit: int) -> list[str]:
    """The first words of a masked text that carry meaning."""
    words = (re.sub(r"[^\w-]+", "", word) for word in text.split())
    kept = [word for word in words if word.isascii() and len(word) > 1 and word not in _EMPTY]
    return list(dict.fromkeys(kept))[:limit]


def _actions(members: Sequence[Features]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for member in members:
        if member.action.startswith("call "):
            counts.update(member.action[5:].split())
    return counts
