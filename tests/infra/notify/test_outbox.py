"""The outbox on both databases: exactly the right messages, in order, however often it is run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event, Lock

import pytest
from sqlalchemy import select

from infra.database.open import Database
from infra.database.tables import outbox
from infra.notify import outbox as outbox_module
from infra.notify.message import DeliveryFailed, Message
from infra.notify.outbox import MAX_AGE_SECONDS, Delivery, deliver, enqueue, retry_seconds

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Recorder:
    """A channel that keeps what it got, and fails when told to."""

    def __init__(self, fail: Callable[[Message], Exception | None] = lambda _: None) -> None:
        self.got: list[str] = []
        self.fail = fail
        self._lock = Lock()

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        failure = self.fail(message)
        if failure is not None:
            raise failure
        with self._lock:
            self.got.append(message.key)


def write(database: Database, *keys: str, topic: str = "t", channels: str = "a") -> int:
    with database.begin() as connection:
        return sum(
            enqueue(
                connection,
                Message(key, topic, "title", "what", evidence={"n": 1}),
                channels.split(","),
                NOW,
            )
            for key in keys
        )


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def states(database: Database) -> dict[str, str]:
    with database.read() as connection:
        rows = connection.execute(select(outbox).order_by(outbox.c.id))
        return {f"{row.key}@{row.channel}": row.state for row in rows}


def test_a_message_is_delivered_once_to_each_channel(each_database: Database) -> None:
    a, b = Recorder(), Recorder()
    assert write(each_database, "1", "2", channels="a,b") == 4
    assert write(each_database, "1", channels="a,b") == 0
    assert deliver(each_database, {"a": a, "b": b}, NOW) == Delivery(delivered=4)
    assert deliver(each_database, {"a": a, "b": b}, NOW) == Delivery()
    assert a.got == b.got == ["1", "2"]


def test_a_message_and_its_cause_are_one_transaction(each_database: Database) -> None:
    with pytest.raises(RuntimeError), each_database.begin() as connection:
        enqueue(connection, Message("1", "t", "title", "what"), ["a"], NOW)
        raise RuntimeError
    assert deliver(each_database, {"a": Recorder()}, NOW) == Delivery()


def test_a_failure_is_tried_again_later_and_the_topic_waits_for_it(
    each_database: Database,
) -> None:
    broken = True
    channel = Recorder(lambda m: DeliveryFailed("no") if broken and m.key == "1" else None)
    write(each_database, "1", "2")
    assert deliver(each_database, {"a": channel}, NOW) == Delivery(failed=1, errors=("a: no",))
    broken = False
    assert deliver(each_database, {"a": channel}, later(14)) == Delivery()
    assert deliver(each_database, {"a": channel}, later(16)) == Delivery(delivered=2)
    assert channel.got == ["1", "2"]


def test_a_dead_channel_blocks_neither_others_nor_itself_for_ever(
    each_database: Database,
) -> None:
    dead, well = Recorder(lambda _: DeliveryFailed("gone")), Recorder()
    write(each_database, "1", "2", channels="dead,well")
    channels = {"dead": dead, "well": well}
    total, now = Delivery(), NOW
    for _ in range(20):
        total += deliver(each_database, channels, now, max_attempts=3)
        now += timedelta(hours=1)
    assert well.got == ["1", "2"]
    assert (total.delivered, total.dead, total.failed) == (2, 2, 4)
    assert states(each_database)["2@dead"] == "dead"


def test_one_that_took_too_long_does_not_touch_what_another_has_claimed_since(
    each_database: Database,
) -> None:
    write(each_database, "1")

    def meanwhile(_: Message) -> Exception:
        other = Recorder(lambda _: DeliveryFailed("the other's", retry_after_seconds=900))
        assert deliver(each_database, {"a": other}, later(121)).failed == 1
        return DeliveryFailed("too late")

    deliver(each_database, {"a": Recorder(meanwhile)}, NOW, claim_seconds=120)
    with each_database.read() as connection:
        row = connection.execute(select(outbox)).one()
    assert (row.last_error, row.next_attempt) == ("the other's", later(121 + 900))


def test_a_channel_in_trouble_is_asked_once_a_round_whatever_waits(
    each_database: Database,
) -> None:
    for topic in ("one", "two", "three"):
        write(each_database, topic, topic=topic)
    asked: list[str] = []

    def silent(message: Message) -> Exception:
        asked.append(message.key)
        return DeliveryFailed("no answer in ten seconds")

    assert deliver(each_database, {"a": Recorder(silent)}, NOW).failed == len(asked) == 1


def test_a_hanging_channel_does_not_hold_up_the_others(each_database: Database) -> None:
    release, arrived = Event(), Event()

    class Hanging:
        def send(self, message: Message, tried_since: datetime | None = None) -> None:
            release.wait(60)

    class Well:
        def send(self, message: Message, tried_since: datetime | None = None) -> None:
            arrived.set()

    write(each_database, "1", channels="hanging,well")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(deliver, each_database, {"hanging": Hanging(), "well": Well()}, NOW)
        assert arrived.wait(30)
        assert not running.done()
        release.set()
        assert running.result(30).delivered == 2


def test_other_topics_go_on_once_the_channel_is_well(each_database: Database) -> None:
    channel = Recorder(lambda m: DeliveryFailed("no") if m.topic == "bad" else None)
    write(each_database, "1", topic="bad")
    write(each_database, "2", topic="good")
    deliver(each_database, {"a": channel}, NOW)
    deliver(each_database, {"a": channel}, NOW)
    assert channel.got == ["2"]


def test_a_permanent_refusal_is_dead_at_once_and_the_next_comes(each_database: Database) -> None:
    channel = Recorder(lambda m: DeliveryFailed("bad", permanent=True) if m.key == "1" else None)
    write(each_database, "1", "2")
    assert deliver(each_database, {"a": channel}, NOW).dead == 1
    assert channel.got == ["2"]


def test_a_wish_to_wait_is_honoured_and_is_no_attempt(each_database: Database) -> None:
    slow = True
    channel = Recorder(
        lambda _: DeliveryFailed("slow down", retry_after_seconds=100) if slow else None
    )
    write(each_database, "1")
    for number in range(5):
        assert deliver(each_database, {"a": channel}, later(100 * number), max_attempts=2).failed
    slow = False
    assert deliver(each_database, {"a": channel}, later(499)) == Delivery()
    assert deliver(each_database, {"a": channel}, later(500)).delivered == 1


def test_a_channel_with_a_fault_of_its_own_is_a_failure(each_database: Database) -> None:
    write(each_database, "1")
    result = deliver(each_database, {"a": Recorder(lambda _: KeyError("secret"))}, NOW)
    assert result == Delivery(failed=1, errors=("a: the channel failed (KeyError)",))


def test_killed_between_sending_and_noting_it_is_sent_again(
    each_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    channel = Recorder()
    write(each_database, "1", "2")
    monkeypatch.setattr(outbox_module, "_settle", die)
    with pytest.raises(Killed):
        deliver(each_database, {"a": channel}, NOW, claim_seconds=120)
    monkeypatch.undo()
    assert channel.got == ["1"]
    assert deliver(each_database, {"a": channel}, later(119)) == Delivery()
    assert deliver(each_database, {"a": channel}, later(121)).delivered == 2
    assert channel.got == ["1", "1", "2"]


def test_many_deliverers_at_once_send_each_message_once_in_order(each_database: Database) -> None:
    channel = Recorder()
    keys = [f"{n:02d}" for n in range(12)]
    write(each_database, *keys)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(12):
            results = pool.map(lambda _: deliver(each_database, {"a": channel}, NOW), range(4))
            if sum(result.delivered for result in results) == 0:
                break
    assert channel.got == keys


def test_what_nobody_carries_expires(each_database: Database) -> None:
    write(each_database, "1", channels="removed")
    assert deliver(each_database, {}, later(MAX_AGE_SECONDS - 1)) == Delivery()
    assert deliver(each_database, {}, later(MAX_AGE_SECONDS + 1)) == Delivery(dead=1)


def test_a_stored_body_that_is_no_message_is_dead(each_database: Database) -> None:
    write(each_database, "1", "2")
    with each_database.begin() as connection:
        connection.execute(outbox.update().where(outbox.c.key == "1").values(body={"x": 1}))
    channel = Recorder()
    assert deliver(each_database, {"a": channel}, NOW).dead == 1
    assert channel.got == ["2"]


def test_pauses_grow_to_an_hour() -> None:
    assert [retry_seconds(n) for n in (1, 2, 3, 9, 1000)] == [15, 30, 60, 3600, 3600]
