"""A rollout from the log's side: sessions that a gateway would have logged, and a tender with a clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from flows.tending import Tended, Tender
from flows.wiring import Context
from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord, Checks, OtherAnswer
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.registry.records import TEACHER, Rollout, Route
from serving.registry.registry import Registry
from serving.rollout.assignment import arm
from serving.rollout.policy import RolloutPolicy
from tests.serving.registry.world import NOW, add_adapter, add_task

TASK = "mail"
POLICY = RolloutPolicy(
    shadow_sessions=0, steps=(0.3, 0.5), step_sessions=10, maturity_seconds=60, margin=0.2
)


class StillTender(Tender):
    """With an engine that has everything loaded."""

    loaded = True

    async def _loaded(self) -> frozenset[str]:
        if not self.loaded:
            return frozenset()
        return frozenset(item.adapter for item in self._context.registry.rollouts("open"))


@dataclass
class World:
    context: Context
    now: datetime = NOW
    played: int = 0
    objects: int = 0
    tender: StillTender = field(init=False)

    def __post_init__(self) -> None:
        self.tender = StillTender(self.context, lambda: self.now)

    @property
    def registry(self) -> Registry:
        return self.context.registry

    @property
    def route(self) -> Route:
        return self.registry.route(TASK)

    def open(self, number: int = 1, policy: RolloutPolicy = POLICY) -> Rollout:
        adapter = add_adapter(self.registry, TASK, number)
        return self.registry.open_rollout(
            TASK, adapter.name, policy, actor="night", why="trained", now=self.now
        )

    def rollout(self) -> Rollout:
        return self.registry.rollouts()[-1]

    def look(self, seconds: float = 0) -> Tended:
        self.now += timedelta(seconds=seconds)
        return self.tender.look()

    def play(
        self,
        sessions: int,
        *,
        right: bool | None = True,
        error: bool = False,
        skew_seconds: float = 0,
        lost: str = "",
        writer: str = "gateway",
        shadow: bool = False,
        latency_seconds: float = 0.0,
        canary_seconds: float | None = None,
    ) -> None:
        """So many new sessions, one a second, through a gateway that has the present route.

        Args:
            right: what the teacher says of the canary's answers; None: it is not asked.
            error: the canary fails and the teacher answers in its place.
            skew_seconds: how far the gateway's clock is ahead.
            lost: the arm whose records never arrive.
            shadow: the candidate answers unseen beside the champion, and ``right``.
            latency_seconds: of every answer; ``canary_seconds``: of the canary's.
        """
        route = self.route
        records = []
        for _ in range(sessions):
            self.now += timedelta(seconds=1)
            self.played += 1
            session = f"session-{self.played}"
            side = arm(route.salt, session, route.weight) if route.stage == "canary" else None
            if side is not None and side == lost:
                continue
            if shadow and route.stage == "shadow":
                side = "champion"
            made = self._call(route, session, side, right, error, skew_seconds)
            seconds = canary_seconds if side == "canary" else latency_seconds
            others = list(made.other_answers)
            if shadow:
                said = {"role": "assistant", "content": "yes" if right else "no"}
                others.append(
                    OtherAnswer(
                        model="m",
                        adapter=route.candidate,
                        purpose="shadow",
                        message=said,
                        checks=Checks(parsed=True),
                    )
                )
            changes = {
                "latency_seconds": latency_seconds if seconds is None else seconds,
                "other_answers": others,
            }
            records.append(made.model_copy(update=changes))
        self.objects += 1
        if records:
            key = log_key(records[0].time, writer, self.objects)
            self.context.store.put(key, encode_lines(records))

    def _call(
        self,
        route: Route,
        session: str,
        side: object,
        right: bool | None,
        error: bool,
        skew_seconds: float,
    ) -> CallRecord:
        canary = side == "canary"
        others = []
        if canary and right is not None and not error:
            said = {"role": "assistant", "content": "yes" if right else "no"}
            others = [OtherAnswer(model="teacher", purpose="audit", message=said)]
        adapter = route.candidate if canary and not error else None
        if not canary and route.champion != TEACHER:
            adapter = route.champion
        return CallRecord(
            time=self.now + timedelta(seconds=skew_seconds),
            session=session,
            request={"messages": [{"role": "user", "content": f"is it {session}?"}]},
            response={"choices": [{"message": {"role": "assistant", "content": "yes"}}]},
            answered_by=AnsweredBy(
                model="m",
                adapter=adapter,
                arm=side,  # type: ignore[arg-type]
                rollout=route.rollout_id if side else None,
                route_version=route.version,
                escalation="checks:no text" if canary and error else None,
            ),
            checks=Checks(parsed=True),
            other_answers=others,
        )


@contextmanager
def world_of(settings: Settings, database: Database) -> Iterator[World]:
    add_task(database, TASK)
    store = open_store(settings.storage)
    yield World(Context(settings, store, database, Registry(database), {}, "test:1"))
