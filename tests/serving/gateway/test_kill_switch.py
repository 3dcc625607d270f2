"""The kill switch: each thing that stops a canary at once, alone and through a gateway on a socket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.database.open import Database
from infra.database.tables import adapters, rollouts
from infra.objects.store import ObjectStore
from infra.prompting.template import PRUNED
from serving.gateway.arms import assign
from serving.gateway.guard import CHAMPION, KillSwitch
from serving.gateway.routes import AdapterRoute, Snapshot, TaskRoute
from serving.gateway.unsafe import UnsafeOutput, strings
from serving.registry.registry import Registry
from tests.serving.gateway.conftest import Running, Start
from tests.serving.gateway.upstreams import EngineServer
from tests.serving.gateway.world import (
    add_adapter,
    add_task,
    chat,
    open_rollout,
    ready,
    set_route,
    until,
)

OLD = AdapterRoute("light@" + "2" * 16, "2" * 64, "x", PRUNED.to_dict(), -0.3)
NEW = AdapterRoute("light@" + "1" * 16, "1" * 64, "x", PRUNED.to_dict(), -0.3)
ROUTE = TaskRoute(
    "light", champion=OLD, candidate=NEW, stage="canary", weight=0.2, rollout_id="r", salt="s"
)
TOKEN = "ghp_" + "a1B2" * 9


@pytest.fixture
def switch(tmp_path: Path) -> KillSwitch:
    return KillSwitch(tmp_path / "kills.json", 3, slow_burst=2, champion_burst=2)


def test_one_unsafe_answer_kills_and_its_text_is_not_repeated(switch: KillSwitch) -> None:
    kill = switch.report(ROUTE, True, False, "checks:unsafe", unsafe="a credential (API_KEY)")
    assert kill is not None and kill.reason == "unsafe output: a credential (API_KEY)"
    assert switch.killed("r")


def test_slow_answers_in_a_row_kill_and_a_quick_one_ends_the_row(switch: KillSwitch) -> None:
    for slow in (True, False, True):
        assert switch.report(ROUTE, False, True, "accepted", slow=slow) is None
    kill = switch.report(ROUTE, False, True, "accepted", slow=True)
    assert kill is not None and kill.reason == "latency collapse: 2 slow answers in a row"


def test_slow_and_wrong_answers_are_rows_of_their_own(switch: KillSwitch) -> None:
    assert switch.report(ROUTE, True, False, "x", slow=True) is None
    assert switch.report(ROUTE, True, False, "x") is None
    kill = switch.report(ROUTE, True, False, "x")
    assert kill is not None and "3 hard failures in a row" in kill.reason


def test_an_adapter_that_is_refused_three_times_is_killed(switch: KillSwitch) -> None:
    assert switch.cannot_load(ROUTE, "rank 64") is None
    assert switch.cannot_load(ROUTE, "rank 64") is None
    kill = switch.cannot_load(ROUTE, "rank 64")
    assert kill is not None
    assert kill.reason == "load failure: 3 refusals to load it in a row: rank 64"
    assert switch.cannot_load(replace(ROUTE, candidate=None, rollout_id=None), "x") is None


def test_refusals_with_a_successful_load_between_them_are_no_row(switch: KillSwitch) -> None:
    snapshot = Snapshot(tasks=(ROUTE,))
    for _ in range(2):
        assert switch.cannot_load(ROUTE, "rank 64") is None
    switch.loaded({OLD.name}, snapshot)  # another one's load says nothing
    switch.loaded({NEW.name}, snapshot)
    for _ in range(2):
        assert switch.cannot_load(ROUTE, "rank 64") is None
    assert switch.cannot_load(ROUTE, "rank 64") is not None


def test_a_broken_champion_is_replaced_by_the_teacher_and_stays_so_until_it_is_off_its_route(
    switch: KillSwitch, tmp_path: Path
) -> None:
    assert switch.report_champion(ROUTE, True, False, "checks:no text") is None
    assert switch.report_champion(ROUTE, False, True, "accepted") is None  # ends the row
    assert switch.report_champion(ROUTE, True, False, "checks:no text") is None
    kill = switch.report_champion(ROUTE, True, False, "checks:no text")
    assert kill is not None and kill.rollout_id == CHAMPION + OLD.name
    assert "the champion is broken: 2 failed answers in a row" in kill.reason
    assert switch.champion_killed(ROUTE) and not switch.killed("r")
    both = frozenset({OLD.name, NEW.name})
    kept = assign(
        replace(ROUTE, weight=0.0), "s", ready=both, killed=False, tended=True, champion_killed=True
    )
    assert (kept.answerer, kept.arm, kept.escalation) == (None, "champion", "kill_switch")
    again = KillSwitch(tmp_path / "kills.json", 3)
    assert again.champion_killed(ROUTE), "a restart does not bring it back"
    again.forget(Snapshot())
    assert again.undelivered() == [kill], "the registry does not know yet"
    again.delivered(kill.rollout_id)
    again.forget(Snapshot((ROUTE,)))
    assert again.champion_killed(ROUTE)
    again.forget(Snapshot((replace(ROUTE, champion=None),)))
    assert not again.champion_killed(ROUTE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("on", None),
        (f"use {TOKEN}", "a credential (API_KEY)"),
        ("see https://ann:s3cret@example.com/x", "a credential (CREDENTIALS)"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "a credential (PRIVATE_KEY)"),
        ("we will FIRE everybody", "text on the deny list"),
    ],
)
def test_what_must_never_be_said(text: str, found: str | None) -> None:
    look = UnsafeOutput(["fire every(body|one)"])
    assert look.found({"role": "assistant", "content": text}, chat("on")) == found
    call = {"function": {"name": "f", "arguments": '{"a": "' + text.replace("\n", "\\n") + '"}'}}
    assert look.found({"role": "assistant", "tool_calls": [call]}, chat("on")) == found


def test_a_credential_that_the_caller_sent_may_be_named_again() -> None:
    answer = {"role": "assistant", "content": f"use {TOKEN}"}
    assert UnsafeOutput().found(answer, chat(f"my token is {TOKEN}")) is None


def test_json_in_a_string_is_read_before_it_is_judged() -> None:
    arguments = '{"a": "' + "".join(f"\\u{ord(c):04x}" for c in TOKEN) + '"}'
    answer = {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert UnsafeOutput().found(answer, chat("on")) == "a credential (API_KEY)"
    assert TOKEN in list(strings(answer))


def test_a_pattern_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        UnsafeOutput(["("])


# Through a gateway


@pytest.fixture
def candidate(database: Database, store: ObjectStore, tmp_path: Path) -> str:
    """The lights task is answered by the teacher, and an adapter is in canary for all sessions."""
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    open_rollout(database, name)
    set_route(database, candidate=name, rollout_id="rollout-1", stage="canary", weight=1.0)
    return name


async def answered_by(running: Running, session: str) -> str:
    got = await running.ask(chat("on"), {"x-session-id": session})
    assert got[0] == 200
    return got[2]["x-nightschool-answered-by"]


def ended(database: Database) -> str | None:
    """The reason of the rollout's end, once it is rolled back and its adapter rejected."""
    with database.read() as connection:
        row = connection.execute(select(rollouts.c.state, rollouts.c.reason)).one()
        state = connection.execute(select(adapters.c.state)).scalar()
    return row.reason if (row.state, state) == ("rolled_back", "rejected") else None


async def test_an_unsafe_answer_is_not_shown_and_ends_the_rollout(
    start: Start, candidate: str, engine: EngineServer, database: Database
) -> None:
    engine.say = lambda *_: f"the key is {TOKEN}"
    async with start() as running:
        await ready(running.http, running.url, candidate)
        assert await answered_by(running, "one") == "teacher"
        assert len(engine.prompts) == 1
        assert await answered_by(running, "two") == "teacher"
        assert len(engine.prompts) == 1, "the second session never met it"
        reason = await until(lambda: ended(database))
    assert reason == "kill switch: unsafe output: a credential (API_KEY)"


async def test_a_denied_text_ends_the_rollout(
    start: Start, candidate: str, engine: EngineServer, database: Database
) -> None:
    engine.say = lambda *_: "ask your lawyer"
    async with start(deny_patterns=("lawyer",)) as running:
        await ready(running.http, running.url, candidate)
        assert await answered_by(running, "one") == "teacher"
        assert await until(lambda: ended(database)) == (
            "kill switch: unsafe output: text on the deny list"
        )


async def test_a_canary_that_has_become_slow_is_stopped(
    start: Start, candidate: str, database: Database
) -> None:
    with database.begin() as connection:
        policy = connection.execute(select(rollouts.c.policy)).scalar_one()
        # Whatever it takes is too long.
        connection.execute(rollouts.update().values(policy={**policy, "slow_seconds": 1e-9}))
    async with start(kill_slow_burst=3) as running:
        await ready(running.http, running.url, candidate)
        for number in range(3):
            assert await answered_by(running, f"s{number}") == candidate
        assert await answered_by(running, "s3") == "teacher"
        reason = await until(lambda: ended(database))
    assert reason == "kill switch: latency collapse: 3 slow answers in a row"


async def test_weights_that_are_not_what_they_should_be_end_the_rollout(
    start: Start,
    candidate: str,
    database: Database,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving.gateway import holdings

    monkeypatch.setattr(holdings, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(holdings, "CHECK_SECONDS", 0.01)
    (weights,) = [item for item in store.list("adapters/") if item.key.endswith(".safetensors")]
    store.put(weights.key, b"not what was trained")
    async with start() as running:
        reason = await until(lambda: ended(database))
        assert await answered_by(running, "one") == "teacher"
    assert reason.startswith("kill switch: load failure: 3 refusals to load it in a row")


async def test_a_store_that_is_away_ends_no_rollout(
    start: Start, candidate: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.gateway import holdings

    monkeypatch.setattr(holdings, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(holdings, "CHECK_SECONDS", 0.01)
    for item in list(store.list("adapters/")):
        store.delete(item.key)
    asked = 0

    async with start() as running:
        real = running.gateway.holdings._pull

        def pull(adapter: AdapterRoute) -> Path:
            nonlocal asked
            asked += 1
            raise OSError("no route to host")

        running.gateway.holdings._pull = pull  # type: ignore[method-assign]
        await until(lambda: asked > 10)
        running.gateway.holdings._pull = real  # type: ignore[method-assign]
        assert not running.gateway.kills.undelivered()


async def test_a_champion_that_is_itself_broken_is_taken_to_the_teacher(
    start: Start, engine: EngineServer, database: Database, store: ObjectStore, tmp_path: Path
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name, version=4)
    engine.say = lambda *_: ""
    async with start(kill_champion_burst=3) as running:
        await ready(running.http, running.url, name)
        for number in range(5):
            assert await answered_by(running, f"s{number}") == "teacher"
        assert len(engine.prompts) == 3, "from then on it is not even asked"
        registry = Registry(database)
        await until(lambda: registry.route("lights").champion == "teacher")
    assert registry.adapter(name).state == "rejected"
    assert "the champion is broken" in registry.events("lights")[0].why


async def test_an_engine_in_trouble_condemns_no_champion(
    start: Start, engine: EngineServer, database: Database, store: ObjectStore, tmp_path: Path
) -> None:
    add_task(database)
    name = add_adapter(database, store, tmp_path)
    set_route(database, champion=name, version=4)
    async with start(kill_champion_burst=1) as running:
        await ready(running.http, running.url, name)
        engine.mode = "error"
        for number in range(3):
            assert await answered_by(running, f"s{number}") == "teacher"
        assert not running.gateway.kills.undelivered()
    assert Registry(database).adapter(name).state == "registered"
