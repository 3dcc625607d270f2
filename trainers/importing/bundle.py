"""What one step of an import takes: one large source object, or many small ones.

A logger that writes an object per call would else make a log object, and then a Parquet file, per
call. A bundle is written down before it is read: killed anywhere, the next run does the same bundle
again, with the same records under the same keys, before it makes new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from infra.objects.store import ObjectInfo, ObjectStore

PENDING_PREFIX = "imports/v1/"
MAX_BYTES = 16 << 20
MAX_MEMBERS = 1000


@dataclass(frozen=True)
class Origin:
    """What an import was asked for. Another format or tenant is another import."""

    format: str
    location: str
    tenant: str


@dataclass(frozen=True)
class Bundle:
    origin: Origin
    members: tuple[ObjectInfo, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._stored()).hexdigest()[:32]

    @property
    def key(self) -> str:
        return f"{PENDING_PREFIX}{self.digest}.json"

    def begin(self, store: ObjectStore) -> None:
        store.put(self.key, self._stored())

    def end(self, store: ObjectStore) -> None:
        store.delete(self.key)

    def _stored(self) -> bytes:
        return orjson.dumps(asdict(self))


def bundles(objects: Iterable[ObjectInfo], origin: Origin) -> Iterator[Bundle]:
    """The objects in their order, as many as fit together."""
    members: list[ObjectInfo] = []
    size = 0
    for item in objects:
        if members and (size + item.size > MAX_BYTES or len(members) >= MAX_MEMBERS):
            yield Bundle(origin, tuple(members))
            members, size = [], 0
        members.append(item)
        size += item.size
    if members:
        yield Bundle(origin, tuple(members))


def pending(store: ObjectStore) -> Iterator[Bundle]:
    """Bundles that were begun and not ended, of whatever source."""
    for item in list(store.list(PENDING_PREFIX)):
        value: dict[str, Any] = orjson.loads(store.get(item.key))
        members = tuple(ObjectInfo(**member) for member in value["members"])
        yield Bundle(Origin(**value["origin"]), members)
