"""What could not be read: which row of which source, by which reader, and why. Never its text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from infra.calls.codec import Problem
from infra.objects.store import ObjectStore
from trainers.importing.sources import OWN_STORE
from trainers.readers.formats import OWN_LOG
from trainers.readers.reading import Read

PREFIX = "quarantine/v1/"
IMPORT_PREFIX = f"{PREFIX}import/"
MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class Entry:
    reader: str
    location: str
    """The source, as the import named it; ``store:`` is our own object store."""
    object: str
    """Key within the source."""
    etag: str
    """Empty: not known."""
    row: str
    """``line 3``; empty: the object as a whole."""
    reason: str
    position: str = ""
    """Where in the row."""
    part: int = 0
    """Which of the records of the row, counted from 0."""
    tenant: str = "default"

    @property
    def id(self) -> str:
        said = f"{self.location}\0{self.object}\0{self.row}\0{self.reason}\0{self.position}"
        return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:12]


class ImportQuarantine:
    """The rows of one bundle that could not be read."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self.key = f"{IMPORT_PREFIX}{name}.jsonl"
        self._entries: list[Entry] = []
        self.size = 0

    def add(self, entry: Entry) -> None:
        self.size += 1
        if len(self._entries) < MAX_ENTRIES:
            self._entries.append(entry)

    def close(self) -> None:
        if self._entries:
            write(self._store, self.key, self._entries, self.size - len(self._entries))


def write(store: ObjectStore, key: str, entries: Sequence[Entry], more: int = 0) -> None:
    """Replace a quarantine's list; an empty one is deleted."""
    if not entries and not more:
        store.delete(key)
        return
    rows: list[dict[str, Any]] = [asdict(entry) for entry in entries]
    if more:
        rows.append({"reason": f"and {more} more lines"})
    store.put(key, b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


@dataclass(frozen=True)
class Listed:
    key: str
    """Of the quarantine's object."""
    entries: tuple[Entry, ...]
    unnamed: int
    """How many more there were than are kept by name."""


def quarantines(store: ObjectStore) -> Iterator[Listed]:
    """Every quarantine, those of imports and those of ingest, one object at a time."""
    for item in store.list(PREFIX):
        entries = []
        unnamed = 0
        for line in store.get(item.key).splitlines():
            row = orjson.loads(line)
            if row["reason"].startswith("and ") and "row" not in row and "line" not in row:
                unnamed += int(row["reason"].split()[1])
                continue
            entries.append(Entry(**row) if "reader" in row else _of_ingest(row))
        yield Listed(item.key, tuple(entries), unnamed)


def entry(read: Read, problem: Problem, tenant: str, **about: str) -> Entry:
    return Entry(
        row=read.position,
        part=read.part,
        reason=problem.reason,
        position=problem.position,
        tenant=tenant,
        **about,
    )


def _of_ingest(row: dict[str, Any]) -> Entry:
    line = row.get("line") or 0
    return Entry(
        reader=OWN_LOG,
        location=OWN_STORE,
        object=row["object"],
        etag="",
        row=f"line {line}" if line else "",
        reason=row["reason"],
        position=row.get("position") or "",
    )
