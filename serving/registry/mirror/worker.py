"""Keeps the mirror up to date: what differs from what was last told is told, until it is taken.

What is compared is the registry's state, not a position in its events: events of transactions that were
open at the same time become visible out of order, and a position would leave the late ones behind.
``mirrored`` holds the digest of what the server has taken, per adapter and server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web
from sqlalchemy import Connection, func, select

from infra.calls.record import new_id, utc_now
from infra.database.leases import acquire, release, renew
from infra.database.open import Database
from infra.database.tables import adapters, events, mirrored, routes, scorecards
from infra.database.writes import compare_and_swap, insert_if_absent
from infra.settings.operating import RegistryApi
from serving.registry.catalogue import read_scorecards
from serving.registry.mirror.client import MirrorDown, MirrorRefused, MlflowClient
from serving.registry.mirror.reflection import Reflection, reflect
from serving.registry.records import Adapter, Route

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
PAGE = 200


@dataclass(frozen=True)
class Round:
    """What one round did."""

    told: int = 0
    refused: int = 0
    busy: bool = False
    """Another process mirrors to the same server."""


class Mirror:
    """One registry and one MLflow server. For one thread; any number of processes may have one."""

    def __init__(self, database: Database, client: MlflowClient, uri: str) -> None:
        self._database = database
        self._client = client
        self.target = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()
        self._seen: tuple[int, ...] | None = None

    def round(self, now: datetime | None = None) -> Round:
        """Tell the server all that it does not know yet.

        Raises MirrorDown (what was told until then stays told), and what the database raises.
        """
        clock: Callable[[], datetime] = (lambda: now) if now is not None else utc_now
        lease = f"mirror:{self.target[:16]}"
        holder = f"{socket.gethostname()}:{os.getpid()}:{new_id()[-6:]}"[:100]
        seen = self._marks()
        if seen == self._seen:
            return Round()
        fence = acquire(self._database, lease, holder, LEASE_SECONDS, clock())
        if fence is None:
            return Round(busy=True)
        told = refused = 0
        try:
            after = ""
            while True:
                with self._database.read() as connection:
                    page, stale = _stale(connection, self.target, after)
                for reflection, before in stale:
                    if not renew(self._database, lease, holder, fence, LEASE_SECONDS, clock()):
                        return Round(told, refused, busy=True)
                    try:
                        self._client.tell(reflection)
                    except MirrorRefused as error:
                        # One that it never takes must not keep the others from it.
                        logger.warning("MLflow refuses %s: %s", reflection.adapter, error)
                        refused += 1
                        continue
                    self._note(reflection, before, clock())
                    told += 1
                if not page:
                    break
                after = page
        finally:
            release(self._database, lease, holder, fence, clock())
        # Refused ones are asked again only when something changes, or by another process.
        self._seen = seen
        return Round(told, refused)

    def _marks(self) -> tuple[int, ...]:
        """Cheap to read, and different after any change that is mirrored."""
        with self._database.read() as connection:
            return tuple(
                int(connection.execute(query).scalar_one() or 0)
                for query in (
                    select(func.max(events.c.id)),
                    select(func.count()).select_from(events),
                    select(func.count()).select_from(scorecards),
                    select(func.count()).select_from(mirrored),
                )
            )

    def _note(self, reflection: Reflection, before: str | None, now: datetime) -> None:
        key = {"adapter": reflection.adapter, "target": self.target}
        values = {"digest": reflection.digest, "time": now}
        with self._database.begin() as connection:
            if before is None:
                insert_if_absent(connection, mirrored, {**key, **values})
            else:
                compare_and_swap(connection, mirrored, {**key, "digest": before}, values)


class MirrorWorker:
    """A thread beside the read API. Nothing that MLflow does reaches whoever reads the registry."""

    def __init__(self, settings: RegistryApi, database: Database) -> None:
        assert settings.mlflow_uri is not None
        token = settings.mlflow_token.get_secret_value() if settings.mlflow_token else None
        client = MlflowClient(settings.mlflow_uri, token)
        self._mirror = Mirror(database, client, settings.mlflow_uri)
        self._database = database
        self._every = settings.mirror_seconds
        self._stop = threading.Event()
        self._down = False

    async def while_it_serves(self, _: web.Application) -> AsyncIterator[None]:
        thread = threading.Thread(target=self._loop, name="mirror", daemon=True)
        thread.start()
        yield
        self._stop.set()

    def _loop(self) -> None:
        while True:
            try:
                done = self._mirror.round()
                if done.told:
                    logger.info("%d adapters were mirrored to MLflow", done.told)
                self._down = False
            except MirrorDown as error:
                if not self._down:
                    logger.warning("the mirror waits: %s", error)
                self._down = True
            except Exception:
                # The loop must outlive a database that is away for a while.
                logger.exception("the mirror could not be brought up to date")
            if self._stop.wait(self._every):
                self._database.close()
                return


def _stale(
    connection: Connection, target: str, after: str
) -> tuple[str, list[tuple[Reflection, str | None]]]:
    """A page of adapters by name: the last one's name, and those that differ from what was told."""
    page = [
        Adapter(**row._mapping)
        for row in connection.execute(
            select(adapters).where(adapters.c.name > after).order_by(adapters.c.name).limit(PAGE)
        )
    ]
    if not page:
        return "", []
    names = [adapter.name for adapter in page]
    told = {
        row.adapter: row.digest
        for row in connection.execute(
            select(mirrored.c.adapter, mirrored.c.digest).where(
                mirrored.c.target == target, mirrored.c.adapter.in_(names)
            )
        )
    }
    on = {
        row.task_id: Route(**row._mapping)
        for row in connection.execute(
            select(routes).where(routes.c.task_id.in_({adapter.task_id for adapter in page}))
        )
    }
    stale = []
    for adapter in page:
        cards = read_scorecards(connection, adapter.name)
        reflection = reflect(adapter, cards[0] if cards else None, on.get(adapter.task_id))
        if told.get(adapter.name) != reflection.digest:
            stale.append((reflection, told.get(adapter.name)))
    return page[-1].name, stale
