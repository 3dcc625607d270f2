import json
from datetime import timedelta

import pytest
import zstandard

from infra.calls.record import FeedbackRecord, utc_now
from infra.settings.learning import Ingest
from infra.settings.serving import Anonymizer, Storage
from tests.trainers.recorded import (
    SETTINGS,
    START,
    call,
    home,
    opened,
    put_log,
    run,
    stored,
    ticket,
)
from trainers.importing.rerun import rerun
from trainers.ingest import claims
from trainers.ingest.ingest import IngestReport, totals
from trainers.ingest.reading import (
    call_files,
    feedback_files,
    read_calls,
    read_columns,
    read_feedback,
)


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


def test_a_record_of_the_future_waits_in_quarantine(tmp_path):
    store, database = opened(tmp_path)
    ahead = utc_now() + timedelta(hours=2)
    put_log(store, [call(1), call(2, time=ahead), call(3, time=utc_now() + timedelta(minutes=5))])
    report = run(store, database)
    assert (report.calls, report.quarantined, report.lost) == (2, 1, 0)
    (line,) = quarantine(store)
    assert (line["line"], line["position"]) == (2, "time")
    assert line["reason"] == "a time in the future: is a clock wrong?"
    assert rerun(store, SETTINGS).settled == 0
    done = rerun(store, SETTINGS, now=ahead)
    assert (done.settled, done.stored) == (1, 1)


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


def test_an_id_is_its_tenants_own(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, [home(1), home(1, tenant="other")])
    report = run(store, database)
    assert (report.calls, report.repeated) == (2, 0)


def test_copies_are_marked_and_share_their_weight(tmp_path):
    store, database = opened(tmp_path)
    records = [call(n, user=text) for n, text in enumerate(["turn it on", "other", "turn it on"])]
    put_log(store, records)
    assert run(store, database).duplicates == 1
    rows = read_columns(store, call_files(database, 9), ["duplicate_of", "weight"])
    assert sorted((row["id"], row["duplicate_of"], row["weight"]) for row in rows) == [
        ("call-00000", None, 0.5),
        ("call-00001", None, 1.0),
        ("call-00002", "call-00000", 0.5),
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
