"""The only place where settings turn into objects and the rooms are introduced to each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from flows.orchestrator import Orchestrator
from flows.stack.services import prefect_api_url
from infra.database.open import Database, open_database
from infra.notify.links import ActionLinks
from infra.notify.message import Channel
from infra.notify.open import open_channels
from infra.notify.outbox import Delivery, deliver
from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from infra.settings.sources import SettingsError, load_settings
from serving.engines.fleet import Fleet
from serving.engines.open import open_engine
from serving.registry.registry import Registry

REQUESTS_PER_MESSAGE = 12
"""More than any channel makes for one message."""


@dataclass(frozen=True)
class Context:
    """What a step of a flow needs, opened once per process."""

    settings: Settings
    store: ObjectStore
    database: Database
    registry: Registry
    channels: Mapping[str, Channel]
    holder: str
    """Unique per process: who holds a lease or a claim."""

    def engine(self, *, loads: bool = True) -> Fleet:
        """The configured engine; use it as an async context manager.

        Args:
            loads: whether adapters will be loaded through it. Raises ArtifactError when they will,
                the engine is vLLM and its base model's files are not here.
        """
        return open_engine(self.settings.engine, loads=loads)

    def deliver_messages(self) -> Delivery:
        """Send what is due in the outbox; what fails is tried again by whoever comes next."""
        notify = self.settings.notify
        return deliver(
            self.database,
            self.channels,
            max_attempts=notify.max_attempts,
            claim_seconds=max(120.0, REQUESTS_PER_MESSAGE * notify.timeout_seconds),
        )

    def orchestrator(self) -> Orchestrator:
        return Orchestrator(prefect_api_url(self.settings))


@contextmanager
def open_context(settings: Settings | None = None) -> Iterator[Context]:
    """Open store and database.

    Raises:
        SettingsError: the settings contradict themselves.
        SchemaOutdated: the tables are not this release's.
    """
    settings = settings or load_settings()
    database = open_database(settings.database)
    try:
        try:
            channels = open_channels(settings.notify, database, ActionLinks(settings.hooks))
        except ValueError as error:
            raise SettingsError(str(error)) from None
        database.check()
        yield Context(
            settings,
            open_store(settings.storage),
            database,
            Registry(database),
            channels,
            f"{socket.gethostname()}:{os.getpid()}",
        )
    finally:
        database.close()
