"""The judge's word beside a rollout: it may save a canary from words, and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from evaluators.sessions import JUDGED, call_outcome, session_outcomes
from flows.forgetting import forget, look_for
from flows.housekeeping import housekeep
from flows.judged_evidence import judging_seconds, within_a_look, worth_asking
from flows.kept_evidence import JUDGED_PREFIX, PREFIX, note_logs_forgot
from flows.replaying import replay
from flows.upkeep import rest_seconds
from infra.calls.record import FeedbackRecord
from infra.database.open import Database
from infra.settings.model import Settings
from tests.evaluators.making import START, call, report_of
from tests.flows.rollout_world import World, world_of
from tests.teacher_server import FakeTeacher
from trainers.forgetting.subject import Subject


def word(record: Any, score: float, after_seconds: float = 1) -> FeedbackRecord:
    return report_of(record, score, after_seconds, label=JUDGED)


@pytest.mark.parametrize(
    ("agrees", "said", "interval"),
    [
        (False, 1.0, (0.0, 1.0)),
        (False, 0.0, (0.0, 0.0)),
        (True, 0.0, (0.0, 1.0)),
        (True, 1.0, (1.0, 1.0)),
        (None, 1.0, (0.0, 1.0)),
    ],
)
def test_the_judges_word_only_widens(
    agrees: bool | None, said: float, interval: tuple[float, float]
) -> None:
    record = call("s", 0, agrees=agrees)
    found = call_outcome(record, [word(record, said)])
    assert (found.best_known.low, found.best_known.high) == interval
    assert (found.said.low, found.said.high) == (0.0, 1.0), "it is no caller's word"
    plain = call_outcome(record, [])
    assert found.agreed == plain.agreed and found.basis == plain.basis


def test_what_a_caller_says_and_a_hard_failure_stand_above_it() -> None:
    record = call("s", 0, agrees=False)
    both = call_outcome(record, [report_of(record, 0.0), word(record, 1.0, 2)])
    assert both.best_known.high == 0.0 and both.basis == "feedback"
    failed = call("s", 0, escalation="checks:no text")
    assert call_outcome(failed, [word(failed, 1.0)]).best_known.high == 0.0


def test_a_word_after_the_horizon_counts_for_nothing() -> None:
    record = call("s", 0, agrees=False)
    for after, high in ((59, 1.0), (61, 0.0)):
        (session,) = session_outcomes(
            [record],
            [word(record, 1.0, after)],
            rollout="rollout-1",
            maturity_seconds=60,
            now=START.replace(hour=9),
        )
        assert session.high == high


def test_only_differing_answers_of_the_canary_are_drawn() -> None:
    differing = [call(f"d{n}", n, agrees=False) for n in range(200)]
    others = [call("same", 300), call("champion", 301, "champion", agrees=False)]
    others += [call("escalated", 302, escalation="confidence"), call("unasked", 303, agrees=None)]
    others += [call("elsewhere", 304, agrees=False, rollout="other")]
    chosen = worth_asking([*differing, *others], "rollout-1", 1.0, since=START)
    assert chosen == differing
    half = worth_asking(differing, "rollout-1", 0.5, since=START)
    assert 70 < len(half) < 130
    assert half == worth_asking(list(reversed(differing)), "rollout-1", 0.5, since=START)
    assert worth_asking(differing, "rollout-1", 0.0, since=START) == []
    late = worth_asking(differing, "rollout-1", 1.0, since=differing[150].time)
    assert late == differing[150:]


@pytest.fixture
def server() -> Iterator[FakeTeacher]:
    fake = FakeTeacher({}, lambda _: '{"better": "tie"}')
    yield fake
    fake.close()


@contextmanager
def judged_world(
    settings: Settings, database: Database, server: FakeTeacher, **judge: Any
) -> Iterator[World]:
    value = settings.model_dump()
    value["judge"] |= {
        "url": server.settings.url,
        "model": "large",
        "rollout_share": 1.0,
        "retries": 0,
        "concurrency": 8,
        "calls_per_day": 10_000,
        "money_per_day": 1000,
    } | judge
    value["retention"]["evidence_seconds"] = 3600
    with world_of(Settings.model_validate(value), database) as made:
        yield made


@pytest.fixture
def world(settings: Settings, database: Database, server: FakeTeacher) -> Iterator[World]:
    with judged_world(settings, database, server) as made:
        yield made


def to_the_end(world: World, right: bool, batches: int = 4) -> str:
    world.open()
    for _ in range(batches):
        world.look(1)
        if not world.rollout().open:
            break
        world.play(30, right=right)
        world.look(1)  # in time: what the judge says of these counts
        world.now = world.now.replace(microsecond=0)
        world.look(61)
    return world.rollout().state


def worse(body: dict[str, Any]) -> str:
    shown = json.loads(body["messages"][-1]["content"])
    return json.dumps({"better": "second" if shown["first"]["content"] == "yes" else "first"})


def prose(_: dict[str, Any]) -> str:
    return "Both are fine, I would say."


def test_a_canary_that_says_it_otherwise_is_not_rolled_back_and_not_promoted(
    world: World, server: FakeTeacher
) -> None:
    assert to_the_end(world, right=False) == "canary"
    words = [
        item.key for item in world.context.store.list(f"{JUDGED_PREFIX}{world.rollout().id}/words/")
    ]
    assert words and len(server.asked) == 2 * len(words), "each answer once, in both orders"
    gone = Subject.of("tenant", "default", world.context.settings.anonymizer)
    assert look_for(world.context, gone)["evidence_objects"] >= len(words)
    forget(world.context, gone)
    assert look_for(world.context, gone)["evidence_objects"] == 0


@pytest.mark.parametrize("reply", [worse, prose, lambda _: 503])
def test_a_judge_that_finds_it_worse_or_nothing_changes_no_rollback(
    world: World, server: FakeTeacher, reply: Callable[[dict[str, Any]], str | int]
) -> None:
    server.otherwise = reply
    assert to_the_end(world, right=False) == "rolled_back"
    rollout = world.rollout()
    for item in list(world.context.store.list(PREFIX)):
        world.context.store.delete(item.key)
    steps = replay(world.context, rollout.id)
    assert all(step.same for step in steps), [step.differences for step in steps]
    housekeep(world.context, now=rollout.entered.replace(year=rollout.entered.year + 1))
    assert not list(world.context.store.list(f"{JUDGED_PREFIX}{rollout.id}/"))


def test_the_day_has_a_budget_and_a_look_has_an_end(
    settings: Settings, database: Database, server: FakeTeacher
) -> None:
    with judged_world(settings, database, server, calls_per_day=6) as world:
        to_the_end(world, right=False, batches=3)
        assert len(server.asked) == 6
        for tend, dead_man, wait in ((60, 300, 30), (60, 80, 10)):
            value = world.context.settings.model_dump()
            value["rollout"]["tend_seconds"] = tend
            value["gateway"]["dead_man_seconds"] = dead_man
            context = replace(world.context, settings=Settings.model_validate(value))
            assert judging_seconds(context) == wait
            assert tend + judging_seconds(context) < dead_man, "gateways hear of the next look"


def test_answers_without_a_verdict_are_not_asked_about_at_each_look(
    world: World, server: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.judged_evidence.MAX_PER_LOOK", 1)
    server.otherwise = prose
    world.open()
    world.look(1)
    world.play(30, right=False)
    for looks in (1, 2, 3):
        world.look(1)
        assert len(server.asked) == 2 * looks


def test_no_word_outlives_a_forgetting_that_comes_while_the_judge_thinks(
    world: World, server: FakeTeacher
) -> None:
    def words() -> list[str]:
        prefix = f"{JUDGED_PREFIX}{world.rollout().id}/words/"
        return [item.key for item in world.context.store.list(prefix)]

    world.open()
    world.look(1)
    world.play(30, right=False)
    lock, forgotten = threading.Lock(), list[bool]()

    def meanwhile(_: dict[str, Any]) -> str:
        with lock:  # no answer before it
            if not forgotten:
                note_logs_forgot(world.context.database, world.now)
                forgotten.append(True)
        return '{"better": "tie"}'

    server.otherwise = meanwhile
    world.look(1)
    assert server.asked and words() == []
    world.look(1)
    assert words(), "what is still in the logs gets its word at the next look"


def test_a_judge_that_is_away_is_left_alone_for_a_while(
    settings: Settings, database: Database, server: FakeTeacher
) -> None:
    server.otherwise = lambda _: 503
    with judged_world(settings, database, server, concurrency=1) as world:
        world.open()
        world.look(1)
        world.play(30, right=False)
        for _ in range(3):
            world.look(1)
            assert len(server.asked) == 2, "each try takes of the day's budget"


def test_a_look_is_no_longer_than_its_time(settings: Settings) -> None:
    assert within_a_look(settings.judge, 30).timeout_seconds == 15
    assert within_a_look(settings.judge, 300).timeout_seconds == settings.judge.timeout_seconds
    assert rest_seconds(60, 30) == 30 and rest_seconds(60, 90) == 0


def test_it_is_off_by_default(settings: Settings, database: Database) -> None:
    with world_of(settings, database) as world:
        assert to_the_end(world, right=False) == "rolled_back"
        assert not list(world.context.store.list(JUDGED_PREFIX))
