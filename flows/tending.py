"""Tend open rollouts: read the evidence, let the sequential test decide, let the controller act."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from evaluators.evidence import EvidencePolicy, judge_canary, judge_shadow
from flows.evidence_log import EvidenceLog
from flows.wiring import Context
from infra.calls.record import utc_now
from infra.notify.outbox import deliver
from serving.engines.protocol import EngineError
from serving.registry.records import TEACHER, Rollout
from serving.rollout.controller import tend
from serving.rollout.machine import Observation

logger = logging.getLogger(__name__)

ACTOR = "rollout-controller"


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

    def look(self) -> Tended:
        """Read what is new, decide every open rollout once, deliver the messages that this made.

        Raises ObjectStoreError, and the database's errors: then nothing is decided, and the
        gateway's dead man's timer takes the canaries out by itself.
        """
        context = self._context
        rollouts = context.registry.rollouts("open")
        moved: list[Rollout] = []
        if rollouts:
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
        deliver(
            context.database,
            context.channels,
            max_attempts=context.settings.notify.max_attempts,
        )
        return Tended(len(rollouts), tuple(moved))

    def observe(self, rollout: Rollout, loaded: bool) -> Observation:
        """What the log says of a rollout, as the state machine wants to know it."""
        now = self._clock()
        terms = rollout.policy
        policy = EvidencePolicy(
            terms.margin, terms.alpha_bad, terms.alpha_good, terms.maturity_seconds
        )
        calls = self._log.calls(rollout.id)
        champion = rollout.champion or TEACHER
        shadow = judge_shadow(
            calls,
            rollout=rollout.id,
            candidate=rollout.adapter,
            policy=policy,
            now=now,
            champion_is_teacher=champion == TEACHER,
        )
        decision = judge_canary(
            calls,
            self._log.feedback(),
            rollout=rollout.id,
            champion=champion,
            policy=policy,
            now=now,
            candidate=rollout.adapter,
        )
        since = rollout.step_route_version or 0
        return Observation(
            loaded=loaded,
            verdict=decision.verdict,
            labels=decision.labelled,
            shadow_verdict=shadow.verdict,
            shadow_pairs=shadow.pairs,
            step_sessions=sum(
                count
                for epoch, count in decision.canary_by_epoch.items()
                if epoch.isdigit() and int(epoch) >= since
            ),
            canary_sessions=decision.canary_sessions,
            evidence={"canary": decision.to_dict(), "shadow": shadow.to_dict()},
        )

    async def _loaded(self) -> frozenset[str]:
        """Adapters that the engine lists and that answer a probe; none when it does not answer."""
        wanted = {rollout.adapter for rollout in self._context.registry.rollouts("open")}
        ready: set[str] = set()
        async with self._context.engine() as engine:
            try:
                for name in wanted & set(await engine.loaded()):
                    await engine.probe(name)
                    ready.add(name)
            except EngineError as error:
                logger.warning("the engine does not answer for every candidate: %s", error)
        return frozenset(ready)
