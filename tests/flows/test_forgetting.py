"""A subject is forgotten everywhere, what learned from it is trained again, and a kill loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows import forgetting, holding, tending
from flows.cli import main
from flows.forgetting import forget, look_for
from flows.housekeeping import housekeep
from flows.kept_evidence import PREFIX, keep
from flows.planning import RELEASED, plan_night
from flows.replaying import replay
from flows.retraining import due_tasks
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.database.events import list_events, record_event
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.registry.records import Adapter
from serving.registry.registry import Registry
from tests.flows.rollout_world import World as RolloutWorld
from tests.flows.rollout_world import world_of
from tests.serving.registry.world import digest
from tests.trainers.recorded import SETTINGS, home, put_log
from trainers.data_sets.freeze import freeze
from trainers.data_sets.splits import SPLITS
from trainers.data_sets.versions import DatasetVersion, find_dataset, read_split
from trainers.discover.discover import TaskSummary, discover
from trainers.forgetting.subject import Subject
from trainers.forgetting.versions import version_without
from trainers.importing.quarantined import Entry, ImportQuarantine, quarantines
from trainers.ingest.reading import call_files, read_columns

GONE = "session-0007"


@dataclass
class World:
    context: Context
    task: TaskSummary
    version: DatasetVersion
    adapter: Adapter

    def subject(self, value: str = GONE) -> Subject:
        return Subject.of("session", value, self.context.settings.anonymizer)

    def sessions(self, version: DatasetVersion) -> set[str]:
        return {
            e.session.split("/")[1]
            for name in SPLITS
            for e in read_split(self.context.store, version, name)
        }

    def logged(self) -> set[str]:
        files = call_files(self.context.database, 10**6)
        return {r["session"] for r in read_columns(self.context.store, files, ["session"])}

    def due(self) -> frozenset[str]:
        with self.context.database.read() as connection:
            ends = list_events(connection, what=RELEASED)
        return due_tasks(self.context, ends)


@pytest.fixture
def world(settings: Settings, database: Database) -> Iterator[World]:
    settings = settings.model_copy(
        update={
            "ingest": SETTINGS.ingest,
            "discovery": SETTINGS.discovery,
            "training": settings.training.model_copy(update={"min_examples": 10}),
            "gate": settings.gate.model_copy(update={"min_rows": 1}),
        }
    )
    store, registry = open_store(settings.storage), Registry(database)
    context = Context(settings, store, database, registry, {}, "test:1")
    put_log(store, [home(n) for n in range(40)])
    forgetting.ingest(store, database, settings, holder="night")
    (task,) = discover(store, database, settings)
    version = freeze(store, database, settings, task.id)
    yield World(context, task, version, add_adapter(registry, version, 1))


@pytest.fixture
def own_environment() -> Iterator[None]:
    """What other tests have set in this process must not decide what is erased, nor the other way round."""
    before = dict(os.environ)
    for name in [name for name in os.environ if "NIGHTSCHOOL" in name]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def add_adapter(
    registry: Registry, version: DatasetVersion, number: int, old: tuple[str, ...] = ()
) -> Adapter:
    weights = digest(f"weights {number}")
    return registry.register_adapter(
        name=f"{version.task_id}@{weights[:16]}",
        task_id=version.task_id,
        digest=weights,
        dataset_digest=version.digest,
        spec_digest=digest("spec"),
        location=f"adapters/{version.task_id}/{weights}",
        manifest={"spec": {"old_datasets": list(old)}, "metrics": {}},
        threshold=None,
    )


def more_calls(context: Context) -> None:
    put_log(context.store, [home(n) for n in range(40, 60)], 2)
    forgetting.ingest(context.store, context.database, context.settings, holder="night")
    discover(context.store, context.database, context.settings)


def settings_file(settings: Settings, folder: Path) -> Path:
    file = folder / "n.toml"
    file.write_text(
        f'[database]\nurl = "{settings.database.url.get_secret_value()}"\n[storage]\n'
        f'url = "{settings.storage.url}"\n'
    )
    return file


def release(world: World, adapter: Adapter) -> None:
    with world.context.database.begin() as connection:
        record_event(connection, actor="night", what=RELEASED, subject=adapter.name, why="done")


def test_a_data_set_that_nothing_rests_on_goes_at_once(world: World):
    found = look_for(world.context, world.subject())
    assert (found["calls"], found["examples"], found["datasets"]) == (2, 2, 1)
    counts = forget(world.context, world.subject())
    assert (counts["calls"], counts["adapters_due"], counts["datasets_removed"]) == (2, 1, 1)
    assert not list(world.context.store.list(f"{world.version.location}/"))
    assert GONE not in world.logged() and len(world.logged()) == 19
    assert not look_for(world.context, world.subject())["calls"]
    (event,) = world.context.registry.events("session")
    assert event.what == "subject.forgotten"
    assert GONE not in json.dumps(event.evidence)


def test_one_in_use_is_made_anew_and_goes_when_no_route_names_it(world: World):
    registry, store = world.context.registry, world.context.store
    registry.set_route(
        world.task.id, 0, None, actor="t", why="t", champion=world.adapter.name, salt="s"
    )
    counts = forget(world.context, world.subject())
    assert (counts["new_versions"], counts["datasets_waiting"]) == (1, 1)
    old, new = registry.datasets(world.task.id)
    made = find_dataset(store, new.location)
    assert world.sessions(made) == world.sessions(world.version) - {GONE}
    assert made.manifest["parents"]["dataset"] == old.digest
    assert forget(world.context, world.subject())["adapters_due"] == 0
    assert len(registry.datasets(world.task.id)) == 2
    registry.set_route(world.task.id, 1, None, actor="t", why="t", champion="teacher")
    housekeep(world.context)  # answers may be under way
    assert list(store.list(f"{old.location}/"))
    housekeep(world.context, now=utc_now() + timedelta(hours=2))
    assert not list(store.list(f"{old.location}/"))
    assert list(store.list(f"{new.location}/"))


def test_the_next_night_trains_what_is_due_until_it_is_done(world: World):
    def planned() -> list[str]:
        made = plan_night(world.context, [world.task], deadline=utc_now() + timedelta(hours=8))
        return [run.task_id for run in made.runs]

    release(world, world.adapter)
    assert planned() == []
    forget(world.context, world.subject())
    assert world.due() == {world.task.id}
    new = freeze(world.context.store, world.context.database, world.context.settings, world.task.id)
    again = add_adapter(world.context.registry, new, 2)
    assert planned() == [world.task.id]
    release(world, world.adapter)  # the tainted one brought to its end settles nothing
    assert world.due() == {world.task.id}
    release(world, again)
    assert (world.due(), planned()) == (frozenset(), [])


def test_what_learned_from_it_as_an_old_data_set_is_due_too(world: World):
    store, database = world.context.store, world.context.database
    release(world, world.adapter)
    clean = version_without(store, database, world.version, world.subject(), utc_now())
    assert clean is not None
    mixed = add_adapter(world.context.registry, clean, 2, (world.version.digest,))
    release(world, mixed)
    assert look_for(world.context, world.subject())["adapters_due"] == 2
    assert forget(world.context, world.subject())["adapters_due"] == 2
    release(world, mixed)
    assert world.due() == {world.task.id}
    release(world, add_adapter(world.context.registry, clean, 3))
    assert world.due() == frozenset()


def test_what_is_frozen_meanwhile_goes_too(world: World, monkeypatch: pytest.MonkeyPatch):
    take, made = forgetting.take_from_logs, []

    def frozen_before(*given):
        # As a process of an earlier release would, which knows nothing of the lease.
        context = world.context
        more_calls(context)
        made.append(freeze(context.store, context.database, context.settings, world.task.id))
        return take(*given)

    monkeypatch.setattr(forgetting, "take_from_logs", frozen_before)
    assert forget(world.context, world.subject())["datasets"] == 2
    assert made[0].digest != world.version.digest
    assert not list(world.context.store.list(f"{made[0].location}/"))
    assert not look_for(world.context, world.subject()).total()


def test_data_sets_are_frozen_by_nobody_else_while_a_subject_is_forgotten(
    world: World, own_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    context = world.context
    context.registry.set_route(
        world.task.id, 0, None, actor="t", why="t", champion=world.adapter.name, salt="s"
    )
    more_calls(context)
    monkeypatch.setattr(holding, "KILLED_SECONDS", 0.0)
    os.environ["NIGHTSCHOOL_CONFIG"] = str(settings_file(context.settings, tmp_path))
    with holding.hold(context.database, "night", "a test"):
        done = CliRunner().invoke(main, ["night", "--plan"])
    assert done.exit_code == 1 and "night is being done elsewhere" in done.output
    assert len(context.registry.datasets(world.task.id)) == 1
    assert CliRunner().invoke(main, ["night", "--plan"]).exit_code == 0
    assert len(context.registry.datasets(world.task.id)) == 2


def test_evidence_read_before_and_kept_after_does_not_stay(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    gone = Subject.of("session", "session-3", settings.anonymizer)
    with world_of(settings, database) as rolling:

        def forgotten_before(*given):
            with monkeypatch.context() as once:
                once.setattr(tending, "keep", keep)
                forget(rolling.context, gone)
            return keep(*given)

        rolling.open()
        rolling.play(20)
        rolling.look(1)
        monkeypatch.setattr(tending, "keep", forgotten_before)
        while look_for(rolling.context, gone)["calls"]:
            rolling.look(61)
            rolling.play(20)
        assert not look_for(rolling.context, gone)["evidence_objects"]
        steps = [event.evidence for event in rolling.registry.events(rolling.rollout().id)]
        assert any("forgotten" in step.get("source", {}).get("left_out", "") for step in steps)


STEPS = ("find_in_logs", "order", "forget_ordered", "take_from_logs", "ingest", "clear_superseded")


@pytest.mark.parametrize("step", STEPS)
def test_broken_off_at_any_step_the_second_run_finishes(
    world: World, step: str, monkeypatch: pytest.MonkeyPatch
):
    class Dies(Exception):
        pass

    def dies(*_, **__) -> None:
        raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, step, dies)
        with pytest.raises(Dies):
            forget(world.context, world.subject())
    forget(world.context, world.subject())
    assert len(world.logged()) == 19
    assert world.due() == {world.task.id}
    left = {item.key for item in world.context.store.list("calls/")}
    assert left == {file.key for file in call_files(world.context.database, 10**6)}
    assert not list(world.context.store.list(f"{world.version.location}/"))


def test_kept_evidence_loses_the_session_and_the_replay_says_so(
    settings: Settings, database: Database
):
    with world_of(settings, database) as rolling:
        rolling.open()
        for _ in range(30):
            rolling.look(1)
            if not rolling.rollout().open:
                break
            rolling.play(20)
            rolling.now += timedelta(seconds=61)
        assert told(rolling) == set()
        keys = {item.key for item in rolling.context.store.list(PREFIX)}
        gone = Subject.of("session", "session-3", settings.anonymizer)
        assert forget(rolling.context, gone)["evidence_objects"]
        assert not look_for(rolling.context, gone)["evidence_objects"]
        assert {item.key for item in rolling.context.store.list(PREFIX)} != keys
        assert told(rolling) == {"kept"}


def told(rolling: RolloutWorld) -> set[str]:
    """Where the records of steps lie that come out otherwise."""
    steps = replay(rolling.context, rolling.rollout().id)
    return {step.source for step in steps if not step.same}


def test_a_tenants_rows_leave_the_quarantine_of_imports(world: World):
    store = world.context.store
    bad = ImportQuarantine(store, "one")
    for tenant in ("shop", "other"):
        bad.add(Entry("otel", "s3://x", "a", "", "line 1", "not JSON", tenant=tenant))
    bad.close()
    subject = Subject.of("tenant", "shop", world.context.settings.anonymizer)
    assert forget(world.context, subject)["quarantine_entries"] == 1
    assert [e.tenant for listed in quarantines(store) for e in listed.entries] == ["other"]


def test_the_command_asks_counts_and_erases(world: World, own_environment: None, tmp_path: Path):
    file = settings_file(world.context.settings, tmp_path)

    os.environ["NIGHTSCHOOL_CONFIG"] = str(file)

    def run(*more: str, typed: str = "", status: int = 0) -> str:
        done = CliRunner().invoke(main, ["forget", *more], input=typed)
        assert done.exit_code == status, done.output
        return done.output

    assert "name one of" in run(status=2)
    assert "add --yes" in run("--session", GONE, "--json", status=2)
    assert "at least 4" in run("--match", "ann", status=2)
    assert "2  calls" in run("--session", GONE, typed="n\n", status=1)
    assert json.loads(run("--session", GONE, "--dry-run", "--json"))["calls"] == 2
    assert len(world.logged()) == 20
    program = "from flows.cli import main; main()"
    erased = subprocess.run(
        [sys.executable, "-c", program, "forget", "--session", GONE, "--yes", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert erased.returncode == 0, erased.stderr
    assert json.loads(erased.stdout)["calls"] == 2
    assert len(world.logged()) == 19
    assert "nothing" in run("--session", GONE, "--dry-run")
