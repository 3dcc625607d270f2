"""Brings the adapters that routes name to local disk and into the engine, and knows which are there.

Only what is in ``ready`` may get traffic: pulled and verified, loaded under its digest name, probed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from infra.artifacts.folder import pull
from infra.artifacts.manifest import ArtifactError
from infra.objects.store import ObjectStore, ObjectStoreError
from serving.engines.protocol import Engine, EngineError
from serving.engines.reconcile import reconcile
from serving.gateway.routes import AdapterRoute, Snapshot

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
RETRY_SECONDS = 30.0
"""Before an adapter that could not be pulled is tried again."""
DRAIN_SECONDS = 120.0
"""How long an adapter stays loaded after its route let it go, for calls that are under way."""
STRANGER_SECONDS = 3600.0
"""How long one that no route of ours ever named is left alone: it may be just being judged."""


class Holdings:
    """Keeps the engine's adapters equal to those of the routes. For one event loop.

    Args:
        open_store: makes the object store; called in a thread, again after a failure.
        folder: where local copies go.
        most: adapters that the engine may hold.
        unfit: hears, with the reason, of each time an adapter was refused for what it is: a storage
            or an engine that is not there is not the adapter's doing.
    """

    def __init__(
        self,
        engine: Engine,
        open_store: Callable[[], ObjectStore],
        folder: Path,
        most: int,
        unfit: Callable[[str, str], None] | None = None,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._store: ObjectStore | None = None
        self._folder = folder
        self._most = most
        self._unfit = unfit or (lambda _name, _reason: None)
        self._wanted: dict[str, AdapterRoute] = {}
        self._folders: dict[str, Path] = {}
        self._retry_at: dict[str, float] = {}
        self._ours: set[str] = set()
        self._idle_since: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._said = ""
        self.ready: frozenset[str] = frozenset()

    def want(self, snapshot: Snapshot) -> None:
        """New routes. Champions come first where the engine has no room for all."""
        first = {
            task.champion.name: task.champion
            for task in snapshot.tasks
            if task.champion in task.adapters() and task.champion is not None
        }
        ordered = {**first, **snapshot.adapters()}
        self._wanted = dict(list(ordered.items())[: self._most])
        if len(ordered) > self._most:
            logger.warning(
                "%d adapters are routed and the engine holds %d: the teacher answers for the rest",
                len(ordered),
                self._most,
            )
        self.ready &= self._wanted.keys()
        self._wake.set()

    def recheck(self) -> None:
        """Look at the engine soon: it said that it does not know an adapter."""
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def once(self) -> None:
        """One pass. Never raises for what store or engine do."""
        wanted = dict(self._wanted)
        if not wanted and not self._ours:
            return  # nothing of ours was ever in the engine
        for name, adapter in wanted.items():
            await self._fetch(name, adapter)
        folders = {name: self._folders[name] for name in wanted if name in self._folders}
        try:
            spare = self._spare(wanted, await self._engine.loaded())
            report = await reconcile(self._engine, folders, spare=spare)
        except EngineError as error:
            # Whether it holds them still is not known: calls find out, and the teacher steps in.
            self._say(f"the engine cannot be asked: {error}")
            return
        self._ours |= report.ready
        self.ready = report.ready & self._wanted.keys()
        self._say("; ".join(f"{name}: {reason}" for name, reason in report.failed.items()))
        for name, reason in report.unfit.items():
            self._unfit(name, reason)
        for name in report.loaded:
            logger.info("adapter %s is loaded and answers", name)

    async def _fetch(self, name: str, adapter: AdapterRoute) -> None:
        folder = self._folders.get(name)
        if folder is not None and folder.is_dir():
            return
        if time.monotonic() < self._retry_at.get(name, 0):
            return
        try:
            self._folders[name] = await asyncio.to_thread(self._pull, adapter)
        except (ArtifactError, ObjectStoreError, OSError) as error:
            self._folders.pop(name, None)
            self._retry_at[name] = time.monotonic() + RETRY_SECONDS
            logger.warning("adapter %s is not served: %s", name, error)
            if isinstance(error, ArtifactError):
                self._unfit(name, str(error))
        else:
            self._retry_at.pop(name, None)

    def _pull(self, adapter: AdapterRoute) -> Path:
        if self._store is None:
            self._store = self._open_store()
        folder = pull(self._store, adapter.location, self._folder)
        if folder.name != adapter.name:
            raise ArtifactError(f"{adapter.location} holds {folder.name}")
        return folder

    def _spare(self, wanted: dict[str, AdapterRoute], loaded: object) -> set[str]:
        """Adapters to leave where they are although no route names them (now)."""
        now = time.monotonic()
        extra = {str(name) for name in loaded if name not in wanted}  # type: ignore[attr-defined]
        self._idle_since = {name: self._idle_since.get(name, now) for name in extra}
        return {
            name
            for name, since in self._idle_since.items()
            if now - since < (DRAIN_SECONDS if name in self._ours else STRANGER_SECONDS)
        }

    def _say(self, text: str) -> None:
        if text and text != self._said:
            logger.warning("%s", text)
        self._said = text

    async def _loop(self) -> None:
        while True:
            try:
                await self.once()
            except Exception:
                self._store = None
                logger.exception("adapters could not be brought up to date")
            try:
                await asyncio.wait_for(self._wake.wait(), CHECK_SECONDS)
            except TimeoutError:
                continue
            self._wake.clear()
            # A burst of refusals asks many times; the engine is asked once.
            await asyncio.sleep(0.05)
