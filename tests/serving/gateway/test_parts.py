"""Streaming, guard, breaker, snapshot file, sessions, feedback: each for itself."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.anonymize.session_names import SessionNames
from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.prompting.template import PRUNED
from serving.breaker import CircuitBreaker
from serving.gateway.guard import KillSwitch, tended
from serving.gateway.intake import parse_chat
from serving.gateway.opinions import sampled
from serving.gateway.refresh import RouteTable
from serving.gateway.routes import (
    AdapterRoute,
    KeyRoute,
    Snapshot,
    TaskRoute,
    frame_of,
)
from serving.gateway.scopes import Scopes
from serving.gateway.snapshot_file import SnapshotError, SnapshotFile, load_snapshot
from serving.gateway.snapshot_rows import SnapshotReader
from serving.gateway.streaming import Assembler, StreamProblem, chunks, completion
from tests.serving.gateway.conftest import Start
from tests.serving.gateway.upstreams import TeacherServer
from tests.serving.gateway.world import add_adapter, add_task, chat, open_rollout, set_route, until

NOW = datetime(2026, 5, 1, tzinfo=UTC)

MESSAGES = st.one_of(
    st.builds(lambda text: {"role": "assistant", "content": text}, st.text()),
    st.builds(
        lambda names: {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps({"a": name})},
                }
                for i, name in enumerate(names)
            ],
        },
        st.lists(st.text(min_size=1), min_size=1, max_size=3),
    ),
)


@given(MESSAGES, st.integers(1, 50), st.booleans())
def test_what_is_streamed_assembles_to_what_it_was(message, size: int, usage: bool) -> None:
    response = completion("id", "m", message, prompt_tokens=3, completion_tokens=4)
    data = b"".join(chunks(response, include_usage=usage))
    assembler = Assembler()
    for start in range(0, len(data), size):  # cut anywhere, also inside a character
        assembler.feed(data[start : start + size])
    assert assembler.done and assembler.complete
    got = assembler.response()
    assert got["choices"][0]["message"] == message
    assert got["choices"][0]["finish_reason"] == response["choices"][0]["finish_reason"]
    assert got.get("usage") == (response["usage"] if usage else None)
    assert got["id"] == "chatcmpl-id"


def test_an_unfinished_stream_is_not_complete() -> None:
    response = completion("id", "m", {"content": "a b"}, prompt_tokens=1, completion_tokens=1)
    first = next(iter(chunks(response, include_usage=False)))
    assembler = Assembler()
    assembler.feed(first)
    assert not assembler.complete
    assembler.feed(b'data: {"error": {"message": "x"}}\r\n\r\n')
    assert assembler.error and not assembler.complete
    for rubbish in (b"data: {\n\n", b"data: 3\n\n", b"data: " + b"x" * (5 << 20)):
        with pytest.raises(StreamProblem):
            Assembler().feed(rubbish)


ROUTE = TaskRoute(
    "light",
    candidate=AdapterRoute("light@" + "1" * 16, "1" * 64, "x", PRUNED.to_dict(), -0.3),
    stage="canary",
    weight=0.2,
    rollout_id="r",
    updated=NOW,
    centroid=(0.5, -0.25),
)


def test_the_kill_switch_counts_failures_in_a_row_and_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "kills.json"
    switch = KillSwitch(path, burst=3)
    for hard, passed in [(True, False), (True, False), (False, True), (True, False), (True, False)]:
        assert switch.report(ROUTE, hard, passed, "x") is None
    assert switch.report(ROUTE, False, False, "overloaded") is None  # neither counts nor clears
    kill = switch.report(ROUTE, True, False, "checks:no text")
    assert kill is not None and "3 hard failures" in kill.reason
    assert switch.report(ROUTE, True, False, "x") is None  # once is enough
    again = KillSwitch(path, burst=3)
    assert again.killed("r") and not again.killed("other") and not again.killed(None)
    assert [kill.adapter for kill in again.undelivered()] == [ROUTE.candidate.name]  # type: ignore[union-attr]
    again.forget(Snapshot())
    assert again.killed("r")  # not before the registry knows
    again.delivered("r")
    assert again.undelivered() == []
    again.forget(Snapshot((ROUTE,)))
    assert again.killed("r")
    again.forget(Snapshot())
    assert not KillSwitch(path, burst=3).killed("r")


def test_a_damaged_kill_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "kills.json").write_text('[{"x": 1}]')
    assert not KillSwitch(tmp_path / "kills.json", 1).killed("r")


def test_the_dead_mans_timer() -> None:
    assert tended(ROUTE, NOW + timedelta(seconds=900), 900)
    assert not tended(ROUTE, NOW + timedelta(seconds=901), 900)
    assert not tended(replace(ROUTE, updated=None), NOW, 900)
    assert tended(replace(ROUTE, stage="none"), NOW + timedelta(days=9), 900)


def test_the_breaker_opens_tries_one_and_closes() -> None:
    time = [0.0]
    breaker = CircuitBreaker(2, 5.0, lambda: time[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allow()
    breaker.failed()
    assert not breaker.allow()
    time[0] = 5.0
    assert breaker.allow() and not breaker.allow()  # one probe
    breaker.failed()
    assert not breaker.allow()
    time[0] = 10.0
    assert breaker.allow()
    time[0] = 15.0
    assert breaker.allow()  # a probe that never reported
    breaker.succeeded()
    assert breaker.allow() and breaker.allow()


def test_a_snapshot_survives_the_disk(tmp_path: Path) -> None:
    snapshot = Snapshot((ROUTE, TaskRoute("b")), {"hash": KeyRoute("acme")}, NOW)
    path = tmp_path / "deep" / "routes.json"
    assert load_snapshot(path) is None
    SnapshotFile(path).save(snapshot)
    assert load_snapshot(path) == snapshot
    assert [file.name for file in path.parent.iterdir()] == ["routes.json"]
    for rubbish in ("", "[]", '{"version": 1}', '{"version": 99}', path.read_text()[:-20]):
        path.write_text(rubbish)
        with pytest.raises(SnapshotError):
            load_snapshot(path)


def test_the_snapshot_says_what_the_registry_says(
    each_database: Database, store: ObjectStore, tmp_path: Path
) -> None:
    database = each_database
    structure = {"tools": ["b", "a"], "response_kind": "text", "response_name": ""}
    add_task(database, tag="lamps", details={"tenant": "acme", "structure": structure})
    add_task(database, "gone", state="retired")
    name = add_adapter(
        database, store, tmp_path, form=PRUNED, threshold=-0.125, confidence="sequence"
    )
    open_rollout(database, name, audit_rate=0.75)
    updated = datetime.now(UTC)
    set_route(
        database,
        candidate=name,
        rollout_id="rollout-1",
        stage="canary",
        weight=0.25,
        salt="pepper",
        version=7,
        updated=updated,
    )
    reader = SnapshotReader(database)
    (task,) = reader.read(NOW).tasks  # type: ignore[union-attr]
    assert task.candidate == AdapterRoute(
        name,
        task.candidate.digest,
        f"adapters/lights/{task.candidate.digest}",
        PRUNED.to_dict(),
        -0.125,  # type: ignore[union-attr]
        "sequence",
    )
    assert task.champion is None
    assert (task.stage, task.weight, task.salt, task.version) == ("canary", 0.25, "pepper", 7)
    assert (task.tag, task.tenant) == ("lamps", "acme")
    assert task.frame == frame_of(["a", "b"], "text", "")
    assert (task.rollout_id, task.audit_rate, task.updated) == ("rollout-1", 0.75, updated)
    assert reader.read(NOW) is None  # nothing new
    set_route(database, candidate=name, stage="canary", version=8, updated=updated)
    again = reader.read(NOW)
    reader.close()
    assert again is not None and again.tasks[0].version == 8


def test_the_table_keeps_the_last_good_snapshot(
    database: Database, store: ObjectStore, tmp_path: Path
) -> None:
    add_task(database)
    broken = False
    seen: list[Snapshot] = []

    def opened() -> Database:
        if broken:
            raise OSError("gone")
        return database

    table = RouteTable(opened, tmp_path / "routes.json", 1, seen.append)
    assert not table.known
    assert table.refresh() and table.refresh()
    assert [task.id for task in table.current.tasks] == ["lights"]
    assert len(seen) == 1  # the second look found nothing new
    broken = True
    restarted = RouteTable(opened, tmp_path / "routes.json", 1)
    assert restarted.known
    assert not restarted.refresh() and restarted.failing
    assert restarted.current.tasks == table.current.tasks
    broken = False
    set_route(database, version=9)
    assert restarted.refresh() and not restarted.failing
    assert restarted.current.tasks[0].version == 9


def names(personal: str = "@") -> SessionNames:
    return SessionNames(lambda text: personal in text or text.startswith("49"), b"")


def session(body: dict | None = None, **headers: str) -> str:
    raw = json.dumps(body or chat("x")).encode()
    return parse_chat(
        raw, {name.replace("_", "-"): v for name, v in headers.items()}, "t", names()
    ).session


def test_a_session_is_what_the_caller_says_or_what_it_begins_with() -> None:
    assert session(x_session_id="run-7.a") == "run-7.a"
    assert session(chat("x", metadata={"session_id": "m1"})) == "m1"
    assert session(chat("x", metadata={"session_id": "m1"}), x_session_id="h1") == "h1"
    for personal in ("ann@example.com", "49123456", "Ann Smith", "x" * 200):
        hashed = session(x_session_id=personal)
        assert hashed.startswith("s-") and personal not in hashed
        assert hashed == session(x_session_id=personal)
    assert session(chat("x", user="ann")) != session(chat("x", user="bob"))
    assert "ann" not in session(chat("x", user="ann"))
    longer = chat("x")
    longer["messages"] += [
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
    ]
    assert session(longer) == session(chat("x")) != session(chat("w"))
    keyed = parse_chat(json.dumps(chat("x")).encode(), {}, "t", SessionNames(lambda _: False, b"k"))
    assert keyed.session != session(chat("x"))


def test_scopes_are_bounded_and_never_shared_by_tenants() -> None:
    made: Scopes[object] = Scopes(object, most=2)
    a, b = made.of("a", "1"), made.of("b", "1")
    assert a is not b and made.of("a", "1") is a
    made.of("c", "1")
    assert len(made) == 2
    assert made.peek("a", "1") is a and made.peek("b", "1") is None


def test_audits_are_sampled_by_the_calls_id() -> None:
    ids = [f"call-{i}" for i in range(2000)]
    some = {i for i in ids if sampled(i, 0.3)}
    assert 450 < len(some) < 750
    assert some == {i for i in ids if sampled(i, 0.3)}
    assert some <= {i for i in ids if sampled(i, 0.5)}
    assert not any(sampled(i, 0.0) for i in ids) and all(sampled(i, 1.0) for i in ids)


async def test_a_session_whose_scope_is_at_work_in_a_thread_holds_up_nobody(
    start: Start, teacher: TeacherServer
) -> None:
    async with start() as running:
        status, _, _ = await running.ask(chat("first"), {"x-session-id": "s"})
        assert status == 200
        scope = running.gateway.answering.scopes.peek("default", "s")
        assert scope is not None
        held, enough = threading.Event(), threading.Event()

        def hold() -> None:
            with scope._lock:
                held.set()
                enough.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        await asyncio.to_thread(held.wait, 3)
        call = asyncio.create_task(running.ask(chat("second"), {"x-session-id": "s"}))
        await until(lambda: len(teacher.asked) == 2)
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            async with running.http.get(f"{running.url}/healthz") as answer:
                assert answer.status == 200
        # The answers so far came while the scope was held, not after.
        assert thread.is_alive() and not enough.is_set()
        enough.set()
        assert (await call)[0] == 200
        await asyncio.to_thread(thread.join, 3)
