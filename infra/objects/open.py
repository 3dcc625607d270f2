"""From ``[storage]`` to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from infra.objects.directory import DirectoryStore
from infra.objects.store import ObjectStore, ObjectStoreError
from infra.settings.serving import Storage


def open_store(settings: Storage) -> ObjectStore:
    """A directory, or the bucket of an ``s3://bucket/prefix`` URL.

    Raises:
        ObjectStoreError: the URL is of another kind, or the directory cannot be made.
    """
    parts = urlsplit(settings.url)
    if parts.scheme in ("", "file"):
        folder = parts.path if parts.scheme else settings.url
        return DirectoryStore(Path(folder), max_object_bytes=settings.max_object_bytes)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ObjectStoreError("[storage] url names no bucket: use s3://bucket/prefix")
        from infra.objects.s3 import open_s3

        return open_s3(settings, bucket=parts.netloc, prefix=parts.path.strip("/"))
    raise ObjectStoreError(
        f"[storage] url begins with {parts.scheme}://: use a directory or s3://bucket/prefix"
    )
