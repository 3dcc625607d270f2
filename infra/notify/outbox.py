"""The outbox: a message is written in the transaction of what it tells, and delivered afterwards.

So a crash loses none, and the same key is one message however often it is written. Delivery is at
least once: killed between the receiver's answer and our note of it, a message is sent again, with
the same id. The channel is told that it may be the second time: one that can look at its receiver
finds the first. Messages of one topic and channel are delivered in the order they were written; one
channel's trouble touches no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from infra.calls.record import utc_now
from infra.database.open import Database
from infra.database.tables import outbox
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.notify.message import Channel, DeliveryFailed, Message

FIRST_RETRY_SECONDS = 15
MAX_RETRY_SECONDS = 3600
MAX_AGE_SECONDS = 3 * 86_400
MAX_BATCH = 100
MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Delivery:
    """What one call of ``deliver`` did, in messages."""

    delivered: int = 0
    failed: int = 0
    """Refused, to be tried again."""
    dead: int = 0
    """Given up."""
    errors: tuple[str, ...] = ()

    def __add__(self, other: Delivery) -> Delivery:
        return Delivery(
            self.delivered + other.delivered,
            self.failed + other.failed,
            self.dead + other.dead,
            self.errors + other.errors,
        )


def enqueue(
    connection: Connection,
    message: Message,
    channels: Iterable[str],
    now: datetime | None = None,
) -> int:
    """Write the message for each channel, in the caller's transaction; how many were new."""
    now = now or utc_now()
    row = {
        "key": message.key,
        "topic": message.topic,
        "body": message.to_dict(),
        "state": "waiting",
        "attempts": 0,
        "next_attempt": now,
        "last_error": "",
        "created": now,
    }
    return sum(insert_if_absent(connection, outbox, {**row, "channel": name}) for name in channels)


def deliver(
    database: Database,
    channels: Mapping[str, Channel],
    now: datetime | None = None,
    *,
    max_attempts: int = 8,
    claim_seconds: float = 120,
) -> Delivery:
    """Send what is due, each channel in its own thread, at most ``MAX_BATCH`` messages per channel.

    Any number of processes may deliver at once: a message is claimed by compare-and-swap.

    Args:
        channels: by the name they were enqueued under.
        now: the clock; the real one when None.
        max_attempts: then a message is dead, and the next of its topic comes.
        claim_seconds: longer than any send takes; after it another may try.
    """
    expired = _expire(database, now or utc_now())
    if not channels:
        return Delivery(dead=expired)
    with ThreadPoolExecutor(len(channels), thread_name_prefix="notify") as pool:
        results = list(
            pool.map(
                lambda name: _drain(
                    database, name, channels[name], now, max_attempts, claim_seconds
                ),
                channels,
            )
        )
    return sum(results, Delivery(dead=expired))


def retry_seconds(attempts: int) -> float:
    """The pause after that many failed attempts: 15 s, doubling, at most an hour."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 20), MAX_RETRY_SECONDS)


def _drain(
    database: Database,
    name: str,
    channel: Channel,
    clock: datetime | None,
    max_attempts: int,
    claim_seconds: float,
) -> Delivery:
    total = Delivery()
    for _ in range(MAX_BATCH):
        row = _claim(database, name, clock or utc_now(), claim_seconds)
        if row is None:
            break
        failure = _send(channel, row)
        result = _settle(database, row, failure, clock or utc_now(), max_attempts)
        total += result
        if failure is not None and not failure.permanent:
            break  # the channel is in trouble: its other messages would only wait for time-outs
    return total


def _claim(
    database: Database, channel: str, now: datetime, claim_seconds: float
) -> Row[Any] | None:
    """The oldest due message that is the first of its topic, now ours for ``claim_seconds``."""
    first = (
        select(func.min(outbox.c.id))
        .where(outbox.c.channel == channel, outbox.c.state == "waiting")
        .group_by(outbox.c.topic)
    )
    due = (
        select(outbox)
        .where(outbox.c.id.in_(first), outbox.c.next_attempt <= now)
        .order_by(outbox.c.id)
        .limit(MAX_BATCH)
    )
    with database.read() as connection:
        rows = connection.execute(due).all()
    for row in rows:
        claimed = {
            "attempts": row.attempts + 1,
            "next_attempt": now + timedelta(seconds=claim_seconds),
        }
        with database.begin() as connection:
            if compare_and_swap(
                connection,
                outbox,
                {
                    "id": row.id,
                    "state": "waiting",
                    "attempts": row.attempts,
                    "next_attempt": row.next_attempt,
                },
                claimed,
            ):
                return connection.execute(select(outbox).where(outbox.c.id == row.id)).one()
    return None


def _send(channel: Channel, row: Row[Any]) -> DeliveryFailed | None:
    try:
        message = Message.from_dict(row.body)
    except ValueError as error:
        return DeliveryFailed(f"the stored message cannot be read: {error}", permanent=True)
    try:
        # A try that was cut off left its count behind, and one that timed out may have arrived.
        channel.send(message, row.created if row.attempts > 1 or row.last_error else None)
    except DeliveryFailed as failure:
        return failure
    except Exception as error:  # noqa: BLE001 - a channel's own fault must not stop the others
        return DeliveryFailed(f"the channel failed ({type(error).__name__})")
    return None


def _settle(
    database: Database,
    row: Row[Any],
    failure: DeliveryFailed | None,
    now: datetime,
    max_attempts: int,
) -> Delivery:
    """Note what became of a claimed message, unless another has claimed it meanwhile."""
    values: dict[str, Any]
    if failure is None:
        values = {"state": "delivered", "delivered": now, "last_error": ""}
        result = Delivery(delivered=1)
    else:
        told = str(failure)[:MAX_ERROR_CHARACTERS]
        wish = failure.retry_after_seconds
        attempts = row.attempts - 1 if wish is not None else row.attempts
        dead = failure.permanent or attempts >= max_attempts
        pause = wish if wish is not None else retry_seconds(attempts)
        values = {
            "state": "dead" if dead else "waiting",
            "attempts": attempts,
            "next_attempt": now + timedelta(seconds=pause),
            "last_error": told,
        }
        result = Delivery(failed=not dead, dead=dead, errors=(f"{row.channel}: {told}",))
    claimed = {
        "id": row.id,
        "state": "waiting",
        "attempts": row.attempts,
        "next_attempt": row.next_attempt,
    }
    with database.begin() as connection:
        compare_and_swap(connection, outbox, claimed, values)
    return result


def _expire(database: Database, now: datetime) -> int:
    """Give up what nobody could deliver for days, also for channels that are no longer set up."""
    limit = now - timedelta(seconds=MAX_AGE_SECONDS)
    with database.begin() as connection:
        return connection.execute(
            update(outbox)
            .where(outbox.c.state == "waiting", outbox.c.created < limit)
            .values(state="dead", last_error="not delivered in time")
        ).rowcount
