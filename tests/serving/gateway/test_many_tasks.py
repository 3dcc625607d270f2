"""Routing among many tasks: what is remembered and computed at once decides as the plain way does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.database.open import Database
from infra.objects.store import ObjectStore
from infra.prompting.template import FULL
from infra.tasks.embedding import embed, nearest, prompt_text
from infra.tasks.signature import signature
from serving.gateway import kills
from serving.gateway.guard import KillSwitch, tended
from serving.gateway.routes import AdapterRoute, KeyRoute, Snapshot, TaskRoute, frame_of
from serving.gateway.routing import Alike, Router
from serving.gateway.snapshot_file import SnapshotFile, load_snapshot
from serving.gateway.structure import Remembered, Structure, Structures
from serving.registry.registry import Registry
from tests.serving.gateway.world import add_adapter, add_task, chat, open_rollout, set_route

WORDS = ("light", "music", "order", "refund", "kitchen", "jazz", "mail", "weather", "play", "the")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def task(task_id: str, text: str, **more: Any) -> TaskRoute:
    like = chat(text)
    return TaskRoute(
        id=task_id,
        **{
            "signature": signature(like).digest,
            "frame": frame_of([], "text", ""),
            "centroid": tuple(float(x) for x in embed([prompt_text(like)], 64)[0]),
            "radius": 0.6,
            **more,
        },
    )


@given(st.lists(st.tuples(TEXTS, st.floats(0, 2)), min_size=1, max_size=12), TEXTS, st.booleans())
def test_the_matrix_decides_as_one_by_one(
    known: list[tuple[str, float]], text: str, shuffled_length: bool
) -> None:
    tasks = [task(f"t{i}", like, radius=radius) for i, (like, radius) in enumerate(known)]
    if shuffled_length and len(tasks) > 1:
        tasks[-1] = replace(tasks[-1], centroid=(1.0, 0.0))
    request = chat(text)
    plain = nearest(embed([prompt_text(request)], 64)[0], tasks)
    router = Router(Snapshot(tuple(tasks)))
    for _ in range(2):  # as computed, and as remembered
        found = router.route(request, None, "t")
        assert (found and found.task) == plain


REQUESTS = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.one_of(
                st.fixed_dictionaries(
                    {
                        "role": st.sampled_from(["system", "developer", "user", "tool"]),
                        "content": st.one_of(
                            st.none(),
                            TEXTS,
                            st.lists(st.fixed_dictionaries({"text": TEXTS}), max_size=2),
                        ),
                    }
                ),
                st.sampled_from([None, 3, "x"]),
            ),
            max_size=4,
        )
    },
    optional={
        "tools": st.one_of(
            st.none(),
            st.lists(
                st.fixed_dictionaries(
                    {"function": st.fixed_dictionaries({"name": st.sampled_from(WORDS)})}
                ),
                max_size=3,
            ),
        ),
        "functions": st.lists(st.fixed_dictionaries({"name": st.sampled_from(WORDS)}), max_size=2),
        "response_format": st.sampled_from(
            [None, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a"}}]
        ),
        "temperature": st.floats(0, 1),
    },
)


@given(st.lists(REQUESTS, min_size=1, max_size=5))
def test_a_remembered_structure_is_the_structure(requests: list[dict[str, Any]]) -> None:
    structures = Structures(most=2)
    for request in requests + requests:
        found = signature(request)
        assert structures.of(request) == Structure(
            found.digest,
            frame_of(found.tools, found.response_kind, found.response_name),
        )


def test_a_request_that_is_no_json_has_a_structure_too() -> None:
    odd = {**chat("x"), "tools": [{"function": {"name": "f", "parameters": {"a": {1, 2}}}}]}
    assert Structures().of(odd).signature == signature(odd).digest
    lone = chat("x", response_format={"type": "\ud800"})
    assert Structures().of(lone).signature == signature(lone).digest


def test_whether_answers_can_be_checked_is_remembered_with_the_structure() -> None:
    structures = Structures()
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nonsense"}}}
    odd = chat("x", response_format=form)
    assert structures.of(odd).uncheckable(odd)
    assert structures.of(odd).uncheckable({}), "it is not asked again"
    assert not structures.of(chat("x")).uncheckable(chat("x"))


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    made: list[bytes] = []
    known: Remembered[int] = Remembered(2)

    def get(key: bytes) -> int:
        return known.get(key, lambda: made.append(key) or len(made))

    assert [get(b"a"), get(b"b"), get(b"a"), get(b"c"), get(b"a"), get(b"b")] == [1, 2, 1, 3, 1, 4]
    assert made == [b"a", b"b", b"c", b"b"] and len(known) == 2


def test_each_tenant_has_its_own_task_of_the_same_structure() -> None:
    tasks = (
        task("hers", "switch the light on", tenant="a", tag=None),
        task("his", "switch the light on", tenant="b"),
        task("shared", "play some jazz"),
        task("tag-a", "x", tenant="a", tag="lamps"),
        task("tag-b", "x", tenant="b", tag="lamps"),
    )
    router = Router(Snapshot(tasks))

    def found(text: str, tenant: str, tag: str | None = None) -> str | None:
        routed = router.route(chat(text), tag, tenant)
        return routed.task.id if routed else None

    assert [found("switch the light on", who) for who in "abc"] == ["hers", "his", None]
    assert [found("play some jazz", who) for who in "abc"] == ["shared"] * 3
    assert [found("x", who, "lamps") for who in "abc"] == ["tag-a", "tag-b", None]


def test_a_router_takes_over_what_has_not_changed() -> None:
    tasks = [task(f"t{i}", text) for i, text in enumerate(WORDS)]
    before = Alike(tasks)
    again = Alike([replace(one, version=2) for one in tasks], before)
    assert again._matrix is before._matrix and again.tasks[0].version == 2
    moved = [*tasks[:-1], task("t9", "something else")]
    other = Alike(moved, before)
    assert other._matrix is not before._matrix
    prompt = embed(["something else"], 64)[0]
    assert other.nearest(lambda _: prompt) == moved[-1]
    assert before.nearest(lambda _: prompt) is None


def test_a_saved_snapshot_is_the_present_one_also_when_little_changed(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    file = SnapshotFile(path)
    adapter = AdapterRoute("t1@" + "0" * 16, "0" * 64, "x", FULL.to_dict(), -0.5)
    tasks = [task(f"t{i}", text, updated=NOW) for i, text in enumerate(WORDS)]
    changed = [*tasks[:1], replace(tasks[1], champion=adapter, version=2), *tasks[2:]]
    for present in (tasks, changed, tasks[3:], [], tasks[:2]):
        snapshot = Snapshot(tuple(present), {"hash": KeyRoute("acme")}, NOW)
        file.save(snapshot)
        assert load_snapshot(path) == snapshot


@pytest.mark.parametrize(
    ("minutes", "expected"), [(0, True), (14, True), (16, False), (-14, True), (-16, False)]
)
def test_a_clock_that_was_set_keeps_no_canary_alive(minutes: int, expected: bool) -> None:
    for stage in ("shadow", "canary"):
        route = TaskRoute("t", stage=stage, updated=NOW)
        assert tended(route, NOW + timedelta(minutes=minutes), 900) is expected
        assert not tended(replace(route, updated=None), NOW, 900)
    assert tended(TaskRoute("t"), NOW, 900)


def test_a_kill_that_the_registry_refuses_holds_up_no_other(
    database: Database,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving.registry.errors import RouteChanged
    from serving.rollout import controller

    switch = KillSwitch(tmp_path / "kills.json", burst=1)
    for number, task_id in enumerate(("one", "two")):
        add_task(database, task_id)
        name = add_adapter(database, store, tmp_path, task_id, seed=number)
        open_rollout(database, name, f"rollout-{task_id}", task_id)
        set_route(
            database, task_id, candidate=name, rollout_id=f"rollout-{task_id}", stage="canary"
        )
        route = TaskRoute(
            task_id,
            candidate=AdapterRoute(name, "", "", {}, None),
            rollout_id=f"rollout-{task_id}",
        )
        assert switch.report(route, True, False, "boom") is not None
    real = controller.request_rollback

    def refuse_one(registry: Registry, task_id: str, *rest: Any, **more: Any) -> bool:
        if task_id == "one":
            raise RouteChanged("somebody else is at it")
        return real(registry, task_id, *rest, **more)

    monkeypatch.setattr(controller, "request_rollback", refuse_one)
    assert kills.deliver(switch, lambda: database) == 1
    assert [kill.task_id for kill in switch.undelivered()] == ["one"]
    assert Registry(database).rollout("rollout-two").state == "rolled_back"
    monkeypatch.undo()
    assert kills.deliver(switch, lambda: database) == 1 and not switch.undelivered()


def test_who_delivers_is_woken_by_a_kill(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "kills.json", burst=1)
    route = TaskRoute(
        "t", candidate=AdapterRoute("t@" + "0" * 16, "", "", {}, None), rollout_id="r"
    )
    switch.report(route, True, False, "boom")
    switch.wait(60)  # returns at once, or the test takes a minute too long
    switch.wake()
    switch.wait(60)
    assert [kill.rollout_id for kill in switch.undelivered()] == ["r"]


def test_a_thousand_tasks_of_one_structure_are_told_apart() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(1000, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tasks = [
        TaskRoute(f"t{i}", centroid=tuple(map(float, vector)), radius=0.5)
        for i, vector in enumerate(vectors)
    ]
    alike = Alike(tasks)
    for index in (0, 17, 999):
        near = vectors[index] + random.normal(scale=0.02, size=64)
        prompt = (near / np.linalg.norm(near)).astype(np.float32)
        assert alike.nearest(lambda _, prompt=prompt: prompt) is tasks[index]
    assert alike.nearest(lambda _: np.zeros(64, dtype=np.float32)) is None
