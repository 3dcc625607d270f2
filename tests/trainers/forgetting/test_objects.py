"""A subject's lines go, others stay as they were; killed anywhere, run again, each call counts once."""

from __future__ import annotations

from contextlib import suppress

import pytest

from infra.anonymize.session_names import SessionNames
from infra.calls.codec import read_lines
from infra.calls.record import FeedbackRecord
from infra.objects.store import ObjectStore
from infra.settings.serving import Anonymizer
from tests.trainers.recorded import SETTINGS, START, call, opened, put_log, tool_answer
from trainers.forgetting.objects import find_in_logs, take_from_logs
from trainers.forgetting.subject import Kind, Subject
from trainers.ingest.expiry import clear_superseded
from trainers.ingest.ingest import ingest
from trainers.ingest.reading import call_files, feedback_files, read_columns

LIMIT = 1 << 20


class Dies(Exception):
    pass


class Failing:
    """A store whose writes and deletions break off after a number of them."""

    def __init__(self, store: ObjectStore, after: int) -> None:
        self._store, self._left = store, after

    def __getattr__(self, name: str):
        done = getattr(self._store, name)
        if name not in ("put", "replace", "create", "delete"):
            return done

        def counted(*given):
            if self._left == 0:
                raise Dies
            self._left -= 1
            return done(*given)

        return counted


def about(kind: Kind, value: str, **settings) -> Subject:
    return Subject.of(kind, value, Anonymizer(**settings))


def lines(store: ObjectStore, key: str) -> list[bytes]:
    with store.open(key) as stream:
        return [line.content for line in read_lines(stream)]


def ids(store, database) -> list[str]:
    return sorted(row["id"] for row in read_columns(store, call_files(database, 10**6), ["id"]))


def forget(store, database, subject) -> None:
    find_in_logs(store, subject, LIMIT)
    take_from_logs(store, subject, LIMIT)
    ingest(store, database, SETTINGS, holder="forget", now=START)
    clear_superseded(store, database)


@pytest.mark.parametrize("after", range(9))
def test_broken_off_anywhere_and_run_again(tmp_path, after: int):
    store, database = opened(tmp_path)
    # Two calls to a session; the feedback on a call of session 1 lies before the call itself.
    said = FeedbackRecord(call_id="call-00002", score=0.0, time=START)
    keys = [
        put_log(store, [call(0), said, call(1)], 0, extra=b""),
        put_log(store, [call(2), call(3), call(4)], 1),
        put_log(store, [call(5), call(6)], 2),
    ]
    ingest(store, database, SETTINGS, holder="night", now=START)
    kept = lines(store, keys[1])[2]
    try:
        forget(Failing(store, after), database, about("session", "session-0001"))
    except Dies:
        ingest(store, database, SETTINGS, holder="night", now=START)  # a night comes in between
        assert len(ids(store, database)) == len(set(ids(store, database)))
        assert {f"call-0000{n}" for n in (0, 1, 4, 5, 6)} <= set(ids(store, database))
    forget(store, database, about("session", "session-0001"))
    assert ids(store, database) == [f"call-0000{n}" for n in (0, 1, 4, 5, 6)]
    assert sum(file.rows for file in call_files(database, 10**6)) == 5
    assert feedback_files(database, 10**6) == []
    assert lines(store, keys[1]) == [kept]
    files = {file.key for file in call_files(database, 10**6)}
    assert {item.key for item in store.list("calls/")} == files
    assert not list(store.list("feedback/"))


def test_a_session_is_found_under_the_name_that_the_gateway_gave_it(tmp_path):
    store, database = opened(tmp_path)
    names = SessionNames(personal=lambda _: False, hash_key=b"key")
    put_log(
        store,
        [
            call(0, session=names.safe("ann smith", "shop"), tenant="shop"),
            call(1, session=names.of_user("ann smith", "shop"), tenant="shop"),
            call(2, session=names.safe("ann smith", "shop"), tenant="other"),
            call(3, session="bob"),
        ],
    )
    ingest(store, database, SETTINGS, holder="night", now=START)
    forget(store, database, about("session", "ann smith", hash_key="key"))
    assert ids(store, database) == ["call-00002", "call-00003"]


def test_a_text_is_found_within_json_and_in_any_case(tmp_path):
    store, database = opened(tmp_path)
    answer = tool_answer("note", '{"who": "J\\u00f6rg Meier"}')
    said = FeedbackRecord(
        call_id="call-00001", correction={"content": "ask jörg meier"}, time=START
    )
    put_log(store, [call(0, answer=answer), call(1), call(2, "JÖRG MEIER?"), call(3, "Jörg"), said])
    ingest(store, database, SETTINGS, holder="night", now=START)
    forget(store, database, about("match", "Jörg Meier"))
    assert ids(store, database) == ["call-00001", "call-00003"]
    assert feedback_files(database, 10**6) == []


def test_a_tenant_goes_with_its_feedback_and_a_bad_line_that_names_it(tmp_path):
    store, database = opened(tmp_path)
    said = FeedbackRecord(call_id="x", score=1.0, tenant="shop", time=START)
    import zstandard

    bad = zstandard.compress(b'{"tenant": "shop", "broken\nbroken too\n')
    key = put_log(store, [call(0, tenant="shop"), said, call(1)], extra=bad)
    ingest(store, database, SETTINGS, holder="night", now=START)
    quarantined = [item.key for item in store.list("quarantine/")]
    forget(store, database, about("tenant", "shop"))
    assert [b"call-00001" in lines(store, key)[0], lines(store, key)[1:]] == [True, [b"broken too"]]
    assert [item.key for item in store.list("quarantine/")] == quarantined
    forget(store, database, about("match", "broken too"))
    assert not list(store.list("quarantine/"))
    assert ids(store, database) == ["call-00001"]


def test_feedback_after_its_call_goes_too_wherever_it_breaks_off(tmp_path):
    for after in range(4):
        (tmp_path / f"{after}").mkdir()
        store, database = opened(tmp_path / f"{after}")
        said = [
            FeedbackRecord(call_id="call-00002", tenant=t, time=START) for t in ("default", "x")
        ]
        put_log(store, [call(2), call(5)], 0)
        later = put_log(store, said, 1)
        ingest(store, database, SETTINGS, holder="night", now=START)
        with suppress(Dies):
            forget(Failing(store, after), database, about("session", "session-0001"))
        forget(store, database, about("session", "session-0001"))
        (left,) = lines(store, later)
        assert b'"tenant":"x"' in left, (
            "another tenant's word on a call of that id is not the subject's"
        )


def test_what_cannot_be_read_goes_with_the_subject(tmp_path):
    store, database = opened(tmp_path)
    key = put_log(store, [call(2), call(5, user="long " * 1000)], 0)
    subject = about("session", "session-0001")
    assert take_from_logs(store, subject, 2000)["unreadable"] == 1
    assert lines(store, key) == []
    database.close()


def test_too_short_a_text_and_none_at_all_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        about("match", "ann")
    with pytest.raises(ValueError, match="empty"):
        about("tenant", " ")
    said = about("session", "ann").fingerprint(), about("session", "ann").fingerprint()
    assert said[0] != said[1] and "ann" not in str(said)
