"""Several replicas of one engine as one: the same adapters on each, every call to the least busy.

An adapter is ready replica by replica: loaded, listed and probed there. A call goes to a replica
that holds its adapter, and once more to another one when the first failed before it had answered
anything. A replica whose connection broke may have restarted empty: it is asked last until it has
listed its adapters and got back what was missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from serving.engines.client import EngineClient
from serving.engines.protocol import (
    STOPS,
    Completion,
    CompletionChunk,
    EngineAbsent,
    EngineError,
    EngineRefused,
    EngineTimeout,
    check_adapter_name,
)
from serving.engines.reconcile import reconcile
from serving.engines.replica import Replica, worth_another

logger = logging.getLogger(__name__)

T = TypeVar("T")
Spare = Callable[[Collection[str]], Collection[str]]
"""From the adapters that a replica lists: those to leave there although they are not wanted."""


@dataclass
class Problems:
    """What stood in the way of a goal."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Adapter name or replica address to reason."""
    refused: set[str] = field(default_factory=set)
    """Adapters that it is of no use to try again soon."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Those of the refused that are wrong in themselves, to reason."""

    def add(self, other: Problems, goal: Mapping[str, object]) -> None:
        """What else stood in the way, of what is still a goal; what is known of now stays."""
        self.reasons |= other.reasons
        self.refused |= other.refused & goal.keys()
        self.unfit |= {name: why for name, why in other.unfit.items() if name in goal}


class Fleet:
    """An Engine over several. For one event loop.

    Args:
        engines: one client for each replica; they share base model and settings.
        timeout_seconds: for a completion when the call gives none, both attempts together.
    """

    def __init__(self, engines: Sequence[EngineClient], *, timeout_seconds: float = 60) -> None:
        if not engines:
            raise ValueError("a fleet needs at least one engine")
        self.replicas = tuple(Replica(engine) for engine in engines)
        self.lost: Callable[[], None] = lambda: None
        """Called when a replica may need its adapters again."""
        self._timeout_seconds = timeout_seconds
        self._admin = asyncio.Lock()
        self._tending: dict[Replica, asyncio.Task[Problems]] = {}
        self._late: set[Replica] = set()
        """Whose tending was still going on when the last pass ended."""

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        tasks = list(self._tending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.engine.close() for replica in self.replicas))

    # What it holds

    @property
    def ready(self) -> frozenset[str]:
        """Adapters that some replica holds. Whether one just died, calls find out."""
        return frozenset().union(*(replica.holds for replica in self.replicas))

    @property
    def listed(self) -> frozenset[str]:
        """Adapters that some replica listed when it was last asked."""
        return frozenset().union(*(replica.listed or () for replica in self.replicas))

    @property
    def all_known(self) -> bool:
        """Whether every replica could be asked last time."""
        return all(replica.listed is not None for replica in self.replicas)

    def under_way(self, model: str | None) -> int:
        """Calls of ours that use the adapter now, on any replica."""
        return sum(replica.under_way(model) for replica in self.replicas)

    async def hold(
        self, goal: Mapping[str, Path], spare: Spare, *, patience_seconds: float
    ) -> Problems:
        """Bring every replica to the goal: load and probe what is missing, unload the rest.

        Each replica is tended by itself, so that one that hangs holds up no other.

        Args:
            goal: adapter name to its local folder.
            spare: what is left where it is although it is no part of the goal.
            patience_seconds: return after this long; a slow replica is tended on meanwhile.
        """
        problems = Problems()
        for replica in self.replicas:
            task = self._tending.get(replica)
            if task is None or task.done():
                if task is not None and replica in self._late:
                    # It came to its end between two passes: nobody has heard what it found.
                    problems.add(task.result(), goal)
                self._tending[replica] = asyncio.create_task(self._tend(replica, goal, spare))
        done, late = await asyncio.wait(self._tending.values(), timeout=patience_seconds)
        self._late = {replica for replica, task in self._tending.items() if task in late}
        for task in done:
            problems.add(task.result(), goal)
        for replica in self._late:
            problems.reasons[replica.engine.url] = "is slow to say or do what it was asked"
        return problems

    async def _tend(self, replica: Replica, goal: Mapping[str, Path], spare: Spare) -> Problems:
        engine = replica.engine
        try:
            listed = await engine.loaded()
            replica.heard(frozenset(listed))
            if replica.breaker.open:
                # That it lists its adapters does not say that it generates.
                await engine.probe(None)
                replica.breaker.succeeded()
            spared = set(spare(listed)) | {name for name in listed if replica.under_way(name)}
            report = await reconcile(engine, goal, listed=listed, spare=spared)
        except EngineError as error:
            replica.listed, replica.sure = None, False
            return Problems({engine.url: f"cannot be asked: {error}"})
        replica.listed = (frozenset(listed) | {*report.loaded}) - {*report.unloaded}
        # One that is being drained still finishes what was given to it.
        replica.holds = report.ready | (replica.holds & spared & replica.listed)
        for name in report.loaded:
            logger.info("adapter %s is loaded on %s and answers", name, engine.url)
        return Problems(report.failed, report.refused, report.unfit)

    # The Engine protocol

    async def healthy(self) -> bool:
        """Whether any replica serves."""
        return any(await asyncio.gather(*(r.engine.healthy() for r in self.replicas)))

    async def loaded(self) -> Mapping[str, str]:
        async def ask(replica: Replica) -> Mapping[str, str]:
            held = await replica.engine.loaded()
            replica.heard(frozenset(held))
            return held

        return {
            name: root
            for held in (await self._each(ask, self.replicas)).values()
            for name, root in held.items()
        }

    async def ensure_loaded(self, name: str, folder: Path) -> bool:
        """On every replica that can be reached. Raises what they say when none takes it."""
        check_adapter_name(name)

        async def load(replica: Replica) -> bool:
            loaded = await replica.engine.ensure_loaded(name, folder)
            replica.holds |= {name}
            return loaded

        async with self._admin:
            return any((await self._each(load, self.replicas)).values())

    async def ensure_unloaded(self, name: str) -> bool:
        """From every replica that can be reached; one that cannot has to be reconciled anyway."""
        check_adapter_name(name)

        async def unload(replica: Replica) -> bool:
            replica.holds -= {name}
            return await replica.engine.ensure_unloaded(name)

        async with self._admin:
            return any((await self._each(unload, self.replicas)).values())

    async def probe(self, name: str | None) -> float:
        """Every replica that has it; the slowest. It gets traffic where it answered, only there."""
        names = {name} if name is not None else set()

        async def probe(replica: Replica) -> float:
            try:
                seconds = await replica.engine.probe(name)
            except EngineError:
                replica.holds -= names
                raise
            replica.holds |= names
            return seconds

        asked = [r for r in self.replicas if names <= r.holds | (r.listed or frozenset())]
        if not asked:
            raise self._nobody(name)
        return max((await self._each(probe, asked)).values())

    async def complete(
        self,
        model: str | None,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> Completion:
        def ask(engine: EngineClient, left: float) -> Awaitable[Completion]:
            return engine.complete(
                model, prompt, max_tokens=max_tokens, timeout_seconds=left, stop=stop
            )

        return await self._ask(model, ask, timeout_seconds)

    async def draw(
        self,
        model: str | None,
        prompt: str,
        *,
        count: int,
        seed: int,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> tuple[Completion, ...]:
        def ask(engine: EngineClient, left: float) -> Awaitable[tuple[Completion, ...]]:
            return engine.draw(
                model,
                prompt,
                count=count,
                seed=seed,
                max_tokens=max_tokens,
                timeout_seconds=left,
                stop=stop,
            )

        return await self._ask(model, ask, timeout_seconds)

    async def stream(
        self,
        model: str | None,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> AsyncIterator[CompletionChunk]:
        ends = time.monotonic() + (timeout_seconds or self._timeout_seconds)
        replica: Replica | None = self._choose(model)
        second = False
        while replica is not None:
            asked, begun = replica, False
            chunks = asked.engine.stream(
                model, prompt, max_tokens=max_tokens, timeout_seconds=_left(ends), stop=stop
            )
            try:
                with asked.call(model):
                    async with aclosing(chunks):  # type: ignore[type-var]
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                asked.breaker.succeeded()
                return
            except EngineError as error:
                self._note(asked, model, error)
                # What the caller has seen cannot be taken back.
                again = not (begun or second)
                replica = self._second(asked, model, error) if again else None
                if replica is None:
                    raise
                second = True

    async def _ask(
        self,
        model: str | None,
        ask: Callable[[EngineClient, float], Awaitable[T]],
        timeout_seconds: float | None,
    ) -> T:
        """What a replica says, or another one where that is worth it.

        Args:
            ask: gets the replica's client and the seconds that are left.
        """
        ends = time.monotonic() + (timeout_seconds or self._timeout_seconds)
        replica = self._choose(model)
        try:
            return await self._ask_one(replica, model, ask, ends)
        except EngineError as error:
            second = self._second(replica, model, error)
            if second is None:
                raise
        return await self._ask_one(second, model, ask, ends)

    async def _ask_one(
        self,
        replica: Replica,
        model: str | None,
        ask: Callable[[EngineClient, float], Awaitable[T]],
        ends: float,
    ) -> T:
        try:
            with replica.call(model):
                answer = await ask(replica.engine, _left(ends))
        except EngineError as error:
            self._note(replica, model, error)
            raise
        replica.breaker.succeeded()
        return answer

    def _choose(self, model: str | None, not_this: Replica | None = None) -> Replica:
        """Raises EngineRefused (404) when none holds the model, EngineAbsent when none of
        those that do takes calls."""
        if model is not None:
            check_adapter_name(model)
        able = [r for r in self.replicas if model is None or model in r.holds]
        for replica in sorted(able, key=lambda r: r.rank(model)):
            if replica is not not_this and replica.breaker.allow():
                return replica
        raise self._nobody(model)

    def _second(self, first: Replica, model: str | None, error: EngineError) -> Replica | None:
        """Who is asked after ``first`` failed; None: nobody."""
        if not worth_another(model, error):
            return None
        try:
            return self._choose(model, first)
        except EngineError:
            return None

    def _note(self, replica: Replica, model: str | None, error: EngineError) -> None:
        was_sure = replica.sure
        replica.failed(model, error)
        if was_sure and not replica.sure:
            logger.warning("%s may have lost its adapters: %s", replica.engine.url, error)
            self.lost()

    def _nobody(self, model: str | None) -> EngineError:
        if model is not None and model not in self.ready:
            return EngineRefused(f"no replica holds {model}", status=404)
        return EngineAbsent("no replica takes calls now: all of them failed lately")

    async def _each(
        self, work: Callable[[Replica], Awaitable[T]], replicas: Sequence[Replica]
    ) -> dict[Replica, T]:
        """What the replicas say. Raises, a refusal before all, only when none says anything."""
        results = await asyncio.gather(*map(work, replicas), return_exceptions=True)
        said: dict[Replica, T] = {}
        errors: list[EngineError] = []
        for replica, result in zip(replicas, results, strict=True):
            if isinstance(result, EngineError):
                errors.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                said[replica] = result
        if not said:
            raise min(errors, key=lambda error: not isinstance(error, EngineRefused))
        return said


def _left(ends: float) -> float:
    """Seconds until then. Raises EngineTimeout when that has passed."""
    left = ends - time.monotonic()
    if left <= 0:
        raise EngineTimeout("no time is left to ask another replica")
    return left
