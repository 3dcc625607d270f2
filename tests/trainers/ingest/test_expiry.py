"""Old logs go by whole days, with what was made of them, and never before they were taken in."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.calls.codec import encode_lines, log_key
from infra.database.events import list_events
from infra.database.open import Database
from infra.database.tables import ingested_objects
from infra.objects.store import ObjectStore
from tests.trainers.recorded import SETTINGS, call
from trainers.ingest.claims import every_committed
from trainers.ingest.expiry import expire_logs, first_kept_day
from trainers.ingest.ingest import ingest
from trainers.ingest.reading import call_files

DAY = timedelta(days=1)
NOW = datetime(2026, 6, 10, 15, tzinfo=UTC)
WHY = "older days are past [retention] log_seconds"


def log(store: ObjectStore, days_ago: int, sequence: int = 0, extra: bytes = b"") -> str:
    moment = NOW - days_ago * DAY
    key = log_key(moment, "gateway", sequence)
    record = call(sequence + 100 * days_ago, time=moment)
    store.put(key, encode_lines([record]) + extra)
    return key


class Dies(Exception):
    pass


class Failing:
    """A store whose deletions break off after a number of them."""

    def __init__(self, store: ObjectStore, after: int) -> None:
        self._store, self._left = store, after

    def delete(self, key: str) -> None:
        if self._left == 0:
            raise Dies
        self._left -= 1
        self._store.delete(key)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


@pytest.mark.parametrize(
    ("seconds", "open_since", "day"),
    [
        (0, [], None),
        (3 * 86400, [], date(2026, 6, 7)),
        (3 * 86400, [NOW - 2 * DAY], date(2026, 6, 7)),
        (3 * 86400, [NOW, NOW - 9 * DAY], date(2026, 5, 31)),
    ],
)
def test_the_first_day_that_stays(seconds: float, open_since: list[datetime], day: date | None):
    assert first_kept_day(NOW, seconds, open_since)[0] == day


def test_old_days_go_with_what_was_made_of_them_and_their_bad_lines(
    store: ObjectStore, each_database: Database
):
    database = each_database
    old = [log(store, 9), log(store, 8, 1, extra=b"rubbish"), log(store, 8, 2)]
    young = log(store, 2, 3)
    store.put("logs/v1/notes.txt", b"not ours")
    ingest(store, database, SETTINGS, holder="test", now=NOW)
    late = log(store, 9, 7)  # arrives after the ingest
    assert len(call_files(database, 100)) == 4
    content = store.get(old[0])
    done = expire_logs(store, database, (NOW - 5 * DAY).date(), WHY, now=NOW)
    assert (done.removed, dict(done.kept), done.done) == (3, {"not taken in yet": 1}, True)
    left = {item.key for item in store.list()}
    assert left & {*old} == set()
    assert {young, late, "logs/v1/notes.txt"} <= left
    assert not [key for key in left if key.startswith("quarantine/") and "rubbish" in key]
    files = [entry for _, _, counts in every_committed(database) for entry in counts["call_files"]]
    assert {entry["key"] for entry in files} == {k for k in left if k.startswith("calls/")}
    with database.read() as connection:
        told = [e.subject for e in list_events(connection, what="logs.expired")]
    assert told == ["logs/v1/dt=2026-06-01", "logs/v1/dt=2026-06-02"]
    # What expired is not taken in again, even if it comes back.
    store.put(old[0], content)
    assert ingest(store, database, SETTINGS, holder="test", now=NOW).calls == 1
    assert expire_logs(store, database, (NOW - 5 * DAY).date(), WHY, now=NOW).removed == 2


def test_a_dry_run_counts_and_removes_nothing(store: ObjectStore, database: Database):
    log(store, 9), log(store, 1, 1)
    ingest(store, database, SETTINGS, holder="test", now=NOW)
    before = [item.key for item in store.list()]
    done = expire_logs(store, database, (NOW - 5 * DAY).date(), WHY, dry_run=True)
    assert (done.removed, [item.key for item in store.list()]) == (1, before)


@pytest.mark.parametrize("after", range(4))
def test_broken_off_anywhere_the_next_run_finishes(
    store: ObjectStore, database: Database, after: int, tmp_path: Path
):
    log(store, 9), log(store, 8, 1)
    young = log(store, 1, 2)
    ingest(store, database, SETTINGS, holder="test", now=NOW)
    first_kept = (NOW - 5 * DAY).date()
    try:
        expire_logs(Failing(store, after), database, first_kept, WHY, now=NOW)  # type: ignore[arg-type]
    except Dies:
        # Nobody looks for files that may be gone.
        for file in call_files(database, 1000):
            assert store.info(file.key).size > 0
    assert expire_logs(store, database, first_kept, WHY, now=NOW).done
    assert [item.key for item in store.list("logs/")] == [young]
    assert len(list(store.list("calls/"))) == 1
    with database.read() as connection:
        states = connection.execute(select(ingested_objects.c.state)).scalars().all()
    assert sorted(states) == ["done", "expired", "expired"]


def test_when_the_time_is_up_the_rest_waits(store: ObjectStore, database: Database):
    log(store, 9)
    ingest(store, database, SETTINGS, holder="test", now=NOW)
    first_kept = (NOW - 5 * DAY).date()
    assert not expire_logs(store, database, first_kept, WHY, within_seconds=-1).done
    assert expire_logs(store, database, first_kept, WHY).removed == 1
