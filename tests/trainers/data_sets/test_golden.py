"""A prompt's right answer is pinned once, by whom is known, and nothing learns from it."""

from __future__ import annotations

import json

import pytest

from infra.calls.codec import encode_lines, log_key
from infra.calls.record import new_id, utc_now
from infra.database.events import list_events
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.model import Settings
from tests.trainers.recorded import SETTINGS, START, home, opened
from trainers.data_sets.freeze import freeze
from trainers.data_sets.golden import (
    GoldenError,
    GoldenMissing,
    case_from_call,
    case_from_json,
    golden_cases,
    make_case,
    pin,
    take_away,
)
from trainers.data_sets.splits import SPLITS
from trainers.data_sets.versions import read_split
from trainers.discover.discover import discover
from trainers.ingest.ingest import ingest

SAYS = {"role": "assistant", "content": "spam"}


def case(text: str = "is it?", answer: str = "spam", least: float = 1.0):
    request = {"messages": [{"role": "user", "content": text}]}
    return make_case("mail", request, {"content": answer}, least=least, why="audit", by="ann")


def words(database: Database) -> list[str]:
    with database.read() as connection:
        return [event.what for event in list_events(connection, subject="mail")]


def test_pinned_listed_and_taken_away_each_with_its_event(settings: Settings, database: Database):
    store = open_store(settings.storage)
    kept = pin(store, database, case())
    assert pin(store, database, case()) == kept and golden_cases(store, "mail") == [kept]
    assert golden_cases(store, "mai") == []
    with pytest.raises(GoldenError, match="another answer"):
        pin(store, database, case(answer="ham"))
    take_away(store, database, "mail", kept.id, why="wrong", by="bob")
    take_away(store, database, "mail", kept.id, why="wrong", by="bob")
    assert golden_cases(store) == []
    pin(store, database, case(answer="ham"))
    assert words(database) == ["golden.added", "golden.removed", "golden.added"]
    with pytest.raises(GoldenMissing, match="golden list"):
        take_away(store, database, "mail", "0" * 32, why="", by="bob")


def test_what_a_killed_process_left_out_is_added_by_the_same_again(
    settings: Settings, database: Database
):
    store = open_store(settings.storage)
    kept = case()
    store.create(kept.key, json.dumps(kept.to_dict()).encode())
    pin(store, database, case())
    assert words(database) == ["golden.added"]
    store.delete(kept.key)
    take_away(store, database, "mail", kept.id, why="", by="bob")
    assert words(database) == ["golden.added", "golden.removed"]


def test_a_file_is_kept_without_personal_data_and_must_be_sound(settings: Settings):
    def read(value) -> object:
        return case_from_json(settings, "mail", json.dumps(value).encode(), why="", by="ann")

    asked = {"messages": [{"role": "user", "content": "mail ann@example.com"}]}
    made = read({"request": asked, "answer": {"content": "to ann@example.com"}})
    assert made.request["messages"][0]["content"] == "mail <EMAIL_1>"
    assert made.answer["content"] == "to <EMAIL_1>"
    tools = [{"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}]
    unknown = {"tool_calls": [{"function": {"name": "drop", "arguments": "{}"}}]}
    for broken, said in (
        ([], "no JSON object"),
        ({"request": asked}, "a golden case is"),
        ({"request": {"messages": []}, "answer": SAYS}, "messages"),
        ({"request": asked, "answer": {"content": ""}}, "not empty"),
        ({"request": {**asked, "tools": tools}, "answer": unknown}, "checks"),
    ):
        with pytest.raises(GoldenError, match=said):
            read(broken)
    with pytest.raises(GoldenError, match="not JSON"):
        case_from_json(settings, "mail", b"{", why="", by="ann")
    with pytest.raises(GoldenError, match="at most 1"):
        case(least=1.5)


def test_the_teachers_answer_to_a_logged_call_is_pinned_and_no_version_holds_its_prompt(tmp_path):
    store, database = opened(tmp_path)
    records = [home(n).model_copy(update={"id": new_id()}) for n in range(60)]
    store.put(log_key(utc_now(), "gateway", 0), encode_lines(records))
    ingest(store, database, SETTINGS, holder="night", now=START)
    task = discover(store, database, SETTINGS, START)[0]
    made = case_from_call(store, database, task.id, records[7].id, why="", by="ann")
    assert made.answer == records[7].answer and made.call_id == records[7].id
    pin(store, database, made)
    version = freeze(store, database, SETTINGS, task.id, START)
    held = [e for name in SPLITS for e in read_split(store, version, name)]
    assert held and made.request["messages"] not in [e.request["messages"] for e in held]
    assert version.manifest["dropped"]["golden"] == 1
