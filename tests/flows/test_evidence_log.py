from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flows import evidence_log
from flows.evidence_log import EvidenceLog
from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord, FeedbackRecord
from infra.objects.store import ObjectStore

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def call(session: str, rollout: str | None, time: datetime = NOON) -> CallRecord:
    return CallRecord(
        time=time,
        session=session,
        request={"messages": []},
        response={"choices": []},
        answered_by=AnsweredBy(model="m", rollout=rollout, arm="canary" if rollout else None),
    )


def put(store: ObjectStore, sequence: int, records: list, time: datetime = NOON) -> str:
    key = log_key(time, "writer", sequence)
    store.put(key, encode_lines(records))
    return key


def sessions(log: EvidenceLog, rollout: str) -> list[str]:
    return sorted(record.session for record in log.calls(rollout))


def test_each_object_is_read_once_and_each_rollout_gets_its_own(store: ObjectStore):
    put(store, 1, [call("a", "r1"), call("b", None), call("c", "r2")])
    log = EvidenceLog(store, 1 << 20)
    log.look(NOON)
    put(store, 2, [call("d", "r1"), FeedbackRecord(call_id="x", score=1.0, time=NOON)])
    log.look(NOON)
    log.look(NOON)
    assert sessions(log, "r1") == ["a", "d"]
    assert sessions(log, "r2") == ["c"]
    assert [item.call_id for item in log.feedback()] == ["x"]


def test_what_was_logged_long_before_the_rollout_is_not_read(store: ObjectStore):
    put(store, 1, [call("old", "r1")], NOON - timedelta(hours=5))
    put(store, 2, [call("late", "r1")], NOON - timedelta(minutes=50))
    log = EvidenceLog(store, 1 << 20)
    log.look(NOON)
    assert sessions(log, "r1") == ["late"]


def test_rubbish_costs_only_itself(store: ObjectStore):
    good = encode_lines([call("a", "r1")])
    store.put(log_key(NOON, "writer", 1), b"no compressed lines at all")
    store.put(log_key(NOON, "writer", 2), good)
    store.put(log_key(NOON, "writer", 3), encode_lines([call("b", "r1"), call("c", "r1")])[:-7])
    log = EvidenceLog(store, 1 << 20)
    log.look(NOON)
    assert "a" in sessions(log, "r1")


def test_ended_rollouts_are_forgotten(store: ObjectStore):
    put(store, 1, [call("a", "r1"), call("b", "r2")])
    log = EvidenceLog(store, 1 << 20)
    log.look(NOON)
    log.forget_all_but(["r2"])
    assert (sessions(log, "r1"), sessions(log, "r2")) == ([], ["b"])


def test_reports_are_bounded_and_freed_with_the_last_rollout(store: ObjectStore, monkeypatch):
    monkeypatch.setattr(evidence_log, "MAX_RECORDS", 3)
    reports = [FeedbackRecord(call_id=f"c{n}", score=1.0, time=NOON) for n in range(5)]
    put(store, 1, [call("a", "r1"), *reports])
    log = EvidenceLog(store, 1 << 20)
    log.look(NOON)
    assert [item.call_id for item in log.feedback()] == ["c2", "c3", "c4"]
    log.forget_all_but([])
    assert log.feedback() == []


def test_records_taken_out_of_the_log_leave_memory_too(store: ObjectStore):
    first = [call("a", "r1"), call("b", "r1")]
    put(store, 1, first)
    put(store, 2, [call("c", "r1")])
    log = EvidenceLog(store, 1 << 20)
    log.look(NOON)
    put(store, 1, first[1:])
    log.look(NOON)
    assert sessions(log, "r1") == ["b", "c"]
