"""Drift between nights: found in real logs, told once, asked for as a webhook would, shown with examples."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from flows import watching
from flows.drift_inquiry import NothingToCompare, inquire
from flows.drift_reports import clear_old, drift_report, every_look, looks, prefix_of
from flows.forgetting import forget
from flows.hooks.receipts import Receipt, Receipts
from flows.live_calls import LiveCalls
from flows.watching import SENDER, Look, champion_since, set_asking, tell, watch_tasks
from flows.wiring import Context
from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord, FeedbackRecord
from infra.database.events import Event, list_events
from infra.database.open import Database
from infra.database.tables import outbox
from infra.notify.console import ConsoleChannel
from infra.objects.open import open_store
from infra.settings.model import Settings
from infra.settings.operating import Watch
from serving.registry.registry import Registry
from tests.prefect_server import free_port
from tests.serving.registry.world import NOW
from tests.serving.rollout.stage import bring_to
from tests.trainers.recorded import SETTINGS, START, home, put_log
from trainers.data_sets.freeze import freeze
from trainers.data_sets.versions import DatasetVersion
from trainers.discover.discover import discover
from trainers.forgetting.subject import Subject
from trainers.ingest.ingest import ingest

DAY = timedelta(days=1)
TAUGHT = 240
GERMAN = (
    "schalte das Licht in der Küche ein",
    "mach bitte die Lampe im Flur aus",
    "bitte die Heizung aus",
)


@dataclass
class World:
    context: Context
    task: str
    version: DatasetVersion
    champion: str
    now: datetime = START + DAY
    played: int = 10_000
    objects: int = 1

    def day(
        self, calls: int = 60, *, german: float = 0.0, escalated: float = 0.0, bad: float = 0.0
    ) -> None:
        """A day of calls that the champion answers; so many of them are other than before."""
        records: list[CallRecord | FeedbackRecord] = []
        for _ in range(calls):
            self.played += 1
            dice = random.Random(self.played)
            record = home(
                self.played,
                time=self.now + timedelta(minutes=len(records)),
                session=f"s{self.played // 2}",
                task=self.task,
                answered_by=AnsweredBy(
                    model="m",
                    adapter=self.champion,
                    arm="champion",
                    escalation="confidence" if dice.random() < escalated else None,
                ),
            )
            if dice.random() < german:
                record = record.model_copy(update={"request": _asking(record, dice.choice(GERMAN))})
            records.append(record)
            records.append(
                FeedbackRecord(
                    id=f"f{self.played}",
                    time=record.time,
                    call_id=record.id,
                    score=0.0 if dice.random() < bad else 1.0,
                )
            )
        self.objects += 1
        key = log_key(self.now, "gateway", self.objects)
        self.context.store.put(key, encode_lines(records))
        ingest(self.context.store, self.context.database, self.context.settings, holder="t")
        self.now += DAY

    def look(self) -> list[Look]:
        return watch_tasks(self.context, now=self.now)

    def events(self, what: str) -> list[Event]:
        with self.context.database.read() as connection:
            return list(list_events(connection, what=what))

    def kept(self) -> list[Receipt]:
        return Receipts(self.context.database).kept("retrain")


class Killed(BaseException):
    pass


def _die(*_: object) -> bool:
    raise Killed


def _asking(record: CallRecord, text: str) -> dict[str, object]:
    system, _ = record.request["messages"]
    return {**record.request, "messages": [system, {"role": "user", "content": text}]}


@pytest.fixture
def world(settings: Settings, database: Database) -> Iterator[World]:
    prefect = settings.prefect.model_copy(update={"api_url": f"http://127.0.0.1:{free_port()}/api"})
    settings = settings.model_copy(
        update={
            "ingest": SETTINGS.ingest,
            "discovery": SETTINGS.discovery,
            "training": settings.training.model_copy(update={"min_examples": 10}),
            "prefect": prefect,
            "watch": Watch(),
        }
    )
    store, registry = open_store(settings.storage), Registry(database)
    context = Context(settings, store, database, registry, {"console": ConsoleChannel()}, "test:1")
    put_log(store, [home(n, session=f"taught-{n}") for n in range(TAUGHT)])
    ingest(store, database, settings, holder="t")
    (task,) = discover(store, database, settings)
    version = freeze(store, database, settings, task.id)
    adapter = registry.register_adapter(
        name=f"{task.id}@{'a' * 16}",
        task_id=task.id,
        digest="a" * 64,
        dataset_digest=version.digest,
        spec_digest="b" * 64,
        location=f"adapters/{task.id}/{'a' * 64}",
        manifest={"spec": {}, "metrics": {}},
        threshold=None,
    )
    registry.set_route(
        task.id, 0, None, champion=adapter.name, actor="ann", why="t", now=START + DAY
    )
    yield World(context, task.id, version, adapter.name)


def test_the_same_traffic_is_no_drift_and_is_looked_at_once_a_day(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.day()
    (first,) = world.look()
    assert (first.against, first.drifted) == ("training", False)
    assert world.look() == []
    assert watch_tasks(world.context, now=world.now + timedelta(hours=20)) == []
    assert world.events("task.drifted") == [] and not Receipts(world.context.database).kept()
    # A night's own report of the data set lies beside the looks, and is none of them.
    made = drift_report(world.context, world.version)
    assert b"<html" in world.context.store.get(made.html_key)
    assert json.loads(world.context.store.get(made.json_key))["summary"]["columns"]
    prefix = prefix_of(world.task, world.version.digest)
    for number in range(4):
        for name in ("drift.html", "drift.json"):
            world.context.store.put(f"{prefix}/2026010{number + 1}T000000Z-training/{name}", b"{}")
    monkeypatch.setattr("flows.drift_reports.MAX_KEPT", 3)
    clear_old(world.context, prefix)
    assert [when.day for when, _ in looks(world.context, prefix)] == [3, 4, world.now.day]
    assert world.context.store.get(made.json_key)


def test_a_task_of_few_calls_is_tried_once_a_day_and_a_killed_look_leaves_no_page(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    killed = f"{prefix_of(world.task, world.version.digest)}/20260101T000000Z-training/drift.html"
    world.context.store.put(killed, b"<html>")
    world.day(2)
    assert world.look() == []
    with monkeypatch.context() as patch:
        patch.setattr(LiveCalls, "index", _die)
        assert watch_tasks(world.context, now=world.now + timedelta(hours=20)) == []
    assert killed not in [item.key for item in world.context.store.list("reports/")]
    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(LiveCalls, "index", _die)
        watch_tasks(world.context, now=world.now + DAY)


def test_drift_is_told_once_with_numbers_and_its_retraining_kept_while_prefect_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.day(german=0.5)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(watching, "tell", _die)
        world.look()
    (look,) = world.look()
    assert look.drifted and "prompt_language" in look.report.summary.drifted
    (event,) = world.events("task.drifted")
    assert event.subject == world.task and event.evidence["retraining"] == "asked for"
    distance, limit = event.evidence["columns"]["prompt_language, training"]
    assert distance > limit > 0
    assert all(name.startswith("call-") for name in event.evidence["examples"])
    (kept,) = world.kept()
    assert (kept.sender, kept.body["task"], kept.body["asked_by"]) == (SENDER, world.task, "watch")
    assert "prompt_language" in kept.body["reason"]
    assert [one.actor for one in world.events("retrain.asked")] == ["watch"]
    with world.context.database.read() as connection:
        (message,) = connection.execute(outbox.select().where(outbox.c.topic.like("drift:%"))).all()
    assert "prompt_language, against training" in message.body["evidence"]
    assert message.body["link"].startswith(world.context.settings.hooks.address)
    assert not any(text in json.dumps(message.body) for text in GERMAN), "no caller's words"
    # In the cool-down nothing is said or asked for again; after it, once more.
    assert not tell(world.context, world.task, [look], world.now + 2 * DAY)
    assert len(world.events("task.drifted")) == len(world.kept()) == 1
    later = world.now + 4 * DAY
    # Another that looks at the same time has read the same: one of them is the second.
    last = world.events("task.drifted")[-1]
    with monkeypatch.context() as patch:
        patch.setattr(watching, "last_told", lambda *_: last)
        assert [tell(world.context, world.task, [look], later) for _ in range(2)] == [True, False]
    assert len(world.events("task.drifted")) == len(world.kept()) == 2
    # Turned off for this task: told, and not asked for.
    set_asking(world.context, world.task, "off", actor="ann", why="costs too much")
    assert tell(world.context, world.task, [look], later + 4 * DAY)
    assert (
        world.events("task.drifted")[-1].evidence["retraining"] == "it is turned off for this task"
    )
    assert len(world.kept()) == 2


def test_quality_is_compared_with_the_champions_own_days_before(world: World):
    for _ in range(2):
        world.day()
    world.day(escalated=0.5, bad=0.5)
    before = world.look()[-1]
    assert before.against == "before"
    assert {"escalated", "feedback"} <= set(before.report.summary.drifted)
    assert not {"prompt_language", "action"} & set(before.report.summary.drifted)
    told = {finding.column: finding.told() for finding in before.report.summary.findings}
    assert "confidence 0%" in told["escalated"] and "mean 1, now 0." in told["feedback"]


def test_a_champion_answers_since_its_own_promotion(world: World):
    context, task, later = world.context, world.task, NOW + timedelta(hours=10)
    assert champion_since(context, task, world.champion) == START + DAY
    bring_to(context.registry, "promoted", 1, task_id=task)
    second = bring_to(context.registry, "promoted", 2, task_id=task, now=later)
    promoted = context.registry.route(task).updated
    assert promoted is not None and promoted >= later
    bring_to(context.registry, "canary", 3, task_id=task, now=later + DAY)
    assert context.registry.route(task).champion == second.adapter
    assert champion_since(context, task, second.adapter) == promoted


def test_who_asks_is_shown_what_drifted_with_examples_until_they_are_forgotten(world: World):
    world.day(german=0.5)
    found = inquire(world.context, world.task, now=world.now)
    (look,) = found.looks
    (finding,) = (one for one in look["findings"] if one["column"] == "prompt_language")
    assert {one["prompt"] for one in finding["examples"]} <= set(GERMAN) and finding["examples"]
    assert (
        look["columns"]["prompt_language"]["distance"] > look["columns"]["prompt_language"]["limit"]
    )
    assert world.context.store.get(look["data"]) and found.last_told is None
    assert world.events("task.drifted") == [], "asking tells nobody else"
    assert "/asked/" in look["data"]
    stored = json.loads(world.context.store.get(look["data"]))
    assert not any(text in json.dumps(stored["summary"]) for text in GERMAN)
    (told,) = watch_tasks(world.context, now=world.now + timedelta(minutes=1))
    assert told.drifted and world.events("task.drifted"), "who asks silences nobody"
    session = next(
        record.session
        for name, record in _records(world).items()
        if name == finding["examples"][0]["call"]
    )
    forget(world.context, Subject.of("session", session, world.context.settings.anonymizer))
    left = _records(world)
    assert not list(every_look(world.context)), "looks name calls, and count them"
    assert finding["examples"][0]["call"] not in left and finding["examples"][-1]["call"] in left
    with pytest.raises(NothingToCompare, match="--days"):
        inquire(world.context, world.task, days=0.001, now=world.now + 5 * DAY)


def _records(world: World) -> dict[str, CallRecord]:
    live = LiveCalls.index(world.context)
    return live.records(world.context, [name for _, name in live.by_task[world.task]])
