"""Make an engine hold exactly the adapters that the routes need, after any restart of either.

An engine forgets its adapters when it restarts, so holding them is a goal to return to, not an
event that happened once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.engines.protocol import Engine, EngineError, EngineRefused

OWNED = re.compile(r"^[a-z0-9][a-z0-9-]{0,40}@[0-9a-f]{16}$")
"""Names that Night School gives (``task@digest``). Whatever else an engine holds is not ours."""

FULL = 409
"""HTTP status of an engine that holds as many adapters as it may."""

UNFIT = frozenset({400, 413, 422})
"""HTTP statuses to an adapter that is wrong in itself; others are about keys, paths or room."""


@dataclass(frozen=True)
class Difference:
    """What to do, each in sorted order."""

    load: tuple[str, ...]
    unload: tuple[str, ...]
    keep: tuple[str, ...]


@dataclass
class Reconciliation:
    """What one pass did."""

    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Adapter name to reason. The others are not affected; the next pass tries again."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Those of ``failed`` that the engine would not load for what they are."""

    @property
    def ready(self) -> frozenset[str]:
        """Desired adapters that may get traffic: loaded and probed."""
        return frozenset(self.loaded) | frozenset(self.kept)


def difference(
    desired: Iterable[str], loaded: Iterable[str], spare: Collection[str] = ()
) -> Difference:
    """What separates the engine from what is desired.

    Args:
        desired: adapter names that routes need.
        loaded: adapter names that the engine holds.
        spare: names to leave where they are (an adapter that is just being judged).
    """
    wanted, there = set(desired), set(loaded)
    extra = {name for name in there - wanted - set(spare) if OWNED.fullmatch(name)}
    return Difference(
        load=tuple(sorted(wanted - there)),
        unload=tuple(sorted(extra)),
        keep=tuple(sorted(wanted & there)),
    )


async def reconcile(
    engine: Engine,
    desired: Mapping[str, Path],
    *,
    spare: Collection[str] = (),
    concurrency: int = 2,
) -> Reconciliation:
    """Load and probe what is missing, then unload what is extra (the engine drains it first).

    An adapter that fails its probe is unloaded again, so what is loaded has always answered. When
    the engine is full, what did not fit is tried once more after the unloading.

    Args:
        engine: the engine.
        desired: adapter name to its local folder.
        spare: names to leave where they are.
        concurrency: adapters worked on at the same time.

    Raises:
        EngineError: the engine could not even list what it holds.
    """
    plan = difference(desired, await engine.loaded(), spare)
    report = Reconciliation(kept=list(plan.keep))
    full: list[str] = []

    async def load(name: str) -> None:
        try:
            await engine.ensure_loaded(name, desired[name])
        except EngineError as error:
            if error.status == FULL:
                full.append(name)
            elif isinstance(error, EngineRefused) and error.status in UNFIT:
                report.unfit[name] = str(error)
            report.failed[name] = str(error)
            return
        try:
            await engine.probe(name)
        except EngineError as error:
            report.failed[name] = f"probe failed: {error}"
            await _quietly_unload(engine, name)
            return
        report.failed.pop(name, None)
        report.loaded.append(name)

    async def unload(name: str) -> None:
        try:
            await engine.ensure_unloaded(name)
        except EngineError as error:
            report.failed[name] = str(error)
        else:
            report.unloaded.append(name)

    await _each(plan.load, load, concurrency)
    await _each(plan.unload, unload, concurrency)
    if full and report.unloaded:
        await _each(tuple(full), load, concurrency)
    for names in (report.loaded, report.unloaded):
        names.sort()
    return report


async def _quietly_unload(engine: Engine, name: str) -> None:
    try:
        await engine.ensure_unloaded(name)
    except EngineError:
        # The probe's failure is what gets reported; the next pass finds the adapter and keeps it
        # only if it is still wanted.
        return


async def _each(
    names: Collection[str], work: Callable[[str], Awaitable[None]], concurrency: int
) -> None:
    gate = asyncio.Semaphore(concurrency)

    async def one(name: str) -> None:
        async with gate:
            await work(name)

    await asyncio.gather(*(one(name) for name in names))
