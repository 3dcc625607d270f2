"""Quarantine again: read the rows that could not be read once more, where they still lie."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime

from infra.calls.codec import Problem
from infra.calls.record import utc_now
from infra.objects.store import ObjectInfo, ObjectMissing, ObjectStore, ObjectStoreError
from infra.settings.model import Settings
from trainers.importing.importing import SourceChanged, read_member
from trainers.importing.log_writer import LogWriter
from trainers.importing.quarantined import Entry, Listed, quarantines, write
from trainers.importing.sources import open_source
from trainers.ingest.privacy import PrivacyCheck
from trainers.ingest.taking import timely
from trainers.readers.reader import Skipped
from trainers.readers.reading import Read

GONE = "the source is not there any more, or is another one now: import it again"
AWAY = "the source cannot be read now: try it again when it can"
SPAN = "span "


@dataclass
class RerunReport:
    tried: int = 0
    stored: int = 0
    """Records that could be read now; ingest takes them in next."""
    settled: int = 0
    """Entries that are out of quarantine."""
    left: Counter[str] = field(default_factory=Counter)
    """Entries that stay, by reason."""


def rerun(
    store: ObjectStore,
    settings: Settings,
    wanted: Collection[str] = (),
    *,
    now: datetime | None = None,
) -> RerunReport:
    """Try entries again, and take those out of quarantine that can be read now.

    What was read goes to our log under keys named by the quarantine's content, before the entries
    are taken out: killed between, the same is written again.

    Args:
        wanted: ids of entries; empty: all.

    Raises:
        ObjectStoreError: our store cannot be read or written.
    """
    report = RerunReport()
    for listed in list(quarantines(store)):
        chosen = [entry for entry in listed.entries if not wanted or entry.id in wanted]
        if chosen:
            _again(store, settings, listed, chosen, report, now or utc_now())
    return report


def _again(
    store: ObjectStore,
    settings: Settings,
    listed: Listed,
    chosen: list[Entry],
    report: RerunReport,
    now: datetime,
) -> None:
    said = "\n".join(entry.id for entry in chosen)
    digest = hashlib.sha256(f"{listed.key}\n{said}".encode()).hexdigest()[:32]
    writer = LogWriter(store, f"rerun-{digest}")
    privacy = PrivacyCheck.of(settings.anonymizer)
    groups: defaultdict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in chosen:
        groups[entry.location, entry.object, entry.etag, entry.reader, entry.tenant].append(entry)
    tried = set(chosen)
    stays = [entry for entry in listed.entries if entry not in tried]
    for entries in groups.values():
        report.tried += len(entries)
        left = _object(store, settings, entries, writer, privacy, report, now)
        report.settled += len(entries) - len(left)
        stays += left
    writer.flush()
    write(store, listed.key, stays, listed.unnamed)


def _object(
    store: ObjectStore,
    settings: Settings,
    entries: list[Entry],
    writer: LogWriter,
    privacy: PrivacyCheck,
    report: RerunReport,
    now: datetime,
) -> list[Entry]:
    """The entries of one source object that stay."""
    about = entries[0]
    by_row: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_row[entry.row].append(entry)
    still: dict[Entry, str] = {entry: entry.reason for entry in entries}
    try:
        source = open_source(about.location, settings.storage, store)
        # An object that is gone, or another now, must not be read for what it was.
        info = source.info(about.object)
        if about.etag not in ("", info.etag):
            raise SourceChanged(GONE)
        member = ObjectInfo(about.object, info.size, info.etag)
        for read in read_member(settings, source, member, about.reader, about.tenant):
            meant = [
                entry
                for entry in (*by_row.get(read.position, ()), *by_row.get("", ()))
                if _is_meant(entry, read)
            ]
            if not meant:
                continue
            item = timely(read.item, now)
            if isinstance(item, Problem):
                still.update(dict.fromkeys(meant, item.reason))
                continue
            for entry in meant:
                still.pop(entry, None)
            checked = None if isinstance(item, Skipped) else privacy.check(item)
            if checked is not None:
                writer.add(checked)
                report.stored += 1
    except (ObjectStoreError, SourceChanged, OSError) as error:
        # Whatever was read of it is written again, the same, by the next try.
        gone = isinstance(error, ObjectMissing | SourceChanged)
        report.left[GONE if gone else AWAY] += len(entries)
        return entries
    report.left.update(still.values())
    return [replace(entry, reason=reason) for entry, reason in still.items()]


def _is_meant(entry: Entry, read: Read) -> bool:
    """A bad span is one record of its row; any other problem ended the row."""
    if entry.position.startswith(SPAN):
        return read.part == entry.part
    return read.part >= entry.part
