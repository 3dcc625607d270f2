"""Commands that act keep who asked, and why; those that only look keep nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.database.events import list_events
from infra.database.open import Database
from tests.flows.cli.conftest import Run
from tests.prefect_server import PrefectServer

BY = ("--as", "ann@desk", "--why", "the audit")


@pytest.mark.parametrize(
    ("words", "what", "subject"),
    [
        (("gc",), "gc.asked", "all"),
        (("import", "openai", "calls.jsonl", "--tenant", "shop"), "import.asked", "calls.jsonl"),
        (("quarantine", "rerun"), "quarantine.asked", "all"),
    ],
)
def test_who_asked_is_kept(run: Run, empty: Database, words: tuple, what: str, subject: str):
    call = {"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}
    Path("calls.jsonl").write_text(json.dumps({"messages": call}) + "\n")
    run(*words, *BY)
    with empty.read() as connection:
        event = list_events(connection)[0]
    assert (event.what, event.subject) == (what, subject)
    assert (event.actor, event.why) == ("ann@desk", "the audit")


def test_who_asked_for_a_night_is_kept_and_the_reason_is_the_runs(
    run: Run,
    empty: Database,
    prefect_server: PrefectServer,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in prefect_server.settings.items():
        monkeypatch.setenv(name, value)
    begun: list[dict] = []
    # What a night does is for other tests.
    monkeypatch.setattr("flows.night.night", lambda **given: begun.append(given))
    run("night", *BY)
    assert begun == [{"reason": "the audit", "only": None, "by_hand": True}]
    with empty.read() as connection:
        (event,) = list_events(connection)
    assert (event.what, event.subject, event.actor) == ("night.asked", "all", "ann@desk")


@pytest.mark.parametrize("words", [("gc",), ("import", "openai", "calls.jsonl")])
def test_a_look_leaves_no_event(run: Run, empty: Database, words: tuple):
    Path("calls.jsonl").write_text('{"messages": []}\n')
    run(*words, "--dry-run", *BY)
    with empty.read() as connection:
        assert list_events(connection) == []


def test_who_restored_a_database_is_its_last_event(run: Run, empty: Database, folder: Path):
    run("db", "backup", "copy.jsonl.zst")
    empty.close()
    (folder / "ns.db").unlink()
    run("db", "restore", "copy.jsonl.zst", *BY)
    [event] = json.loads(run("events", "--json").stdout)
    assert (event["what"], event["subject"]) == ("backup.restored", "copy.jsonl.zst")
    assert (event["actor"], event["why"]) == ("ann@desk", "the audit")
