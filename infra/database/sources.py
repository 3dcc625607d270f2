"""Which log objects a data set version was made of, so that both can be found from the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from infra.database.tables import dataset_sources

MAX_KEY_CHARACTERS = 1000
PAGE = 5000
"""Rows per statement; a data set may have a hundred thousand sources."""


def sources_in(manifest: Mapping[str, Any]) -> list[str]:
    """The log objects that a data set's manifest names as its parents, sorted, each once."""
    parents = manifest.get("parents")
    listed = parents.get("log_objects") if isinstance(parents, Mapping) else None
    if not isinstance(listed, list | tuple):
        return []
    return sorted({str(key) for key in listed if 0 < len(str(key)) <= MAX_KEY_CHARACTERS})


def insert_sources(connection: Connection, digest: str, manifest: Mapping[str, Any]) -> int:
    """Add the sources of a version that was inserted in the caller's transaction; how many."""
    keys = sources_in(manifest)
    for start in range(0, len(keys), PAGE):
        page = keys[start : start + PAGE]
        connection.execute(
            insert(dataset_sources),
            [{"dataset_digest": digest, "object_key": key} for key in page],
        )
    return len(keys)


def read_sources(
    connection: Connection, digest: str, *, after: str = "", limit: int | None = None
) -> list[str]:
    """Keys of log objects, in order, those above ``after``."""
    query = (
        select(dataset_sources.c.object_key)
        .where(dataset_sources.c.dataset_digest == digest, dataset_sources.c.object_key > after)
        .order_by(dataset_sources.c.object_key)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())
