from __future__ import annotations

import threading

import pytest

from flows.holding import Busy, hold
from infra.database.leases import acquire
from infra.database.open import Database


def test_only_one_holds_and_the_next_has_a_higher_fence(database: Database):
    with (
        hold(database, "night", "one") as first,
        pytest.raises(Busy, match="night is being done elsewhere"),
        hold(database, "night", "two"),
    ):
        pass
    with hold(database, "night", "two") as second:
        assert second > first


def test_the_same_process_cannot_hold_twice(database: Database):
    with hold(database, "judge", "host:1"), pytest.raises(Busy), hold(database, "judge", "host:1"):
        pass


def test_a_waiting_holder_gets_its_turn(database: Database):
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(10)
        with hold(database, "judge", "two", wait_seconds=30):
            order.append("two")

    waiter = threading.Thread(target=second)
    waiter.start()
    with hold(database, "judge", "one"):
        inside.set()
        order.append("one")
    waiter.join(40)
    assert order == ["one", "two"]


def test_a_lease_is_free_after_an_error(database: Database):
    with pytest.raises(RuntimeError), hold(database, "night", "one"):
        raise RuntimeError("the work failed")
    assert acquire(database, "night", "another", 5) is not None
