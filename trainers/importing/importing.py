"""Import: every source object once, anonymized before the first byte is stored.

Effects per bundle, in order: the bundle is written down, its records go to our log and what cannot
be read to quarantine (keys named by the bundle's digest, so that doing it again overwrites the
same), its members are committed in one transaction, the note is deleted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice

from infra.calls.codec import LOG_PREFIX, Problem
from infra.calls.record import CallRecord, LogRecord, utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.objects.store import ObjectInfo, ObjectMissing, ObjectStore, ObjectStoreError
from infra.settings.model import Settings
from trainers.importing.bundle import Bundle, Origin, bundles, pending
from trainers.importing.commits import commit, unfinished
from trainers.importing.log_writer import LogWriter
from trainers.importing.quarantined import IMPORT_PREFIX, ImportQuarantine, entry
from trainers.importing.sources import UNREADABLE, Source, open_source
from trainers.ingest.privacy import PrivacyCheck
from trainers.ingest.taking import timely
from trainers.readers.reader import Skipped
from trainers.readers.reading import Read, read_source

LIST_PAGE = 500
SAID_EVERY = 2000
WRITER = "import-"
MAX_DOWN = 3
"""Failures of one bundle after which its source counts as away."""
Progress = Callable[[str], None]


@dataclass
class ImportReport:
    """What an import did, or (a dry run) would do."""

    objects: int = 0
    known: int = 0
    """Source objects that an earlier import has taken in."""
    failed: int = 0
    """Source objects that could not be had, or changed while they were read: for the next run."""
    read: int = 0
    """Calls, feedback and rows that were looked at."""
    stored: int = 0
    failures: int = 0
    """Of the stored calls, those that the model's provider did not answer."""
    duplicates: int = 0
    """Records whose id had come before in the same run's bundle."""
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason: rows that are no calls."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """By reason."""
    formats: Counter[str] = field(default_factory=Counter)
    """By reader: the records that it made."""
    personal_data: Counter[str] = field(default_factory=Counter)
    """By kind: the values that were replaced."""
    left_out: Counter[str] = field(default_factory=Counter)
    """By the kinds they held: records that by ``[anonymizer] kinds`` may not be stored."""
    keys: list[str] = field(default_factory=list)
    """Log objects that were written."""

    @property
    def lost(self) -> int:
        """What was read and is in none of the counts. Always 0."""
        return (
            self.read
            - self.stored
            - self.duplicates
            - self.skipped.total()
            - self.quarantined.total()
            - self.left_out.total()
        )

    def add(self, other: ImportReport) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def import_logs(
    store: ObjectStore,
    database: Database,
    settings: Settings,
    format_name: str,
    location: str,
    *,
    tenant: str = "default",
    dry_run: bool = False,
    now: datetime | None = None,
    progress: Progress = lambda _: None,
) -> ImportReport:
    """Take in what no earlier import of this location has taken in.

    Args:
        format_name: a reader's, or ``auto``.
        tenant: whose calls these are.
        dry_run: read and count, and write nothing.
        now: for tests.

    Raises:
        ObjectStoreError: source or store cannot be listed, or the store not written.
    """
    report = ImportReport()
    source = open_source(location, settings.storage, store)
    now = now or utc_now()
    if not dry_run:
        for left in pending(store):
            # Whoever began it was killed: first the same again, so that nothing is there twice.
            try:
                again = open_source(left.origin.location, settings.storage, store)
            except ObjectMissing:
                left.end(store)
                continue
            try:
                report.add(_bundle(store, database, settings, again, left, now, progress))
            except SourceDown as error:
                if left.origin == Origin(format_name, source.location, tenant):
                    raise
                progress(str(error))
    of = Origin(format_name, source.location, tenant)
    for bundle in bundles(_new(database, source.list(), of, report), of):
        kept = None if dry_run else store
        report.add(_bundle(kept, database, settings, source, bundle, now, progress))
        progress(f"{report.objects} objects, {report.stored} records")
    if report.objects and not dry_run:
        with database.begin() as connection:
            record_event(
                connection,
                actor="import",
                what="logs.imported",
                subject=source.location[:200],
                why=f"{report.stored} records of {report.objects} objects, "
                f"{report.quarantined.total()} rows in quarantine",
                evidence={"format": format_name, "tenant": tenant},
            )
    return report


class _Unreadable(Exception):
    """The source did not give an object; nothing is known about its content."""

    def __init__(self, member: ObjectInfo, error: Exception) -> None:
        super().__init__(f"{member.key}: {error}; left for the next run")
        self.member = member
        self.alone = isinstance(error, SourceChanged)
        """Whether it is this object's fault; else the whole source may be away."""


class SourceDown(ObjectStoreError):
    """One object after another cannot be had: the source is away, and is not asked on and on."""


def _bundle(
    store: ObjectStore | None,
    database: Database,
    settings: Settings,
    source: Source,
    bundle: Bundle,
    now: datetime,
    progress: Progress,
) -> ImportReport:
    """One bundle; what the source does not give is left out of it. Without a store: only counts."""
    failed = down = 0
    while bundle.members:
        if store is not None:
            bundle.begin(store)
        try:
            report = _read(store, settings, source, bundle, now, progress)
        except _Unreadable as problem:
            progress(str(problem))
            failed += 1
            down += not problem.alone
            if down >= MAX_DOWN:
                # The bundle stays noted: the next run does it first.
                raise SourceDown(
                    f"{bundle.origin.location} cannot be read: {problem}. Run it again when it can"
                ) from problem
            if store is not None:
                _undo(store, bundle)
                bundle.end(store)
            left = tuple(member for member in bundle.members if member != problem.member)
            bundle = replace(bundle, members=left)
            continue
        if store is not None:
            commit(database, bundle.origin, bundle.members, report, utc_now())
            bundle.end(store)
        report.failed = failed
        return report
    return ImportReport(failed=failed)


def _read(
    store: ObjectStore | None,
    settings: Settings,
    source: Source,
    bundle: Bundle,
    now: datetime,
    progress: Progress,
) -> ImportReport:
    """All of a bundle but its commit. Raises _Unreadable."""
    report = ImportReport()
    privacy = PrivacyCheck.of(settings.anonymizer)
    writer = LogWriter(store, f"{WRITER}{bundle.digest}") if store else None
    quarantine = ImportQuarantine(store, bundle.digest) if store else None
    ids: set[int] = set()
    of = bundle.origin
    for member in bundle.members:
        about = {"etag": member.etag, "location": of.location, "object": member.key}
        try:
            for read in read_member(settings, source, member, of.format, of.tenant):
                report.read += 1
                if report.read % SAID_EVERY == 0:
                    progress(f"{report.read} rows read, now {member.key}")
                item = timely(read.item, now)
                if isinstance(item, Skipped):
                    report.skipped[item.reason] += 1
                elif isinstance(item, Problem):
                    report.quarantined[item.reason] += 1
                    if quarantine is not None:
                        about["reader"] = read.reader or of.format
                        quarantine.add(entry(read, item, of.tenant, **about))
                elif (identity := _identity(item)) in ids:
                    report.duplicates += 1
                else:
                    ids.add(identity)
                    checked = privacy.check(item)
                    if checked is None:
                        continue
                    report.stored += 1
                    report.formats[read.reader] += 1
                    report.failures += _is_failure(item)
                    if writer is not None:
                        writer.add(checked)
        except (OSError, SourceChanged, ObjectStoreError) as error:
            raise _Unreadable(member, error) from error
        report.objects += 1
    if writer is not None and quarantine is not None:
        writer.flush()
        quarantine.close()
        report.keys = writer.keys
    report.personal_data = privacy.counts
    report.left_out = privacy.left_out
    return report


def _undo(store: ObjectStore, bundle: Bundle) -> None:
    """Take back what this or a killed run wrote for a bundle that will not be: rare, so it may be slow."""
    for item in list(store.list(LOG_PREFIX)):
        if f"/{WRITER}{bundle.digest}-" in item.key:
            store.delete(item.key)
    store.delete(f"{IMPORT_PREFIX}{bundle.digest}.jsonl")


class SourceChanged(Exception):
    """The source object is gone, or is another now."""


def read_member(
    settings: Settings, source: Source, member: ObjectInfo, format_name: str, tenant: str
) -> Iterator[Read]:
    """What one source object holds.

    Raises:
        SourceChanged: it is gone, or was written anew meanwhile.
        OSError, ObjectStoreError: the source cannot be read.
    """
    try:
        with source.open(member.key) as stream:
            yield from read_source(
                stream,
                format_name,
                tenant=tenant,
                max_row_bytes=settings.ingest.max_line_bytes,
                max_parquet_bytes=settings.storage.max_object_bytes,
            )
        same = not member.etag or source.info(member.key).etag == member.etag
    except ObjectMissing as error:
        raise SourceChanged(str(error)) from error
    if not same:
        raise SourceChanged("it changed while it was read")


def _identity(record: LogRecord) -> int:
    """64 bits of the record's kind and id, so that a set of them stays small."""
    said = f"{record.type}\0{record.tenant}\0{record.id}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")


def _is_failure(record: LogRecord) -> bool:
    return isinstance(record, CallRecord) and not record.response.get("choices")


def _new(
    database: Database, objects: Iterator[ObjectInfo], of: Origin, report: ImportReport
) -> Iterator[ObjectInfo]:
    while page := list(islice(objects, LIST_PAGE)):
        left = unfinished(database, of, page)
        report.known += len(page) - len(left)
        for item in left:
            if item.etag == UNREADABLE:
                report.failed += 1
            else:
                yield item
