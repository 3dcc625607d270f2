"""Which source objects are taken in, in the same table in which ingest keeps its log objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from infra.database.open import Database
from infra.database.tables import ingested_objects
from infra.database.writes import insert_if_absent
from infra.objects.store import ObjectInfo
from trainers.importing.bundle import Origin
from trainers.ingest import claims

if TYPE_CHECKING:
    from trainers.importing.importing import ImportReport

HOLDER = "import"


def unfinished(
    database: Database, origin: Origin, objects: Sequence[ObjectInfo]
) -> list[ObjectInfo]:
    """Those of a page that no import has committed."""
    rows = {_row(origin, item): item for item in objects}
    return [rows[item] for item in claims.unfinished(database, list(rows))]


def commit(
    database: Database,
    origin: Origin,
    objects: Sequence[ObjectInfo],
    report: ImportReport,
    now: datetime,
) -> None:
    """All of a bundle's members in one transaction; one that is there already stays."""
    counts = {"imported": report.stored, "import_quarantined": report.quarantined.total()}
    with database.begin() as connection:
        for number, item in enumerate(objects):
            row = _row(origin, item)
            values = {
                "key": claims.row_key(row.key),
                "etag": row.etag,
                "state": claims.DONE,
                "holder": HOLDER,
                "claimed_until": now,
                "finished": now,
                # The bundle's counts stand with its first member.
                "counts": counts if number == 0 else {},
            }
            insert_if_absent(connection, ingested_objects, values)


def _row(origin: Origin, item: ObjectInfo) -> ObjectInfo:
    named = f"{claims.IMPORTED}{origin.format}:{origin.tenant}:{origin.location}#{item.key}"
    return replace(item, key=named)
