"""The keys that sign links and seal the secrets of webhook senders: from the settings, or a file.

With ``[hooks] keys`` in the settings every process of every machine has the same ones. Without, the
first process that needs one writes ``[hooks] key_file``, which serves the processes of one machine.
"""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path

from infra.files import sync_folder
from infra.settings.operating import MIN_KEY_CHARACTERS, Hooks

MAX_FILE_BYTES = 64 << 10


class SigningKeyError(Exception):
    """There is no usable key, and why."""


def signing_keys(settings: Hooks) -> tuple[str, ...]:
    """The keys, the one that signs first; the others are only still believed. At least one.

    Raises SigningKeyError: the key file cannot be read or written, or holds no usable key.
    """
    if settings.keys:
        return tuple(key.get_secret_value() for key in settings.keys)
    path = settings.key_file
    try:
        if not path.exists():
            _create(path)
        with path.open("rb") as stream:
            lines = stream.read(MAX_FILE_BYTES).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SigningKeyError(
            f"[hooks] key_file {path} cannot be used ({type(error).__name__}): set [hooks] keys, or "
            "make its folder writable"
        ) from None
    if not lines or min(map(len, lines)) < MIN_KEY_CHARACTERS:
        raise SigningKeyError(
            f"[hooks] key_file {path} holds no key of {MIN_KEY_CHARACTERS} characters or more: "
            "restore it, or remove it for a new one (links and sealed secrets of the old are lost)"
        )
    return tuple(lines)


def _create(path: Path) -> None:
    """Write a new key, for the owner only; of several processes at once one wins, and all use its."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_urlsafe(48) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            path.hardlink_to(part)
        except FileExistsError:
            return
    finally:
        part.unlink()
    sync_folder(path.parent)
