"""What every database must do: SQLite and PostgreSQL pass the same suite."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier, Thread

import pytest
from sqlalchemy import select
from sqlalchemy.exc import StatementError

from infra.database import leases
from infra.database.events import list_events, record_event
from infra.database.open import Database
from infra.database.tables import api_keys
from infra.database.tables import leases as lease_table
from infra.database.writes import compare_and_swap, insert_if_absent

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = {"hash": "h", "tenant": "t", "role": "call", "label": "", "created": NOW}


def at_once(count: int, act: Callable[[int], object]) -> list[object]:
    """Run ``act`` in that many threads, released together."""
    barrier = Barrier(count)

    def run(number: int) -> object:
        barrier.wait(30)
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class TestTimes:
    def test_come_back_as_the_same_moment_in_utc(self, each_database: Database) -> None:
        moment = datetime(2026, 3, 1, 14, 30, 0, 123456, timezone(timedelta(hours=2)))
        with each_database.begin() as connection:
            insert_if_absent(connection, api_keys, {**KEY, "created": moment, "revoked": None})
            row = connection.execute(select(api_keys)).one()
        assert row.created == moment
        assert row.created.utcoffset() == timedelta(0)
        assert row.revoked is None

    def test_compare_in_order(self, each_database: Database) -> None:
        with each_database.begin() as connection:
            for number in range(3):
                moment = NOW + timedelta(microseconds=number)
                insert_if_absent(
                    connection, api_keys, {**KEY, "hash": str(number), "created": moment}
                )
            later = NOW + timedelta(microseconds=1)
            found = connection.execute(
                select(api_keys.c.hash).where(api_keys.c.created >= later).order_by("hash")
            )
            assert found.scalars().all() == ["1", "2"]

    def test_naive_is_refused(self, each_database: Database) -> None:
        naive = NOW.replace(tzinfo=None)
        with pytest.raises(StatementError, match="aware"), each_database.begin() as connection:
            insert_if_absent(connection, api_keys, {**KEY, "created": naive})


class TestTransactions:
    def test_an_error_rolls_all_of_it_back(self, each_database: Database) -> None:
        with pytest.raises(RuntimeError), each_database.begin() as connection:
            insert_if_absent(connection, api_keys, KEY)
            raise RuntimeError
        with each_database.read() as connection:
            assert connection.execute(select(api_keys)).all() == []

    def test_a_reader_does_not_wait_for_a_writer(self, each_database: Database) -> None:
        seen: list[int] = []

        def read() -> None:
            with each_database.read() as connection:
                seen.append(len(connection.execute(select(api_keys)).all()))

        with each_database.begin() as connection:
            insert_if_absent(connection, api_keys, KEY)
            reader = Thread(target=read)
            reader.start()
            reader.join(10)
            assert seen == [0]
        read()
        assert seen == [0, 1]


class TestRaces:
    def test_one_of_many_inserts(self, each_database: Database) -> None:
        def insert(_: int) -> bool:
            with each_database.begin() as connection:
                return insert_if_absent(connection, api_keys, KEY)

        assert sorted(at_once(6, insert)) == [False] * 5 + [True]  # type: ignore[type-var]

    def test_one_of_many_swaps(self, each_database: Database) -> None:
        with each_database.begin() as connection:
            insert_if_absent(connection, api_keys, KEY)

        def swap(number: int) -> bool:
            with each_database.begin() as connection:
                expected = {"hash": "h", "label": ""}
                return compare_and_swap(connection, api_keys, expected, {"label": f"by {number}"})

        assert sorted(at_once(6, swap)) == [False] * 5 + [True]  # type: ignore[type-var]

    def test_read_then_write_loses_no_update(self, each_database: Database) -> None:
        with each_database.begin() as connection:
            insert_if_absent(connection, api_keys, {**KEY, "label": "0"})

        def increment(_: int) -> None:
            done = 0
            while done < 5:
                with each_database.begin() as connection:
                    label = connection.execute(select(api_keys.c.label)).scalar_one()
                    done += compare_and_swap(
                        connection,
                        api_keys,
                        {"hash": "h", "label": label},
                        {"label": str(int(label) + 1)},
                    )

        at_once(4, increment)
        with each_database.read() as connection:
            assert connection.execute(select(api_keys.c.label)).scalar_one() == "20"

    def test_swap_knows_null(self, each_database: Database) -> None:
        with each_database.begin() as connection:
            insert_if_absent(connection, api_keys, KEY)
            expected = {"hash": "h", "revoked": None}
            assert compare_and_swap(connection, api_keys, expected, {"revoked": NOW})
            assert not compare_and_swap(connection, api_keys, expected, {"revoked": NOW})
            assert compare_and_swap(
                connection, api_keys, {"hash": "h", "revoked": NOW}, {"revoked": None}
            )

    def test_swap_needs_the_whole_key(self, each_database: Database) -> None:
        with pytest.raises(ValueError, match="hash"), each_database.begin() as connection:
            compare_and_swap(connection, api_keys, {"label": ""}, {"label": "x"})


class TestLeases:
    def test_one_of_many_gets_it(self, each_database: Database) -> None:
        fences = at_once(6, lambda n: leases.acquire(each_database, "night", f"host-{n}", 60, NOW))
        assert sorted(fences, key=str) == [1, None, None, None, None, None]

    def test_of_many_after_it_ran_out_one_gets_it(self, each_database: Database) -> None:
        leases.acquire(each_database, "night", "dead", 60, NOW)
        later = NOW + timedelta(seconds=60)
        fences = at_once(
            6, lambda n: leases.acquire(each_database, "night", f"host-{n}", 60, later)
        )
        assert sorted(fences, key=str) == [2, None, None, None, None, None]

    def test_renewed_it_lasts_and_the_late_holder_is_out(self, each_database: Database) -> None:
        fence = leases.acquire(each_database, "night", "a", 60, NOW)
        assert fence is not None
        middle, end = NOW + timedelta(seconds=50), NOW + timedelta(seconds=100)
        assert leases.renew(each_database, "night", "a", fence, 60, middle)
        assert leases.acquire(each_database, "night", "b", 60, end) is None
        assert not leases.renew(each_database, "night", "a", fence, 60, NOW + timedelta(hours=1))
        taken = leases.acquire(each_database, "night", "b", 60, NOW + timedelta(hours=1))
        assert taken == fence + 1
        assert not leases.release(each_database, "night", "a", fence)

    def test_released_it_is_free_and_the_fence_rises(self, each_database: Database) -> None:
        assert leases.acquire(each_database, "night", "a", 60, NOW) == 1
        assert leases.release(each_database, "night", "a", 1, NOW)
        assert leases.acquire(each_database, "night", "b", 60, NOW) == 2

    def test_a_restarted_holder_fences_off_its_former_self(self, each_database: Database) -> None:
        assert leases.acquire(each_database, "night", "a", 60, NOW) == 1
        assert leases.acquire(each_database, "night", "a", 60, NOW) == 2
        assert not leases.renew(each_database, "night", "a", 1, 60, NOW)
        assert leases.renew(each_database, "night", "a", 2, 60, NOW)

    @pytest.mark.parametrize("seconds_later", [30, 90])
    def test_guard_stops_a_stale_write(self, each_database: Database, seconds_later: int) -> None:
        leases.acquire(each_database, "night", "a", 60, NOW)
        now = NOW + timedelta(seconds=seconds_later)
        if seconds_later < 60:
            leases.acquire(each_database, "night", "a", 600, now)
        with pytest.raises(leases.LeaseLost), each_database.begin() as connection:
            insert_if_absent(connection, api_keys, KEY)
            leases.guard(connection, "night", 1, now)
        with each_database.read() as connection:
            assert connection.execute(select(api_keys)).all() == []

    def test_guard_lets_the_holder_write(self, each_database: Database) -> None:
        leases.acquire(each_database, "night", "a", 60, NOW)
        with each_database.begin() as connection:
            leases.guard(connection, "night", 1, NOW)
            assert insert_if_absent(connection, api_keys, KEY)

    def test_nobody_takes_a_guarded_lease(self, each_database: Database) -> None:
        leases.acquire(each_database, "night", "a", 60, NOW)
        taken: list[int | None] = []
        later = NOW + timedelta(hours=1)
        taker = Thread(
            target=lambda: taken.append(leases.acquire(each_database, "night", "b", 60, later))
        )
        with each_database.begin() as connection:
            leases.guard(connection, "night", 1, NOW)
            taker.start()
            taker.join(0.2)
            assert taken == []
            row = connection.execute(select(lease_table)).one()
            assert row.holder == "a"
        taker.join(20)
        assert taken == [2]


class TestEvents:
    def test_come_back_whole_and_in_order(self, each_database: Database) -> None:
        with each_database.begin() as connection:
            for number in range(3):
                record_event(
                    connection,
                    actor="controller",
                    what="route.changed",
                    subject=f"task-{number % 2}",
                    why="the numbers say so: größer",
                    evidence={"e_bad": 21.5, "sessions": number},
                    previous={"champion": "teacher"},
                    current={"champion": "task@1234"},
                    time=NOW,
                )
            all_events = list_events(connection)
            assert [event.evidence["sessions"] for event in all_events] == [0, 1, 2]
            first = all_events[0]
            assert (first.time, first.previous) == (NOW, {"champion": "teacher"})
            assert first.why == "the numbers say so: größer"
            assert list_events(connection, subject="task-1") == [all_events[1]]
            assert list_events(connection, after=all_events[0].id, limit=1) == [all_events[1]]
            assert list_events(connection, newest_first=True, limit=1) == [all_events[2]]
            assert list_events(connection, what="other") == []

    def test_a_change_and_its_event_are_one(self, each_database: Database) -> None:
        with pytest.raises(RuntimeError), each_database.begin() as connection:
            record_event(connection, actor="a", what="b", subject="c", why="d")
            raise RuntimeError
        with each_database.read() as connection:
            assert list_events(connection) == []

    @pytest.mark.parametrize("subject", ["", "x" * 201])
    def test_a_name_that_does_not_fit_is_refused(
        self, each_database: Database, subject: str
    ) -> None:
        with pytest.raises(ValueError, match="subject"), each_database.begin() as connection:
            record_event(connection, actor="a", what="b", subject=subject, why="d")

    def test_a_number_that_is_none_is_refused(self, each_database: Database) -> None:
        with (
            pytest.raises((StatementError, ValueError), match="not JSON compliant"),
            each_database.begin() as connection,
        ):
            record_event(
                connection, actor="a", what="b", subject="c", why="d", evidence={"x": math.nan}
            )
