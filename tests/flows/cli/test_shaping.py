"""Tasks merged and split by hand: what is said counts at the gateway at once and in every later night."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database.events import list_events
from infra.database.open import Database
from infra.database.tables import tasks
from serving.gateway.routing import Router
from serving.gateway.snapshot_file import SnapshotFile, load_snapshot
from serving.gateway.snapshot_rows import read_snapshot
from serving.registry.errors import RolloutRefused
from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy
from tests.flows.cli.conftest import invoke as run
from tests.trainers.recorded import (
    SETTINGS,
    START,
    home,
    opened,
    put_log,
    summary,
    ticket,
    translation,
)
from trainers.data_sets.freeze import freeze
from trainers.data_sets.golden import make_case, pin
from trainers.data_sets.golden_places import judged_cases, untaught_cases
from trainers.data_sets.versions import DatasetVersion
from trainers.discover.discover import TaskSummary, discover
from trainers.ingest.ingest import ingest

KINDS = {"home": home, "ticket": ticket, "translation": translation, "summary": summary}
World = tuple[Any, Database]


def night(world: World, records: list[Any], sequence: int) -> list[TaskSummary]:
    store, database = world
    put_log(store, records, sequence)
    ingest(store, database, SETTINGS, holder="night", now=START)
    return discover(store, database, SETTINGS, START + timedelta(days=sequence))


def some(first: int, count: int = 30) -> list[Any]:
    return [kind(first + 4 * n + k) for n in range(count) for k, kind in enumerate(KINDS.values())]


def kind_of(call_id: str) -> str:
    return list(KINDS)[int(call_id[-5:]) % 4]


def ids(found: list[TaskSummary]) -> dict[str, str]:
    """Kind to the task of its first call."""
    return {kind_of(call_id): task.id for task in found for call_id in task.members}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    store, database = opened(tmp_path)
    (tmp_path / "nightschool.toml").write_text(
        f'[database]\nurl = "sqlite:///{tmp_path}/night.db"\n[storage]\nurl = "{tmp_path}/objects"\n'
        "[discovery]\nmin_calls = 20\ndimensions = 256\n"
    )
    return store, database


def events(database: Database, subject: str) -> list[tuple[str, str]]:
    with database.read() as connection:
        return [(e.what, e.actor) for e in list_events(connection, subject=subject)]


def trained(world: World, task_id: str, digest: str, now: int) -> str:
    """An adapter of the task's present data set, as champion."""
    store, database = world
    registry = Registry(database)
    version = freeze(store, database, SETTINGS, task_id, START + timedelta(days=now))
    name = f"{task_id}@{digest * 16}"
    registry.register_adapter(
        name=name,
        task_id=task_id,
        digest=digest * 64,
        dataset_digest=version.digest,
        spec_digest="0" * 64,
        location=f"adapters/{task_id}/{digest}",
        manifest={"format": version.manifest["format"], "spec": {}},
        threshold=None,
    )
    route = registry.route(task_id)
    registry.set_route(task_id, route.version, None, actor="t", why="t", champion=name)
    return name


def test_merged_tasks_are_one_at_the_gateway_and_night_after_night(world: World, tmp_path: Path):
    _, database = world
    of = ids(night(world, some(0), 0))
    kept, gone = of["translation"], of["summary"]
    old = trained(world, kept, "a", 0)
    trained(world, gone, "b", 0)

    planned = json.loads(run("tasks", "merge", kept, gone, "--dry-run", "--json").stdout)
    assert [row["calls"] for row in planned] == [60, 30]
    assert ("task.merged", "ann") not in events(database, gone)
    run("tasks", "merge", kept, gone, "--as", "ann", "--why", "both are words")
    run("tasks", "merge", kept, gone, "--as", "ann")  # the same again changes nothing
    assert [what for what, _ in events(database, gone)].count("task.merged") == 1
    assert ("task.took_in", "ann") in events(database, kept)
    assert Registry(database).route(gone).champion == "teacher"
    listed = {row["id"]: row["champion"] for row in json.loads(run("tasks", "--json").stdout)}
    assert (listed[kept], listed[gone]) == (old, f"as {kept}")

    # What the adapter was never shown, it does not answer.
    def routed(kind: str) -> Any:
        router = Router(read_snapshot(database))
        return router.route(KINDS[kind](9000).request, None, "default")

    assert (routed("summary").task.id, routed("summary").fit()) == (kept, False)
    assert (routed("translation").task.id, routed("translation").fit()) == (kept, True)

    second = ids(night(world, some(1000), 1))
    assert second == {**of, "summary": kept}
    new = trained(world, kept, "c", 1)
    assert (routed("summary").task.champion.name, routed("summary").fit()) == (new, True)
    snapshot = read_snapshot(database)
    SnapshotFile(tmp_path / "routes.json").save(snapshot)
    assert load_snapshot(tmp_path / "routes.json") == snapshot

    # Nothing that discovery found: a person said it.
    assert not [e for e in events(database, gone) if e == ("task.merged", "discovery")]
    run("tasks", "merge", "--undo", gone)
    assert ids(night(world, some(2000), 2)) == of


def test_a_dry_run_counts_as_the_merge_does_and_no_call_twice(world: World):
    of = ids(night(world, some(0), 0))
    kept, gone, third = of["translation"], of["summary"], of["ticket"]
    run("tasks", "merge", kept, gone)
    sizes = {task.id: task.size for task in night(world, some(1000), 1)}
    assert (sizes[kept], sizes[third]) == (120, 60), "its size has the merged task's calls in it"

    def said(*others: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(
            run("tasks", "merge", kept, *others, "--json").stdout
        )
        return rows

    assert said(gone, "--dry-run")[0]["calls"] == 120, "they are its own already"
    assert said(third, third, "--dry-run")[0]["calls"] == 180
    planned = said(third, gone, "--dry-run")
    assert [row["task"].strip() for row in planned] == [kept, gone, third]
    assert said(third, gone) == planned and planned[0]["calls"] == 180
    third_night = {task.id: task.size for task in night(world, some(2000), 2)}
    assert third_night == {kept: 270, of["home"]: 90}


def test_what_cannot_be_merged_is_refused(world: World):
    _, database = world
    of = ids(night(world, some(0), 0))
    registry = Registry(database)
    a, b, c = of["home"], of["ticket"], of["summary"]
    assert "itself" in run("tasks", "merge", a, a, status=1).output
    assert "no task" in run("tasks", "merge", a, "nobody", status=3).output
    assert "name the task" in run("tasks", "merge", a, status=2).output
    name = trained(world, b, "d", 0)
    route = registry.route(b)
    registry.set_route(b, route.version, None, actor="t", why="t", champion="teacher")
    rollout = registry.open_rollout(
        b, name, RolloutPolicy(), actor="t", why="t", gate_override="a test"
    )
    assert f"abort {rollout.id}" in run("tasks", "merge", a, b, status=1).output
    assert f"abort {rollout.id}" in run("tasks", "split", b, "--by", "cluster", status=1).output
    run("rollouts", "abort", rollout.id, "--why", "to merge")
    run("tasks", "merge", a, b)
    assert f"name {a}" in run("tasks", "merge", c, b, status=1).output
    with pytest.raises(RolloutRefused, match=f"merged into {a}"):
        registry.open_rollout(b, name, RolloutPolicy(), actor="t", why="t", gate_override="x")


def test_a_task_is_split_by_what_is_asked(world: World):
    _, database = world
    records = [home(n, id=f"home-{n:04d}") for n in range(80)]
    (task,) = night(world, records, 0)
    planned = json.loads(
        run("tasks", "split", task.id, "--by", "cluster", "--dry-run", "--json").stdout
    )
    assert len(planned) >= 2
    assert sum(row["calls"] for row in planned) == 80
    assert len(Registry(database).tasks()) == 1
    store, _ = world
    cases = {
        pin(store, database, make_case(task.id, r.request, r.answer, why="", by="ann")).id
        for r in (home(n) for n in range(200, 230))
    }
    whole = DatasetVersion("d" * 64, task.id, "datasets/x/d", {})
    assert len(judged_cases(store, database, whole)) == len(cases)
    run("tasks", "split", task.id, "--by", "cluster", "--as", "ann")
    by_part = {
        row["task"]: judged_cases(store, database, replace(whole, task_id=row["task"]))
        for row in planned
    }
    assert sum(map(len, by_part.values())) == len(cases), "each is one part's, and none is lost"
    routes = Router(read_snapshot(database))
    for part, judged in by_part.items():
        assert judged
        for case in judged:
            routed = routes.route(case.request, None, "default")
            assert (task.id if routed is None else routed.task.id) == part
    merged = replace(whole, manifest={"places": [row["task"] for row in planned[1:]]})
    assert len(judged_cases(store, database, merged)) == len(cases)
    sizes = {row["task"]: row["calls"] for row in planned}
    assert set(sizes) == {known.id for known in Registry(database).tasks()}
    assert ("task.split", "ann") in events(database, task.id)

    found = night(world, [home(n, id=f"home-{n:04d}") for n in range(80, 160)], 1)
    assert {known.id for known in found} == set(sizes)
    assert sum(known.size for known in found) >= 0.9 * 160
    before = {call_id: known.id for known in found for call_id in known.members}
    again = night(world, [home(n, id=f"home-{n:04d}") for n in range(160, 200)], 2)
    after = {call_id: known.id for known in again for call_id in known.members}
    assert {call_id: after.get(call_id) for call_id in before} == before
    assert ("task.split", "discovery") not in events(database, task.id)
    router = Router(read_snapshot(database))
    routed = {record.id: router.route(record.request, None, "default") for record in records}
    assert {name: r.task.id for name, r in routed.items() if r} == {
        name: owner for name, owner in after.items() if name in routed
    }


def test_a_tag_is_split_by_structure_and_nothing_else(world: World):
    _, database = world
    records = [
        (home if n % 3 else ticket)(n, id=f"desk-{n:04d}", task_tag="desk") for n in range(60)
    ]
    (task,) = night(world, records, 0)
    assert "two tags" in run("tasks", "split", task.id, "--by", "cluster", status=1).output
    assert "one tag or none" in run("tasks", "split", task.id, "--by", "tag", status=1).output
    rows = json.loads(run("tasks", "split", task.id, "--by", "signature", "--json").stdout)
    assert [row["calls"] for row in rows] == [40, 20]
    found = night(world, [ticket(n, id=f"desk-{n:04d}", task_tag="desk") for n in range(60, 80)], 1)
    assert {known.id: known.size for known in found} == {rows[0]["task"]: 40, rows[1]["task"]: 40}
    trained(world, rows[0]["task"], "e", 1)
    router = Router(read_snapshot(database))
    for record, expected in ((home(1), rows[0]), (ticket(1), rows[1])):
        found_task = router.route(record.request, "desk", "default")
        assert found_task is not None
        assert found_task.task.id == expected["task"]
    assert "one part" in run("tasks", "split", task.id, "--by", "signature", status=1).output
    run("tasks", "merge", rows[0]["task"], rows[1]["task"])
    assert "do not differ by tag" in run("tasks", "split", task.id, "--by", "tag", status=1).output
    run("tasks", "split", task.id, "--by", "signature")
    assert [row["champion"] for row in json.loads(run("tasks", "--json").stdout)].count(
        "teacher"
    ) == 1


def test_what_discovery_itself_takes_apart_is_an_event(world: World):
    store, database = world
    records = [home(n, id=f"home-{n:04d}", tenant="a" if n % 4 else "b") for n in range(80)]
    put_log(store, records, 0)
    ingest(store, database, SETTINGS, holder="night", now=START)
    shared = SETTINGS.model_copy(
        update={"discovery": SETTINGS.discovery.model_copy(update={"share_between_tenants": True})}
    )
    (task,) = discover(store, database, shared, START)
    apart = discover(store, database, SETTINGS, START)
    assert sorted(known.size for known in apart) == [20, 60]
    with database.read() as connection:
        (event,) = list_events(connection, what="task.split")
    assert (event.subject, event.actor) == (task.id, "discovery")
    assert event.evidence["calls"] == 20


def test_a_merge_ends_where_its_tasks_become_two_tenants(world: World):
    store, database = world
    share = SETTINGS.discovery.model_copy(update={"share_between_tenants": True})
    shared = SETTINGS.model_copy(update={"discovery": share})
    records = [home(n, tenant="acme") for n in range(40)]
    theirs = [translation(n, tenant="globex") for n in range(100, 130)]
    put_log(store, [*records, *theirs], 0)
    ingest(store, database, SETTINGS, holder="night", now=START)
    kept, gone = (task.id for task in discover(store, database, shared, START))
    Registry(database).merge_task(kept, gone, actor="ann", why="t")
    (one,) = discover(store, database, shared, START)
    assert one.size == 70
    found = {task.id: task for task in discover(store, database, SETTINGS, START)}
    assert set(found[kept].members) == {record.id for record in records}
    assert set(found[gone].members) == {record.id for record in theirs}
    put_log(store, [home(n, tenant="acme") for n in range(200, 210)], 1)
    ingest(store, database, SETTINGS, holder="night", now=START)
    found = {task.id: task for task in discover(store, database, SETTINGS, START)}
    assert (found[kept].size, found[gone].size) == (50, 30)
    assert events(database, gone).count(("task.merge_ended", "discovery")) == 1


def test_golden_cases_are_kept_through_merge_and_split(world: World):
    store, database = world
    of = ids(night(world, some(0), 0))
    kept, gone = of["translation"], of["summary"]
    logged = {kind_of(record.id): record for record in some(0, 1)}
    cases = {
        kind: pin(
            store,
            database,
            make_case(of[kind], record.request, record.answer, why="", by="ann"),
        )
        for kind, record in logged.items()
    }
    Registry(database).merge_task(kept, gone, actor="ann", why="t")
    night(world, some(1000), 1)
    version = freeze(store, database, SETTINGS, kept, START)
    assert version.manifest["dropped"]["golden"] == 2
    assert judged_cases(store, database, version) == [cases["translation"], cases["summary"]]
    with database.begin() as connection:
        part = {"part": {"of": of["home"], "by": "cluster"}}
        row = connection.execute(select(tasks).where(tasks.c.id == of["ticket"])).mappings().one()
        details = {**row["details"], **part}
        connection.execute(update(tasks).where(tasks.c.id == of["ticket"]).values(details=details))
    assert untaught_cases(store, database, of["ticket"]) == [cases["ticket"], cases["home"]]
    assert untaught_cases(store, database, of["home"]) == [cases["home"]]
