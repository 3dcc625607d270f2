"""Brings the adapters that routes name to local disk and into the engine, and knows which are there.

Only what is in ``ready`` may get traffic: pulled and verified, loaded under its digest name, probed.
Routes may name more adapters than the engine has room for: then those called last are there, and the
teacher answers for the others until a call has brought them in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from infra.artifacts.folder import pull
from infra.artifacts.manifest import ArtifactError
from infra.objects.store import ObjectStore, ObjectStoreError
from serving.engines.fleet import Fleet
from serving.gateway.copies import prune
from serving.gateway.residents import residents
from serving.gateway.routes import AdapterRoute, Snapshot, TaskRoute

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
RETRY_SECONDS = 30.0
"""Before an adapter that could not be pulled, or that the engine refused, is tried again."""
PULLS = 4
"""Adapters that are fetched at the same time."""
STRANGER_SECONDS = 3600.0
"""How long one that no route of ours ever named is left alone: it may be just being judged."""
PRUNE_SECONDS = 60.0


class Holdings:
    """Keeps the engine's adapters equal to those of the routes. For one event loop.

    Args:
        engine: all replicas of it.
        open_store: makes the object store; called in a thread, again after a failure.
        folder: where local copies go.
        most: adapters that the engine may hold.
        residence_seconds: how long an adapter keeps its place, see ``residents``.
        grace_seconds: how long an adapter stays loaded after it was let go. Our own calls are
            counted and waited for besides; this is for the calls of other gateways, so longer than
            any call may take.
        max_bytes: of local copies; more are kept only while an engine lists them.
        unfit: hears, with the reason, of each time an adapter was refused for what it is: a storage
            or an engine that is not there is not the adapter's doing.
        loaded: hears, at each pass, which adapters the engine has taken.
    """

    def __init__(
        self,
        engine: Fleet,
        open_store: Callable[[], ObjectStore],
        folder: Path,
        most: int,
        *,
        residence_seconds: float = 60.0,
        grace_seconds: float = 30.0,
        max_bytes: int = 16 << 30,
        unfit: Callable[[str, str], None] = lambda _name, _reason: None,
        loaded: Callable[[Collection[str]], None] = lambda _names: None,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._store: ObjectStore | None = None
        self._folder = folder
        self._most = most
        self._unfit = unfit
        self._loaded = loaded
        self._residence_seconds = residence_seconds
        self._grace_seconds = grace_seconds
        self._max_bytes = max_bytes
        # A call keeps asking for its adapter until a place can have become free.
        self._waiting_seconds = residence_seconds + 2 * grace_seconds + 2 * RETRY_SECONDS
        self._routed: dict[str, AdapterRoute] = {}
        """Champions first: they are loaded first."""
        self._pinned: frozenset[str] = frozenset()
        self._folders: dict[str, Path] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._pulls = asyncio.Semaphore(PULLS)
        self._retry_at: dict[str, float] = {}
        self._ours: set[str] = set()
        self._since: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._waiting: dict[str, float] = {}
        self._let_go: dict[str, float] = {}
        self._pruned_at = float("-inf")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._said = ""
        self.ready: frozenset[str] = frozenset()
        engine.lost = self.recheck

    def want(self, snapshot: Snapshot) -> None:
        """New routes."""
        champions: dict[str, AdapterRoute] = {}
        pinned = set()
        for task in snapshot.tasks:
            for adapter in task.adapters():
                if adapter is task.champion:
                    champions[adapter.name] = adapter
                else:
                    pinned.add(adapter.name)
        self._routed = {**champions, **snapshot.adapters()}
        self._pinned = frozenset(pinned)
        self._used = {name: at for name, at in self._used.items() if name in self._routed}
        self._retry_at = {name: at for name, at in self._retry_at.items() if name in self._routed}
        self._waiting = {name: at for name, at in self._waiting.items() if name in self._routed}
        if len(pinned) > self._most:
            logger.warning(
                "%d rollouts are open and the engine holds %d adapters: raise engine.max_adapters",
                len(pinned),
                self._most,
            )
        self.ready &= self._routed.keys()
        self._wake.set()

    def called(self, task: TaskRoute) -> None:
        """A call came that the task's adapters may answer: what is called stays, or is brought in."""
        now = time.monotonic()
        for adapter in task.adapters():
            name = adapter.name
            self._used[name] = now
            if name not in self.ready and name in self._routed:
                if name not in self._waiting:
                    self._wake.set()
                self._waiting[name] = now

    def recheck(self) -> None:
        """Look at the engine soon: it said that it does not know an adapter."""
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        tasks = [*self._fetching.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def once(self) -> None:
        """One pass. Never raises for what store or engine do."""
        if not self._routed and not self._ours:
            return  # nothing of ours was ever in the engine
        goal = self._goal(time.monotonic())
        # Nobody is sent to an adapter that is about to go.
        self.ready &= goal
        await self._fetch(goal)
        folders = {name: self._folders[name] for name in goal if name in self._folders}
        problems = await self._engine.hold(folders, self._spare, patience_seconds=CHECK_SECONDS)
        now = time.monotonic()
        self._see(now)
        ready = self._engine.ready & goal
        for name in problems.refused - ready:
            self._retry_at[name] = now + RETRY_SECONDS
        for name, reason in problems.unfit.items():
            # One replica that differs from the others is not the adapter's doing.
            if name not in ready:
                self._unfit(name, reason)
        self._loaded(ready)
        self._ours |= ready
        self._waiting = {name: at for name, at in self._waiting.items() if name not in ready}
        # Routes may have changed meanwhile.
        self.ready = ready & self._routed.keys()
        self._say("; ".join(f"{what}: {why}" for what, why in sorted(problems.reasons.items())))
        if now - self._pruned_at > PRUNE_SECONDS and self._engine.all_known:
            self._pruned_at = now
            keep = goal | self._engine.listed
            deleted = await asyncio.to_thread(prune, self._folder, keep, self._max_bytes)
            if deleted:
                logger.info("local copies of %d adapters are deleted", len(deleted))

    def _goal(self, now: float) -> frozenset[str]:
        self._see(now)
        self._waiting = {
            name: at for name, at in self._waiting.items() if now - at < self._waiting_seconds
        }
        goal = frozenset(
            residents(
                # One that cannot be had must not take the place of one that can.
                [name for name in self._routed if self._retry_at.get(name, now) <= now],
                pinned=self._pinned,
                since=self._since,
                used=self._used,
                waiting=self._waiting,
                most=self._most,
                now=now,
                residence_seconds=self._residence_seconds,
            )
        )
        gone = self._engine.listed - goal
        self._let_go = {name: self._let_go.get(name, now) for name in gone}
        return goal

    def _see(self, now: float) -> None:
        """Note which adapters the engine has. Before they are ready: nobody is called earlier."""
        self._since = {name: self._since.get(name, now) for name in self._engine.listed}

    async def _fetch(self, goal: Collection[str]) -> None:
        """Bring what has no local copy. A store that hangs holds up only what it should give."""
        for name in goal:
            adapter, folder = self._routed.get(name), self._folders.get(name)
            here = folder is not None and folder.is_dir()
            if adapter is not None and not here and name not in self._fetching:
                self._fetching[name] = asyncio.create_task(self._bring(name, adapter))
        if self._fetching:
            await asyncio.wait(self._fetching.values(), timeout=CHECK_SECONDS)

    async def _bring(self, name: str, adapter: AdapterRoute) -> None:
        try:
            async with self._pulls:
                self._folders[name] = await asyncio.to_thread(self._pull, adapter)
        except (ArtifactError, ObjectStoreError, OSError) as error:
            self._folders.pop(name, None)
            self._retry_at[name] = time.monotonic() + RETRY_SECONDS
            logger.warning("adapter %s is not served: %s", name, error)
            if isinstance(error, ArtifactError):
                self._unfit(name, str(error))
        else:
            self._retry_at.pop(name, None)
        finally:
            del self._fetching[name]
            self._wake.set()

    def _pull(self, adapter: AdapterRoute) -> Path:
        if self._store is None:
            self._store = self._open_store()
        folder = pull(self._store, adapter.location, self._folder)
        if folder.name != adapter.name:
            raise ArtifactError(f"{adapter.location} holds {folder.name}")
        os.utime(folder)  # used now
        return folder

    def _spare(self, listed: Collection[str]) -> set[str]:
        """Of a replica's adapters, those to leave there although they are no part of the goal."""
        now = time.monotonic()
        return {
            name
            for name in listed
            if now - self._let_go.setdefault(name, now)
            < (self._grace_seconds if self._known(name) else STRANGER_SECONDS)
        }

    def _known(self, name: str) -> bool:
        return name in self._ours or name in self._routed

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
                # Not wait_for, which in this Python may lose the cancellation that ends this loop.
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            # A burst of refusals asks many times; the engine is asked once.
            await asyncio.sleep(0.05)
