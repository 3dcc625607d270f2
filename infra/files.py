"""Files that a reader finds whole: the old text or the new one, also after a crash."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, text: str | Iterable[bytes]) -> None:
    """Replace a file's text in one step, on the disk when this returns.

    Args:
        text: whole, or piece by piece in UTF-8 where it is too long to be held twice.

    Raises OSError; the old text then stays.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            for piece in (text.encode(),) if isinstance(text, str) else text:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk: a power cut may forget that of a file whose content is safe."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
