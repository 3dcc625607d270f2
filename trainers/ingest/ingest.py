"""Ingest: every log object once, in constant memory, whatever it holds.

Effects per object, in order: claim (database), Parquet files and quarantine (object store, under
keys made from the object's own key and etag, so that doing it again overwrites the same), commit
(database). Only the commit makes the files count; killed anywhere before, the object is simply
done again. Who reads is ``workers``: this process or a Ray cluster, and all that decides is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from threading import Lock

from infra.calls.codec import LOG_PREFIX
from infra.calls.record import utc_now
from infra.database.open import Database
from infra.objects.store import ObjectInfo, ObjectStore
from infra.settings.model import Settings
from trainers.ingest import claims
from trainers.ingest.taking import Counts, Here, Workers

LIST_PAGE = 500
Progress = Callable[[str], None]


@dataclass(frozen=True)
class IngestReport:
    """What one run did (or, from ``totals``, what all runs did)."""

    objects: int = 0
    """Committed."""
    calls: int = 0
    feedback: int = 0
    quarantined: int = 0
    """Lines, cut-off ends and whole objects that could not be read; each is named in quarantine/."""
    duplicates: int = 0
    """Calls that say the same as an earlier one of their file; kept, with less weight."""
    repeated: int = 0
    """Lines whose record id was already seen in their object: left out."""
    left_out: int = 0
    """Records that by ``[anonymizer] kinds`` may not be stored."""
    lost: int = 0
    """Lines read that ended neither as a record, nor in quarantine, as repeated or left out. Always 0."""
    lines: int = 0
    personal_data: Mapping[str, int] = field(default_factory=dict)
    """Kind to how many values were replaced, by the gateway or by the check here."""
    found_here: Mapping[str, int] = field(default_factory=dict)
    """The part of it that only the check here found: others' logs, or a leak."""
    busy: int = 0
    """Objects that another run holds."""
    failed: int = 0
    """Objects that the store did not give: left for the next run."""


def ingest(
    store: ObjectStore,
    database: Database,
    settings: Settings,
    *,
    holder: str,
    now: datetime | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> IngestReport:
    """Ingest every log object that no earlier run has committed.

    Args:
        holder: names this run in its claims; a run again under the same name takes its own claims
            over at once, others wait ``ingest.claim_seconds``.
        now: for tests; aware.
        progress: called with a line of text after every object.
        workers: who reads the objects; None: this process.

    Raises:
        ObjectStoreError: the store cannot be listed or written.
        WorkersLost: the workers are gone.
    """
    # Clock readings per claim, so that a long run keeps its claims; a test's fixed time stays fixed.
    clock = (lambda: now) if now is not None else utc_now
    ours = _Claims(database, holder, settings.ingest.claim_seconds, clock)
    workers = workers or Here(
        store, settings.ingest, settings.anonymizer, settings.storage.max_object_bytes
    )
    total: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    here: Counter[str] = Counter()
    for item, counts, problem in workers.take(ours.draw(store, total), ours.keep):
        if problem is not None:
            ours.release(item)
            total["failed"] += 1
            _say(progress, f"{item.key}: {problem}; left for the next run")
            continue
        if counts is None or not ours.commit(item, counts):
            total["busy"] += 1
            continue
        total["objects"] += 1
        total.update({name: counts[name] for name in _COUNTED})
        personal.update(counts["personal_data"])
        here.update(counts["found_here"])
        _say(progress, f"{total['objects']} objects, {total['calls']} calls")
    return IngestReport(**total, personal_data=dict(personal), found_here=dict(here))


def totals(database: Database) -> IngestReport:
    """The sum over everything ever committed."""
    total: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    here: Counter[str] = Counter()
    for _, _, counts in claims.every_committed(database):
        total["objects"] += 1
        total.update({name: counts.get(name, 0) for name in _COUNTED})
        personal.update(counts.get("personal_data", {}))
        here.update(counts.get("found_here", {}))
    return IngestReport(**total, personal_data=dict(personal), found_here=dict(here))


_COUNTED = (
    *("calls", "feedback", "quarantined", "duplicates", "repeated", "left_out", "lost", "lines"),
)


class _Claims:
    """What this run holds. Safe to keep from another thread while one commits."""

    def __init__(
        self, database: Database, holder: str, seconds: float, clock: Callable[[], datetime]
    ) -> None:
        self._database, self._holder, self._seconds = database, holder, seconds
        self._clock = clock
        self._lock = Lock()
        self._held: dict[ObjectInfo, claims.Claim] = {}

    def draw(self, store: ObjectStore, total: Counter[str]) -> Iterator[ObjectInfo]:
        """What nobody has committed, each claimed when it is drawn; ``busy`` counts others' claims."""
        for page in _pages(store.list(LOG_PREFIX), LIST_PAGE):
            for item in claims.unfinished(self._database, page):
                held = claims.claim(
                    self._database, item, self._holder, self._seconds, self._clock()
                )
                if held is None:
                    total["busy"] += 1
                    continue
                self._held[item] = held
                yield item

    def keep(self, item: ObjectInfo) -> bool:
        """The claim for another while; False: it is not ours any more."""
        with self._lock:
            held = self._held.get(item)
            if held is None:
                return False
            renewed = claims.hold(self._database, held, self._seconds, self._clock())
            if renewed is None:
                del self._held[item]
                return False
            self._held[item] = renewed
            return True

    def commit(self, item: ObjectInfo, counts: Counts) -> bool:
        """Make its files count; False: it was taken over."""
        with self._lock:
            held = self._held.pop(item, None)
            return held is not None and claims.commit(self._database, held, counts, self._clock())

    def release(self, item: ObjectInfo) -> None:
        with self._lock:
            held = self._held.pop(item, None)
            if held is not None:
                claims.release(self._database, held, self._clock())


def _pages(objects: Iterator[ObjectInfo], size: int) -> Iterator[list[ObjectInfo]]:
    while page := list(islice(objects, size)):
        yield page


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
