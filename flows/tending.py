"""Tend open rollouts: read the evidence, let the sequential test decide, let the controller act."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flows.evidence_log import EvidenceLog
from flows.exposure import weights_of
from flows.judged_evidence import JudgedEvidence
from flows.kept_evidence import keep, last_forgetting
from flows.observing import observe
from flows.wiring import Context
from infra.calls.record import CallRecord, utc_now
from infra.objects.store import ObjectStoreError
from serving.engines.protocol import EngineError
from serving.registry.records import Rollout
from serving.rollout.controller import tend
from serving.rollout.machine import Observation, next_step
from serving.rollout.states import state_of

logger = logging.getLogger(__name__)

ACTOR = "rollout-controller"
MAX_EVENTS = 1000
"""Of a task, newest first: more than a rollout's route is ever changed."""


@dataclass(frozen=True)
class Tended:
    """What one look did."""

    open: int
    moved: tuple[Rollout, ...]
    """Rollouts whose state or step changed."""


class Tender:
    """Looks after every open rollout; keeps what it has read of the log between two looks."""

    def __init__(self, context: Context, clock: Callable[[], datetime] = utc_now) -> None:
        self._context = context
        self._clock = clock
        self._log = EvidenceLog(context.store, context.settings.ingest.max_line_bytes)
        self._forgetting = 0
        """The last one before the log was read."""
        self._judged = JudgedEvidence(context, clock)

    def look(self) -> Tended:
        """Read what is new, decide every open rollout once, deliver the messages that this made.

        Raises ObjectStoreError, and the database's errors: then nothing is decided, and the
        gateway's dead man's timer takes the canaries out by itself.
        """
        context = self._context
        rollouts = context.registry.rollouts("open")
        moved: list[Rollout] = []
        if rollouts:
            self._forgetting = last_forgetting(context.database)
            self._log.look(min(rollout.created for rollout in rollouts))
            loaded = asyncio.run(self._loaded())
            for rollout in rollouts:
                after = tend(
                    context.registry,
                    rollout.id,
                    lambda seen: self.observe(seen, seen.adapter in loaded),
                    self._clock(),
                    ACTOR,
                    tuple(context.channels),
                )
                if (after.state, after.step) != (rollout.state, rollout.step):
                    moved.append(after)
        self._log.forget_all_but([rollout.id for rollout in rollouts])
        self._judged.forget_all_but([rollout.id for rollout in rollouts])
        context.deliver_messages()
        # No decision and no message waits for the judge: what it says counts at the next look.
        if self._judged.wanted and rollouts:
            still = context.registry.rollouts("open")
            calls = [(rollout, self._log.calls(rollout.id)) for rollout in still]
            self._judged.ask(calls, self._forgetting)
        return Tended(len(rollouts), tuple(moved))

    def observe(self, rollout: Rollout, loaded: bool) -> Observation:
        """What the log says of a rollout; with what it rests on kept, if a step will be taken."""
        now = self._clock()
        registry = self._context.registry
        calls = self._log.calls(rollout.id)
        feedback = [*self._log.feedback(), *self._judged.words(rollout.id)]
        weights = weights_of(rollout.id, registry.events(rollout.task_id, MAX_EVENTS))

        def view(records: Sequence[CallRecord]) -> Observation:
            return observe(
                rollout,
                records,
                feedback,
                now=now,
                weights=weights,
                step_route_version=rollout.step_route_version,
                loaded=loaded,
            )

        seen = view(calls)
        source: dict[str, Any] = {"now": now.isoformat()}
        state = state_of(rollout, "own", registry.task(rollout.task_id).policy)
        if next_step(state, seen, now) is not None:
            try:
                source |= keep(
                    self._context.store,
                    rollout.id,
                    calls,
                    feedback,
                    lambda light: view(light) == seen,
                )
                forgotten = last_forgetting(self._context.database) != self._forgetting
                if forgotten and "object" in source:
                    # Whoever forgets may have looked for evidence already, and this may hold theirs.
                    self._context.store.delete(source.pop("object"))
                    source["left_out"] = "somebody was forgotten meanwhile: replayed from the logs"
            except ObjectStoreError as error:
                # A rollback does not wait for its own explanation: the logs still hold it.
                logger.warning("the evidence of %s is not kept: %s", rollout.id, error)
                source["left_out"] = "the object store did not take it"
        return replace(seen, source=source)

    async def _loaded(self) -> frozenset[str]:
        """Adapters that the engine lists and that answer a probe; none when it does not answer."""
        wanted = {rollout.adapter for rollout in self._context.registry.rollouts("open")}
        ready: set[str] = set()
        async with self._context.engine(loads=False) as engine:
            try:
                for name in wanted & set(await engine.loaded()):
                    await engine.probe(name)
                    ready.add(name)
            except EngineError as error:
                logger.warning("the engine does not answer for every candidate: %s", error)
        return frozenset(ready)
