"""What the judge's reply means: one JSON object of the form asked for, or a failure. Pure.

Nothing is guessed from prose. A number is never cut out of a longer one, and a score outside its scale,
a key too many or too few, a number in quotation marks: each is a failure with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Literal, cast

Choice = Literal["first", "second", "tie"]
_CHOICES = ("first", "second", "tie")
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)
MAX_CHARACTERS = 10_000


class Unreadable(Exception):
    """The reply is no verdict; the message says why, and quotes nothing of it."""


def read_grades(reply: str, criteria: Collection[str], scale: int) -> dict[str, int]:
    """A whole number from 1 to ``scale`` for each criterion. Raises Unreadable."""
    found = _object(reply, set(criteria))
    for name, value in found.items():
        if type(value) is not int:
            raise Unreadable(f"the score of {name} is no whole number")
        if not 1 <= value <= scale:
            raise Unreadable(f"the score of {name} is outside 1 to {scale}")
    return found


def read_choice(reply: str) -> Choice:
    """Which of the two is better. Raises Unreadable."""
    better = _object(reply, {"better"})["better"]
    if better not in _CHOICES:
        raise Unreadable("`better` is neither first, second nor tie")
    return cast(Choice, better)


def _object(reply: str, keys: set[str]) -> dict[str, Any]:
    text = reply.strip()
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("the reply is endless")
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Unreadable("the reply is not one JSON object") from None
    if not isinstance(value, dict):
        raise Unreadable("the reply is not one JSON object")
    if set(value) != keys:
        raise Unreadable("the reply has other keys than those asked for")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found
