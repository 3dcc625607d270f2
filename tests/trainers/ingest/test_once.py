"""Every log object exactly once: under kills at any effect, with two at once, after a change."""

import threading
from datetime import timedelta

import pytest

from infra.calls.codec import encode_lines
from infra.calls.record import FeedbackRecord
from infra.objects.store import ObjectStoreError
from tests.trainers.recorded import SETTINGS, START, home, opened, put_log, run, stored, ticket
from trainers.ingest import claims
from trainers.ingest.ingest import ingest, totals
from trainers.ingest.reading import call_files


class Killed(BaseException):
    """Ends a run as kill -9 does: no handler of the product's catches it."""


class Mortal:
    """The store, until its nth effect; ``after`` tells whether that one still happens."""

    def __init__(self, store, database, limit, after):
        self._store, self._database, self._left, self._after = store, database, limit, after
        self.died = False

    def __getattr__(self, name):
        found = getattr(self._store if hasattr(self._store, name) else self._database, name)
        return self._mortal(found) if name in ("put", "open", "begin") else found

    def _mortal(self, method):
        def effect(*args, **kwargs):
            self._left -= 1
            if self._left == 0 and not self._after:
                self.died = True
                raise Killed
            result = method(*args, **kwargs)
            if self._left == 0:
                self.died = True
                if hasattr(result, "__enter__") and not hasattr(result, "read"):
                    with result:
                        pass
                raise Killed
            return result

        return effect


def snapshot(store, database):
    files = {
        item.key: store.get(item.key)
        for prefix in ("calls/", "feedback/", "quarantine/")
        for item in store.list(prefix)
    }
    return files, sorted(claims.every_committed(database)), totals(database)


@pytest.mark.parametrize("after", [False, True])
def test_killed_between_any_two_effects_and_run_again_ends_the_same(tmp_path, after):
    def fill(folder):
        store, database = opened(folder)
        put_log(
            store, [*(home(n) for n in range(4)), FeedbackRecord(id="f", call_id="x", time=START)]
        )
        put_log(store, [ticket(n) for n in range(3)], sequence=1, extra=b"rubbish")
        return store, database

    whole = fill(tmp_path / "whole")
    run(*whole)
    expected = snapshot(*whole)
    died = 0
    for limit in range(1, 40):
        store, database = fill(tmp_path / f"{limit}")
        mortal = Mortal(store, database, limit, after)
        try:
            run(mortal, mortal)
        except Killed:
            died += 1
        rescued = run(store, database)
        assert rescued.busy == 0
        assert snapshot(store, database) == expected
        if not mortal.died:
            break
    assert died >= 8


def test_a_dead_runs_claim_is_free_after_its_time(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1)])
    item = next(store.list("logs/"))
    assert claims.claim(database, item, "dead", 600, START) is not None
    assert run(store, database, now=START + timedelta(seconds=599)).busy == 1
    assert run(store, database, now=START + timedelta(seconds=600)).calls == 1


def test_a_run_that_was_overtaken_commits_nothing(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1)])
    item = next(store.list("logs/"))
    slow = claims.claim(database, item, "night", 600, START)
    again = claims.claim(database, item, "night", 600, START)
    assert slow is not None
    assert again is not None
    assert claims.hold(database, slow, 600, START) is None
    assert not claims.commit(database, slow, {}, START)
    assert claims.commit(database, again, {"calls": 1}, START)
    assert claims.claim(database, item, "night", 600, START) is None


def test_two_at_once_do_each_object_once(tmp_path):
    store, database = opened(tmp_path)
    for sequence in range(12):
        put_log(store, [home(sequence * 10 + n) for n in range(4)], sequence)
    reports = []
    barrier = threading.Barrier(3)

    def work(holder):
        barrier.wait()
        reports.append(run(store, database, holder=holder))

    threads = [threading.Thread(target=work, args=(f"night-{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(reports) == 3
    assert sum(report.objects for report in reports) == 12
    assert sum(report.calls for report in reports) == 48
    assert totals(database).calls == 48
    assert len(stored(store, database)) == 48


class Unwilling:
    """A store that lists everything and does not give one object."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def open(self, key):
        if key.endswith("0000000001.jsonl.zst"):
            raise ObjectStoreError("not now")
        return self._store.open(key)


def test_an_object_that_cannot_be_read_now_is_left_for_the_next_run(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1)], sequence=1)
    put_log(store, [home(2)], sequence=2)
    said = []
    report = ingest(
        Unwilling(store), database, SETTINGS, holder="a", now=START, progress=said.append
    )
    assert (report.failed, report.calls) == (1, 1)
    assert any("left for the next run" in text for text in said)
    assert run(store, database, holder="b").calls == 1


def test_an_object_written_anew_is_ingested_anew(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1)])
    run(store, database)
    put_log(store, [home(1), home(2)])
    assert run(store, database).objects == 1
    assert sorted(stored(store, database)) == ["call-00001", "call-00002"]
    assert [file.rows for file in call_files(database, 99)] == [2], (
        "what it was before counts no more"
    )


def test_keys_that_are_too_long_for_the_table(tmp_path):
    store, database = opened(tmp_path)
    keys = ["logs/v1/" + "/".join(["x" * 200] * 3) + f"/{n}.jsonl.zst" for n in range(2)]
    for number, key in enumerate(keys):
        store.put(key, encode_lines([home(number)]) + b"rubbish")
    report = run(store, database)
    assert (report.objects, report.calls, report.quarantined) == (2, 2, 2)
