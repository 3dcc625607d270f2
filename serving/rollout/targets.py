"""Whom a person means by the name given for a rollback."""

from __future__ import annotations

from collections.abc import Sequence

from serving.registry.errors import RouteInvalid
from serving.registry.records import TEACHER

MIN_PREFIX = 4
_NAMED_CHARACTERS = 16
"""Of the digest, in an adapter's name."""


def resolve(given: str, known: Sequence[str]) -> str:
    """The one of ``known`` that ``given`` names: by name, by digest, or by the start of a digest.

    What names none is returned as it is, for the caller to refuse. Raises RouteInvalid for the start
    of more than one digest.
    """
    if given == TEACHER or given in known:
        return given
    start = given.rpartition("@")[2].lower()[:_NAMED_CHARACTERS]
    if len(start) < MIN_PREFIX:
        return given
    found = sorted({name for name in known if name.rpartition("@")[2].startswith(start)})
    if len(found) > 1:
        raise RouteInvalid(f"{given} is the start of more than one digest: {', '.join(found)}")
    return found[0] if found else given
