import json
import threading
from datetime import timedelta

import pytest
import zstandard

from infra.calls.codec import encode_lines
from infra.calls.record import FeedbackRecord
from infra.objects.store import ObjectStoreError
from infra.settings.learning import Ingest
from infra.settings.serving import Anonymizer, Storage
from tests.trainers.recorded import SETTINGS, START, call, home, opened, put_log, ticket
from trainers.ingest import claims
from trainers.ingest.ingest import IngestReport, ingest, totals
from trainers.ingest.reading import (
    call_files,
    feedback_files,
    read_calls,
    read_columns,
    read_feedback,
)


def run(store, database, settings=SETTINGS, holder="night", now=START):
    return ingest(store, database, settings, holder=holder, now=now)


def stored(store, database):
    files = call_files(database, 10**9)
    return [row["id"] for row in read_columns(store, files, ["id"])]


def quarantine(store):
    lines = []
    for item in store.list("quarantine/v1/"):
        lines += [json.loads(line) for line in store.get(item.key).decode().splitlines()]
    return lines


def lines(*texts):
    return zstandard.compress(b"".join(text.encode() + b"\n" for text in texts))


def test_a_record_that_may_not_be_stored_is_left_out_and_counted(tmp_path):
    store, database = opened(tmp_path)
    cards = ["4111 1111 1111 1111", "ann@example.com and 5555555555554444"]
    put_log(store, [call(1, cards[0]), call(2, cards[1]), call(3, "bob@example.com"), call(4)])
    settings = SETTINGS.model_copy(
        update={"anonymizer": Anonymizer(kinds={"CARD": "drop_record", "EMAIL": "keep"})}
    )
    report = run(store, database, settings)
    assert (report.calls, report.left_out, report.lost, report.lines) == (2, 2, 0, 4)
    assert (dict(report.personal_data), totals(database).left_out) == ({}, 2)
    ((_, _, counts),) = claims.every_committed(database)
    assert counts["left_out_for"] == {"CARD": 2}
    files = call_files(database, 100)
    kept = {record.id: record for record, _ in read_calls(store, files, {"call-00003"})}
    assert kept["call-00003"].request["messages"][1]["content"] == "bob@example.com"


def test_calls_and_feedback_are_kept_whole(tmp_path):
    store, database = opened(tmp_path)
    records = [home(n) for n in range(5)]
    feedback = FeedbackRecord(call_id=records[0].id, score=0.0, time=START)
    other = FeedbackRecord(call_id=records[1].id, score=1.0, time=START)
    key = put_log(store, [*records, other, feedback])
    report = run(store, database)
    assert (report.objects, report.calls, report.feedback, report.lines) == (1, 5, 2, 7)
    assert (report.quarantined, report.lost, report.repeated, report.busy) == (0, 0, 0, 0)
    files = call_files(database, 100)
    ids = {record.id for record in records}
    found = {record.id: record for record, _ in read_calls(store, files, ids)}
    assert {r.id: r.request for r in records} == {
        call_id: r.request for call_id, r in found.items()
    }
    assert {source for _, source in read_calls(store, files, {records[0].id})} == {key}
    said = read_feedback(store, feedback_files(database, 100), {records[0].id})
    (item,) = said.pop(records[0].id)
    assert (item.id, item.score, said) == (feedback.id, 0.0, {})
    assert read_feedback(store, feedback_files(database, 100), []) == {}


def test_the_second_run_finds_nothing_to_do(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1)])
    first = run(store, database)
    assert run(store, database) == IngestReport()
    assert totals(database) == first
    put_log(store, [home(2)], sequence=1)
    assert run(store, database).objects == 1
    assert sorted(stored(store, database)) == ["call-00001", "call-00002"]


def test_an_empty_day(tmp_path):
    store, database = opened(tmp_path)
    assert run(store, database) == IngestReport()
    put_log(store, [])
    report = run(store, database)
    assert (report.objects, report.calls, report.quarantined, report.lost) == (1, 0, 0, 0)


def test_rubbish_costs_only_itself_and_is_explained(tmp_path):
    store, database = opened(tmp_path)
    good = home(1).model_dump_json()
    unfinished = json.loads(home(2).model_dump_json())
    del unfinished["session"]
    unfinished["request"]["messages"] = "ann@example.org"
    texts = (good, "rubbish ann@example.org", "[1,2", json.dumps(unfinished), '{"type":"odd"}', "7")
    store.put("logs/v1/dt=2026-03-02/hh=09/other.jsonl.zst", lines(*texts))
    report = run(store, database)
    assert (report.calls, report.quarantined, report.lost, report.lines) == (1, 5, 0, 6)
    found = quarantine(store)
    assert [entry["line"] for entry in found] == [2, 3, 4, 5, 6]
    assert found[2]["reason"] == "a required field is missing"
    assert found[2]["position"] == "session"
    assert "ann@example.org" not in json.dumps(found)
    assert totals(database).quarantined == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"not compressed at all",
        lambda data: b"",
    ],
)
def test_a_damaged_object_is_quarantined_and_the_others_are_kept(tmp_path, damage):
    store, database = opened(tmp_path)
    put_log(store, [home(n) for n in range(3)], sequence=1)
    broken = put_log(store, [ticket(n) for n in range(200)], sequence=2)
    store.put(broken, damage(store.get(broken)))
    report = run(store, database)
    assert report.objects == 2
    assert report.calls >= 3
    assert report.quarantined == 1
    assert report.lost == 0
    assert [entry["object"] for entry in quarantine(store)] == [broken]
    assert run(store, database) == IngestReport()


def test_an_object_that_is_too_large_is_not_read(tmp_path):
    store, database = opened(tmp_path)
    key = "logs/v1/dt=2026-03-02/hh=09/big.jsonl.zst"
    store.put(key, b"x" * 2000)
    settings = SETTINGS.model_copy(update={"storage": Storage(max_object_bytes=1024)})
    assert run(store, database, settings).quarantined == 1
    assert "2000 bytes" in quarantine(store)[0]["reason"]


def test_a_prompt_of_ten_megabytes(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [call(1, user="word " * 2_000_000), home(2)])
    report = run(store, database)
    assert (report.calls, report.lost) == (2, 0)


def test_a_line_that_is_too_long_is_quarantined(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [call(1, user="word " * 1000), home(2)])
    settings = SETTINGS.model_copy(update={"ingest": Ingest(max_line_bytes=2048)})
    report = run(store, database, settings)
    assert (report.calls, report.quarantined, report.lost) == (1, 1, 0)


def test_repeated_ids_are_kept_once(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1), home(1), home(2)], sequence=1)
    put_log(store, [home(2), home(3)], sequence=2)
    report = run(store, database)
    assert (report.calls, report.repeated, report.lost) == (4, 1, 0)
    assert sorted(stored(store, database)) == ["call-00001", "call-00002", "call-00003"]


def test_copies_are_marked_and_share_their_weight(tmp_path):
    store, database = opened(tmp_path)
    records = [call(n, user=text) for n, text in enumerate(["turn it on", "other", "turn it on"])]
    put_log(store, records)
    assert run(store, database).duplicates == 1
    rows = list(read_columns(store, call_files(database, 9), ["duplicate_of", "weight"]))
    assert [(row["duplicate_of"], row["weight"]) for row in rows] == [
        (None, 0.5),
        (None, 1.0),
        ("call-00000", 0.5),
    ]


def test_personal_data_of_others_logs_is_redacted_and_counted(tmp_path):
    store, database = opened(tmp_path)
    leaky = call(1, user="write to ann@example.org", answer="wrote to ann@example.org")
    again = call(0, user="and ann@example.org again")
    put_log(store, [leaky, again])
    report = run(store, database)
    assert report.personal_data == {"EMAIL": 3}
    assert report.found_here == {"EMAIL": 3}
    files = call_files(database, 9)
    assert b"ann@example.org" not in b"".join(store.get(file.key) for file in files)
    texts = [
        record.model_dump_json() for record, _ in read_calls(store, files, {leaky.id, again.id})
    ]
    assert all("<EMAIL_1>" in text for text in texts)


def test_what_the_gateway_replaced_is_counted_and_left_alone(tmp_path):
    store, database = opened(tmp_path)
    done = call(
        1, user="write to <EMAIL_1>", anonymization={"policy": "replace/1", "counts": {"EMAIL": 2}}
    )
    put_log(store, [done])
    report = run(store, database)
    assert report.personal_data == {"EMAIL": 2}
    assert report.found_here == {}


def test_the_check_can_be_switched_off(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [call(1, user="write to ann@example.org")])
    settings = SETTINGS.model_copy(update={"anonymizer": Anonymizer(enabled=False)})
    assert run(store, database, settings).personal_data == {}


def test_many_rows_become_files_of_bounded_size(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(n) for n in range(25)])
    settings = SETTINGS.model_copy(update={"ingest": Ingest(rows_per_file=10)})
    run(store, database, settings)
    assert [file.rows for file in call_files(database, 99)] == [10, 10, 5]
    assert len(stored(store, database)) == 25


def test_only_the_newest_files_are_read(tmp_path):
    store, database = opened(tmp_path)
    for sequence in range(4):
        put_log(store, [home(sequence * 10 + n) for n in range(3)], sequence)
    run(store, database)
    found = call_files(database, 5)
    assert [file.source[-19:-10] for file in found] == ["000000003", "000000002"]


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


def test_keys_that_are_too_long_for_the_table(tmp_path):
    store, database = opened(tmp_path)
    keys = ["logs/v1/" + "/".join(["x" * 200] * 3) + f"/{n}.jsonl.zst" for n in range(2)]
    for number, key in enumerate(keys):
        store.put(key, encode_lines([home(number)]) + b"rubbish")
    report = run(store, database)
    assert (report.objects, report.calls, report.quarantined) == (2, 2, 2)
