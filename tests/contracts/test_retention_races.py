"""Collecting garbage while others open rollouts, collect too, write again or are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.database.garbage import STALE, BeingRemoved, find_mark, reserve
from infra.objects.store import ObjectStore
from serving.registry.errors import RolloutRefused
from serving.registry.registry import Registry
from serving.registry.retention import collecting
from serving.registry.retention.collecting import collect
from serving.rollout.policy import RolloutPolicy
from tests.contracts.registry_steps import BY, at_once
from tests.serving.registry.retention.shelves import (
    AT_ANY_TIME,
    AT_ONCE,
    DAY,
    GRACE,
    LATER,
    outcomes,
    put_files,
    require_sound,
    shelve,
    whole,
)
from tests.serving.registry.world import NOW, add_task, digest


def test_a_rollout_that_opens_between_the_look_and_the_act_wins(
    registry: Registry, store: ObjectStore
) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))

    def open_it(step: str) -> None:
        if step == f"condemn {old.location}":
            registry.open_rollout("mail", old.name, AT_ANY_TIME, now=LATER, **BY)

    done = outcomes(collect(registry.database, store, AT_ONCE, LATER, on_step=open_it))
    assert done[old.name] == "not now"
    assert registry.route("mail").candidate == old.name
    require_sound(registry, store)


def test_a_rollout_that_only_waits_for_its_turn_wins_too(
    registry: Registry, store: ObjectStore
) -> None:
    """It is on no route yet: nothing but the decision made anew knows of it."""
    old, first, _ = (shelve(registry, store, "mail", n) for n in range(3))
    waits = RolloutPolicy(cooldown_seconds=0, when_open="queue")
    registry.open_rollout("mail", first.name, waits, now=NOW, **BY)

    def open_it(step: str) -> None:
        if step == f"condemn {old.location}":
            registry.open_rollout("mail", old.name, waits, now=LATER, **BY)

    done = outcomes(collect(registry.database, store, AT_ONCE, LATER, on_step=open_it))
    assert done[old.name] == "not now"
    assert registry.route("mail").candidate == first.name
    assert registry.adapter(old.name).state == "registered"
    require_sound(registry, store)


def test_from_the_condemnation_on_a_rollout_is_refused(
    registry: Registry, store: ObjectStore
) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))
    refused = []

    def try_it(step: str) -> None:
        if step.startswith(f"delete {old.location}"):
            with pytest.raises(RolloutRefused):
                registry.open_rollout("mail", old.name, AT_ANY_TIME, now=LATER, **BY)
            with pytest.raises(BeingRemoved), registry.database.begin() as connection:
                reserve(connection, old.location, LATER)
            refused.append(step)

    collect(registry.database, store, AT_ONCE, LATER, on_step=try_it)
    assert len(refused) == 2


def test_a_rollout_and_a_collector_at_the_same_moment(
    registry: Registry, store: ObjectStore
) -> None:
    """One of the two gets the adapter, and whichever it is, nobody answers without files."""
    for round_number in range(12):
        task = add_task(registry.database, f"task{round_number}")
        old, _ = (shelve(registry, store, task, n) for n in range(2))
        barrier = threading.Barrier(2)
        problems: list[BaseException] = []

        def roll(task: str = task, name: str = old.name, barrier=barrier, told=problems) -> None:
            barrier.wait(30)
            try:
                registry.open_rollout(task, name, AT_ANY_TIME, now=LATER, **BY)
            except RolloutRefused as error:
                told.append(error)

        def sync(step: str, place: str = old.location, barrier=barrier) -> None:
            if step == f"condemn {place}":
                barrier.wait(30)

        roller = threading.Thread(target=roll)
        roller.start()
        done = outcomes(collect(registry.database, store, AT_ONCE, LATER, on_step=sync))
        roller.join(30)
        opened = registry.route(task).candidate == old.name
        assert opened is not (done[old.name] == "removed")
        assert bool(problems) is not opened
        require_sound(registry, store)


def test_two_collectors_at_once_remove_each_thing_once(
    registry: Registry, store: ObjectStore
) -> None:
    shelved = [shelve(registry, store, "mail", n) for n in range(6)]
    results = at_once(*[lambda: collect(registry.database, store, AT_ONCE, LATER)] * 3)
    assert not [found for found in results if isinstance(found, Exception)], results
    for _ in range(2):
        collect(registry.database, store, AT_ONCE, LATER)
    for old in shelved[:-1]:
        assert not list(store.list(f"{old.location}/"))
        removed = [e for e in registry.events(old.name) if e.what == "adapter.removed"]
        assert len(removed) == 1
    require_sound(registry, store)


def write_again(registry: Registry, store: ObjectStore, location: str, now: datetime) -> None:
    with registry.database.begin() as connection:
        reserve(connection, location, now)
    put_files(store, location)


@pytest.mark.parametrize("stalled_at", ["manifest.json", "part.bin"])
def test_a_run_that_stalled_deletes_nothing_that_was_written_again(
    registry: Registry, store: ObjectStore, stalled_at: str
) -> None:
    place = f"datasets/mail/{digest('left')}"
    put_files(store, place)
    collect(registry.database, store, AT_ONCE, LATER)
    told = []

    def stall(step: str) -> None:
        if step == f"delete {place}/{stalled_at}":
            # Meanwhile another run takes the place over, and somebody writes the same again.
            told.append(outcomes(collect(registry.database, store, AT_ONCE, over))[place])
            write_again(registry, store, place, over)

    at = LATER + DAY
    over = at + STALE + timedelta(minutes=1)
    done = outcomes(collect(registry.database, store, AT_ONCE, at, on_step=stall))
    assert (told, done[place]) == (["removed"], "not now")
    assert whole(store, place)


class SlowStore:
    """A store whose next deletion of a key takes as long as ``meanwhile`` does."""

    def __init__(self, store: ObjectStore, key: str, meanwhile: Callable[[], None]) -> None:
        self._store, self._key, self._meanwhile = store, key, meanwhile

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def delete(self, key: str) -> None:
        if key == self._key:
            self._meanwhile()
        self._store.delete(key)


def test_nobody_takes_over_or_writes_while_a_deletion_is_under_way(
    registry: Registry, store: ObjectStore
) -> None:
    place = f"datasets/mail/{digest('left')}"
    put_files(store, place)
    collect(registry.database, store, AT_ONCE, LATER)
    at = LATER + DAY
    told = []

    def others() -> None:
        for wait in (timedelta(0), STALE / 2, STALE - timedelta(minutes=1)):
            told.append(outcomes(collect(registry.database, store, AT_ONCE, at + wait))[place])
            with pytest.raises(BeingRemoved):
                write_again(registry, store, place, at + wait)

    slow = SlowStore(store, f"{place}/part.bin", others)
    assert outcomes(collect(registry.database, slow, AT_ONCE, at))[place] == "removed"
    assert told == ["not now"] * 3
    write_again(registry, store, place, at)
    assert whole(store, place)


def test_a_location_is_owned_from_when_its_turn_comes_not_from_when_the_run_began(
    registry: Registry, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last of a long run would be taken over, and written again, right after its turn came."""
    place = f"datasets/mail/{digest('left')}"
    put_files(store, place)
    collect(registry.database, store, AT_ONCE, LATER)
    began, late = datetime.now(UTC), timedelta(minutes=50)
    monkeypatch.setattr(collecting, "utc_now", lambda: began)

    def wait(step: str) -> None:
        if step.startswith("condemn"):
            monkeypatch.setattr(collecting, "utc_now", lambda: began + late)
        if step.startswith("delete"):
            with pytest.raises(BeingRemoved):
                write_again(registry, store, place, LATER + DAY + late + timedelta(minutes=29))

    done = collect(registry.database, store, AT_ONCE, LATER + DAY, on_step=wait)
    assert outcomes(done)[place] == "removed"


def test_a_deletion_that_may_have_been_sent_twice_leaves_the_place_condemned(
    registry: Registry, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"datasets/mail/{digest('left')}"
    put_files(store, place)
    collect(registry.database, store, AT_ONCE, LATER)
    monkeypatch.setattr(collecting, "SLOW_SECONDS", 0.0)
    at = LATER + DAY
    assert outcomes(collect(registry.database, store, AT_ONCE, at))[place] == "not now"
    with pytest.raises(BeingRemoved):
        write_again(registry, store, place, at + STALE / 2)
    monkeypatch.undo()
    collect(registry.database, store, AT_ONCE, at + STALE + timedelta(minutes=1))
    write_again(registry, store, place, at + STALE)
    assert whole(store, place)


@pytest.mark.parametrize("step", range(8))
def test_killed_before_any_effect_the_next_run_finishes(
    registry: Registry, store: ObjectStore, tmp_path: Path, step: int
) -> None:
    old, champion, newest = (shelve(registry, store, "mail", n) for n in range(3))
    registry.set_route("mail", 0, None, champion=champion.name, now=NOW, **BY)
    url = registry.database.url.render_as_string(hide_password=False)
    killed = subprocess.run(
        [
            *(sys.executable, "-m", "tests.serving.registry.retention.shelves"),
            *(url, str(tmp_path / "objects"), str(step)),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=120,
    )
    # condemn, three deletions and the note are five effects; later numbers find nothing to kill at.
    assert killed.returncode == (-signal.SIGKILL if step < 5 else 0), killed.stderr.decode()
    require_sound(registry, store)
    # What the killed one condemned is taken over once nobody can be deleting there any more.
    for wait in (STALE, STALE, 2 * STALE):
        collect(registry.database, store, AT_ONCE, LATER + wait)
    assert not list(store.list(f"{old.location}/"))
    assert not list(store.list(f"datasets/mail/{old.dataset_digest}/"))
    for kept in (champion, newest):
        assert whole(store, kept.location)
    with registry.database.read() as connection:
        mark = find_mark(connection, old.location)
    assert mark is not None and mark.state == "removed"
    require_sound(registry, store)


def test_a_data_set_that_is_frozen_again_is_whole_again(
    registry: Registry, store: ObjectStore
) -> None:
    old, _ = (shelve(registry, store, "mail", n) for n in range(2))
    for _ in range(2):
        collect(registry.database, store, AT_ONCE, LATER)
    place = f"datasets/mail/{old.dataset_digest}"
    assert not whole(store, place)
    data = registry.dataset(old.dataset_digest)
    again = {name: value for name, value in vars(data).items() if name != "created"}
    with pytest.raises(BeingRemoved, match="write it again"):
        registry.record_dataset(**again)
    write_again(registry, store, place, LATER)
    assert registry.record_dataset(**again) == data
    done = outcomes(collect(registry.database, store, GRACE, LATER))
    assert done[old.dataset_digest] in ("kept", "marked")
    assert whole(store, place)
