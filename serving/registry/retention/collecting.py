"""Carry out what was decided: mark, condemn, delete, note. Safe under races and at any kill.

A location goes in three steps, each a transaction of its own. *Marked*, it waits for the grace time, and
whoever needs it takes the mark off. *Condemned*, under the lock of its task and after the same decision
was made anew on what the database says then: an adapter is retired in that transaction, so no route
and no rollout can name it any more. Only then are objects deleted, and when they are gone the mark
says *removed*. A run that is killed in between leaves a condemned location, which a later one finishes.

A run that is stalled, not dead, must not delete what was written again after another run took its place
over. So a condemned mark is one run's own for ``STALE``; its owner begins no deletion after half of that
time, asks the database before each whether the mark is still its own, and does not say *removed* when
one took so long that it may have been sent twice. A deletion under way would have to take half an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Connection, select

from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.garbage import (
    STALE,
    Mark,
    add_mark,
    drop_mark,
    find_mark,
    move_mark,
    read_marks,
)
from infra.database.open import Database
from infra.database.tables import adapters, dataset_versions
from infra.objects.store import ObjectStore
from infra.settings.operating import Retention
from serving.registry.catalogue import change_adapter_state, read_adapter
from serving.registry.errors import AdapterInUse, IllegalState
from serving.registry.retention.decision import Verdict, belongings, decide
from serving.registry.retention.inventory import read_inventory, stored_locations
from serving.registry.task_rows import read_task

ACTOR = "retention"
MANIFEST = "manifest.json"
MIN_ORPHAN_GRACE = timedelta(hours=1)
"""What nobody knows yet may be what somebody is just writing."""
SLOW_SECONDS = 10.0
"""A deletion that took longer may have been tried more than once, and the first try may still arrive."""
_TICK = timedelta(microseconds=1)

Clock = Callable[[], datetime]
Outcome = Literal["kept", "would go", "marked", "waiting", "removed", "not now"]


@dataclass(frozen=True)
class Done:
    """What became of one location in one run."""

    kind: str
    what: str
    outcome: Outcome
    why: str


def look(database: Database, store: ObjectStore, policy: Retention, now: datetime) -> list[Verdict]:
    """Decide on everything, and change nothing. Raises ObjectStoreError."""
    # The store first: what is registered while it is listed is then known, not an orphan.
    stored = stored_locations(store)
    with database.read() as connection:
        return decide(read_inventory(connection, now, stored=stored), policy)


def collect(
    database: Database,
    store: ObjectStore,
    policy: Retention,
    now: datetime | None = None,
    *,
    dry_run: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Done]:
    """Look at everything once and take each location one or more steps further.

    Any number may run at once; each step is one run's. What the store or the database refuses is
    left for the next run.

    Args:
        now: for callers with a clock of their own.
        on_step: told before each effect, by tests that kill there.

    Raises ObjectStoreError, and what the database raises.
    """
    now = now or utc_now()
    clock = clock_from(now)
    done = []
    for verdict in look(database, store, policy, now):
        if dry_run:
            outcome: Outcome = "kept" if verdict.keep else "would go"
        elif verdict.keep:
            _unmark(database, verdict)
            outcome = "kept"
        else:
            outcome = _take(database, store, policy, verdict, now, clock, on_step)
        done.append(Done(verdict.kind, verdict.subject, outcome, verdict.why))
    if not dry_run:
        done += _finish_others(database, store, {entry.what for entry in done}, clock, on_step)
    return done


def clock_from(now: datetime) -> Clock:
    """A clock that is at ``now``: a run may take long, and what it owns it owns from that time on."""
    offset = now - utc_now()
    return lambda: utc_now() + offset


def _take(
    database: Database,
    store: ObjectStore,
    policy: Retention,
    verdict: Verdict,
    now: datetime,
    clock: Clock,
    on_step: Callable[[str], None],
) -> Outcome:
    with database.begin() as connection:
        add_mark(connection, verdict.location, verdict.kind, verdict.subject, verdict.why, now)
        mark = find_mark(connection, verdict.location)
    if mark is None:
        return "not now"
    grace = timedelta(seconds=policy.grace_seconds)
    if verdict.orphan:
        grace = max(grace, MIN_ORPHAN_GRACE)
    if mark.state == "marked" and now - mark.since < grace:
        return "marked" if mark.since == now else "waiting"
    if mark.state == "removed" and next(store.list(f"{mark.location}/"), None) is None:
        return "not now"  # another run was faster
    on_step(f"condemn {verdict.location}")
    with database.begin() as connection:
        if mark.state == "marked" and not _still_goes(connection, mark, verdict, policy, now):
            return "not now"
        owned = own(connection, mark, clock())
    return "not now" if owned is None else clear(database, store, owned, clock, on_step)


def own(connection: Connection, mark: Mark, now: datetime) -> Mark | None:
    """Condemn it in this run's name: whoever held it before, or was about to write there, finds out.

    None: another run has it, or it is no longer as it was read.
    """
    if mark.state == "condemned" and now - mark.since < STALE:
        return None
    since = max(now, mark.since + _TICK)
    if not move_mark(connection, mark, "condemned", since):
        return None
    return replace(mark, state="condemned", since=since)


def _still_goes(
    connection: Connection, mark: Mark, verdict: Verdict, policy: Retention, now: datetime
) -> bool:
    """Decide again on what is so now, under the task's lock, and retire. False: not any more."""
    task_id = _task_of(connection, mark)
    if task_id is None:
        return verdict.orphan
    if verdict.orphan:
        drop_mark(connection, mark)  # it was registered meanwhile
        return False
    read_task(connection, task_id, lock=True)
    again = decide(read_inventory(connection, now, task_id=task_id), policy)
    found = next((one for one in again if one.location == mark.location), None)
    if found is None or found.keep:
        drop_mark(connection, mark)
        return False
    if mark.kind == "adapter" and read_adapter(connection, mark.subject).state == "registered":
        try:
            change_adapter_state(
                connection, mark.subject, "retired", actor=ACTOR, why=found.why, now=now
            )
        except (AdapterInUse, IllegalState):
            return False
    return True


def clear(
    database: Database,
    store: ObjectStore,
    mark: Mark,
    clock: Clock,
    on_step: Callable[[str], None],
) -> Outcome:
    """Delete what lies there, and note that it is gone. The mark is this run's own."""
    count = 0
    slowest = 0.0
    for key in _keys(store, mark.location):
        on_step(f"delete {key}")
        if not _is_ours(database, mark, clock()):
            return "not now"
        started = time.monotonic()
        store.delete(key)
        slowest = max(slowest, time.monotonic() - started)
        count += 1
    if slowest > SLOW_SECONDS:
        return "not now"  # it stays condemned until nothing of this run can arrive any more
    on_step(f"note {mark.location}")
    now = clock()
    with database.begin() as connection:
        if not move_mark(connection, mark, "removed", now):
            return "not now"
        record_event(
            connection,
            actor=ACTOR,
            what=f"{mark.kind}.removed",
            subject=mark.subject[:200],
            why=mark.why,
            evidence={"location": mark.location, "objects": count},
            time=now,
        )
    return "removed"


def _is_ours(database: Database, mark: Mark, now: datetime) -> bool:
    """Nobody took it over, nor may anybody before a deletion that begins now has come to its end."""
    with database.read() as connection:
        return now - mark.since < STALE / 2 and find_mark(connection, mark.location) == mark


def _finish_others(
    database: Database,
    store: ObjectStore,
    seen: set[str],
    clock: Clock,
    on_step: Callable[[str], None],
) -> Iterator[Done]:
    """Condemned locations that no verdict speaks of any more: orphans whose manifest is gone."""
    with database.read() as connection:
        left = [mark for mark in read_marks(connection) if mark.state == "condemned"]
    for mark in left:
        if mark.subject in seen:
            continue
        with database.begin() as connection:
            owned = own(connection, mark, clock())
        if owned is None:
            continue
        outcome = clear(database, store, owned, clock, on_step)
        yield Done(mark.kind, mark.subject, outcome, mark.why)


def _unmark(database: Database, verdict: Verdict) -> None:
    with database.read() as connection:
        mark = find_mark(connection, verdict.location)
    if mark is not None and mark.state == "marked":
        with database.begin() as connection:
            drop_mark(connection, mark)


def _task_of(connection: Connection, mark: Mark) -> str | None:
    """The task that a location is registered for; None: nobody knows it."""
    table = adapters if mark.kind == "adapter" else dataset_versions
    found = connection.execute(
        select(table.c.task_id).where(table.c.location == mark.location)
    ).first()
    return str(found.task_id) if found else None


def _keys(store: ObjectStore, location: str) -> Iterator[str]:
    """Manifests first: without one there is no adapter and no data set, whatever else is left."""
    for prefix in belongings(location):
        keys = [item.key for item in store.list(prefix)]
        yield from sorted(keys, key=lambda key: (not key.endswith(f"/{MANIFEST}"), key))
