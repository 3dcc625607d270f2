"""Instructions that prompts have in common: what tells two tasks apart that are about the same things.

Where the system prompt says nothing of the task, the user message does: at its beginning or its end, in the
same words again and again. Two groups that share their subject but not their instruction are two tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from infra.tasks.embedding import FIRST_WORDS, LAST_WORDS

PHRASE_WORDS = 3
LEAST_SHARE = 0.8
"""Of a group's prompts, that have a phrase of its instruction."""
LEAST_SHARED = 0.5
"""Of the smaller instruction's phrases, that two wordings of one instruction have in common."""
LONG_SYSTEM_WORDS = 12
"""A system prompt of so many words says itself what is to be done."""

Phrases = frozenset[str]


def ends_of(prompt: str) -> Phrases:
    """Phrases at both ends of a masked prompt."""
    words = prompt.split()
    return frozenset(
        " ".join(part[place : place + PHRASE_WORDS])
        for part in (words[:FIRST_WORDS], words[-LAST_WORDS:])
        for place in range(len(part) - PHRASE_WORDS + 1)
    )


def instruction(prompts: Sequence[Phrases]) -> Phrases:
    """The phrases that nearly all have."""
    counts = Counter(phrase for phrases in prompts for phrase in phrases)
    least = LEAST_SHARE * len(prompts)
    return frozenset(phrase for phrase, count in counts.items() if count >= least)


def ask_otherwise(one: Phrases, other: Phrases) -> bool:
    """Whether both have an instruction, and not the same."""
    if not one or not other:
        return False
    return len(one & other) < LEAST_SHARED * min(len(one), len(other))


def told_by_the_prompt(system_words: Iterable[str]) -> bool:
    """Whether a system prompt of these (first) words leaves it to the user to say what is to be done."""
    return sum(1 for _ in system_words) < LONG_SYSTEM_WORDS
