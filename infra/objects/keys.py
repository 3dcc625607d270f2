"""What a key may look like: the same rules for every store, so that data moves between them."""

from __future__ import annotations

from infra.objects.store import ObjectStoreError

RESERVED = ".nightschool"
MAX_KEY_BYTES = 1000


class InvalidKey(ObjectStoreError, ValueError):
    """The key is absolute, climbs out by ``..``, or cannot be kept by every store."""


def check_key(key: str) -> str:
    """The key itself, when it is a relative POSIX path that every store can hold.

    Raises:
        InvalidKey: with the rule that it breaks.
    """
    problem = _problem(key)
    if problem:
        raise InvalidKey(f"the key {key[:200]!r} {problem}: use a relative path such as logs/v1/a")
    return key


def _problem(key: str) -> str | None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not key or size > MAX_KEY_BYTES:
        return f"is empty or longer than {MAX_KEY_BYTES} bytes"
    if key.startswith("/"):
        return "is absolute"
    if "\\" in key or any(ord(character) < 32 for character in key):
        return "has a backslash or a control character"
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty, '.' or '..' segment"
    if any(len(part.encode()) > 255 for part in parts):
        return "has a segment above 255 bytes"
    if parts[0] == RESERVED:
        return f"is in {RESERVED}/, which the store keeps for itself"
    return None
