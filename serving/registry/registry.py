"""The registry: what was learned, how it was judged, who answers, and why. One database.

Every method is one transaction. What is read comes back as frozen values; what races is settled by
compare-and-swap, so a caller that lost gets an error that says so and nothing is half done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select

from infra.calls.record import utc_now
from infra.database.events import Event, list_events
from infra.database.tables import adapters, dataset_versions, routes
from infra.objects.store import ObjectStore
from serving.registry import catalogue, lineage, openings, task_rows
from serving.registry import routes as route_rows
from serving.registry.errors import RouteChanged
from serving.registry.records import (
    Adapter,
    AdapterState,
    AnswerLineage,
    DatasetLineage,
    DatasetVersion,
    Lineage,
    ObjectLineage,
    Rollout,
    Route,
    Scorecard,
)
from serving.registry.task_register import TaskRegister
from serving.rollout.machine import OPEN, State
from serving.rollout.policy import RolloutPolicy


class Registry(TaskRegister):
    """See the module. ``now`` is always optional and for callers with a clock of their own."""

    # Data sets, adapters, scorecards

    def record_dataset(
        self,
        *,
        digest: str,
        task_id: str,
        location: str,
        manifest: Mapping[str, Any],
        now: datetime | None = None,
    ) -> DatasetVersion:
        """Record a frozen data set; again with the same content returns what is recorded.

        Raises UnknownTask, DatasetConflict.
        """
        wanted = DatasetVersion(digest, task_id, location, dict(manifest), now or utc_now())
        with self.database.begin() as connection:
            return catalogue.insert_dataset(connection, wanted)

    def dataset(self, digest: str) -> DatasetVersion:
        """Raises UnknownDataset."""
        with self.database.read() as connection:
            return catalogue.read_dataset(connection, digest)

    def datasets(self, task_id: str) -> list[DatasetVersion]:
        """Oldest first."""
        query = (
            select(dataset_versions)
            .where(dataset_versions.c.task_id == task_id)
            .order_by(dataset_versions.c.created, dataset_versions.c.digest)
        )
        with self.database.read() as connection:
            return [DatasetVersion(**row._mapping) for row in connection.execute(query)]

    def register_adapter(
        self,
        *,
        name: str,
        task_id: str,
        digest: str,
        dataset_digest: str,
        spec_digest: str,
        location: str,
        manifest: Mapping[str, Any],
        threshold: float | None,
        actor: str = "night",
        why: str = "trained and judged",
        now: datetime | None = None,
    ) -> Adapter:
        """Register an adapter; the same again returns what is registered, whatever its state now.

        Raises UnknownTask, UnknownDataset, AdapterNameReused, and ValueError unless the name is
        ``task@`` and the first 16 characters of the digest.
        """
        wanted = Adapter(
            name=name,
            task_id=task_id,
            digest=digest,
            dataset_digest=dataset_digest,
            spec_digest=spec_digest,
            location=location,
            manifest=dict(manifest),
            threshold=threshold,
            state="registered",
            created=now or utc_now(),
        )
        with self.database.begin() as connection:
            return catalogue.insert_adapter(connection, wanted, actor=actor, why=why)

    def adapter(self, name: str) -> Adapter:
        """Raises UnknownAdapter."""
        with self.database.read() as connection:
            return catalogue.read_adapter(connection, name)

    def adapters(
        self, task_id: str | None = None, state: AdapterState | None = None
    ) -> list[Adapter]:
        """Oldest first."""
        query = select(adapters).order_by(adapters.c.created, adapters.c.name)
        if task_id is not None:
            query = query.where(adapters.c.task_id == task_id)
        if state is not None:
            query = query.where(adapters.c.state == state)
        with self.database.read() as connection:
            return [Adapter(**row._mapping) for row in connection.execute(query)]

    def set_adapter_state(
        self,
        name: str,
        state: AdapterState,
        *,
        actor: str,
        why: str,
        now: datetime | None = None,
    ) -> Adapter:
        """Raises UnknownAdapter, IllegalState (rejected is final), AdapterInUse."""
        with self.database.begin() as connection:
            return catalogue.change_adapter_state(
                connection, name, state, actor=actor, why=why, now=now or utc_now()
            )

    def record_scorecard(
        self,
        *,
        digest: str,
        adapter: str,
        dataset_digest: str,
        body: Mapping[str, Any],
        gate: Mapping[str, Any],
        now: datetime | None = None,
    ) -> Scorecard:
        """Keep how an adapter was judged; ``gate["verdict"]`` decides over its rollout.

        The same digest again returns what is recorded. Raises UnknownAdapter.
        """
        wanted = Scorecard(
            digest, adapter, dataset_digest, dict(body), dict(gate), now or utc_now()
        )
        with self.database.begin() as connection:
            return catalogue.insert_scorecard(connection, wanted)

    def scorecards(self, adapter: str) -> list[Scorecard]:
        """Newest first."""
        with self.database.read() as connection:
            return catalogue.read_scorecards(connection, adapter)

    # Routes

    def route(self, task_id: str) -> Route:
        """Version 0 (the teacher answers) when none was ever written. Raises UnknownTask."""
        with self.database.read() as connection:
            task_rows.read_task(connection, task_id)
            return route_rows.read_route(connection, task_id)

    def routes(self) -> list[Route]:
        """Every route that was ever written; a task without one is answered by the teacher."""
        with self.database.read() as connection:
            rows = connection.execute(select(routes).order_by(routes.c.task_id))
            return [Route(**row._mapping) for row in rows]

    def set_route(
        self,
        task_id: str,
        expected_version: int,
        fence: int | None,
        *,
        actor: str,
        why: str,
        evidence: Mapping[str, Any] | None = None,
        now: datetime | None = None,
        **changes: Any,
    ) -> Route:
        """Change a route by compare-and-swap, in one transaction with its event.

        Args:
            expected_version: the version that the decision was taken on.
            fence: token of the lease it was taken under; None for a person.
            changes: any of champion, candidate, rollout_id, stage, weight, salt.

        Raises:
            UnknownTask, RouteChanged, StaleFence, RouteInvalid.
        """
        with self.database.begin() as connection:
            task_rows.read_task(connection, task_id, lock=True)
            current = route_rows.read_route(connection, task_id)
            if current.version != expected_version:
                raise RouteChanged(
                    f"the route of {task_id} is at version {current.version}, "
                    f"not {expected_version}: read it again and decide again"
                )
            return route_rows.write_route(
                connection,
                current,
                changes,
                fence=fence,
                actor=actor,
                what="route.changed",
                why=why,
                evidence=evidence,
                now=now or utc_now(),
            )

    def past_champions(self, task_id: str) -> list[str]:
        """Who answered before the present champion, newest first, each once."""
        with self.database.read() as connection:
            return route_rows.past_champions(connection, task_id)

    # Rollouts

    def rollout(self, rollout_id: str) -> Rollout:
        """Raises UnknownRollout."""
        with self.database.read() as connection:
            return openings.read_rollout(connection, rollout_id)

    def rollouts(
        self,
        state: State | Literal["open"] | Iterable[State] | None = None,
        *,
        task_id: str | None = None,
        adapter: str | None = None,
    ) -> list[Rollout]:
        """Oldest first. ``open`` stands for pending, shadow and canary."""
        states: Iterable[State] | None
        if state == "open":
            states = OPEN
        elif isinstance(state, str):
            states = (state,)  # type: ignore[assignment]
        else:
            states = state
        with self.database.read() as connection:
            return openings.read_rollouts(
                connection, states=states, task_id=task_id, adapter=adapter
            )

    def open_rollout(
        self,
        task_id: str,
        adapter: str,
        policy: RolloutPolicy,
        *,
        actor: str,
        why: str,
        now: datetime | None = None,
        gate_override: str | None = None,
    ) -> Rollout:
        """Begin to bring an adapter in: pending, exposed to nobody.

        An open rollout of the same adapter is returned as it is. One of another adapter is ended,
        or waited for (``policy.when_open``); no evidence passes from one to the other. Of several
        that wait only the newest stays.

        Args:
            gate_override: why an adapter without a passed gate goes on; kept with the rollout.

        Raises:
            UnknownTask, UnknownAdapter.
            RolloutRefused: no passed gate and no override; the digest was rejected or rolled back
                once; the task rests after its last rollout; the task is the teacher's.
        """
        with self.database.begin() as connection:
            return openings.open_rollout(
                connection,
                task_id,
                adapter,
                policy,
                actor=actor,
                why=why,
                now=now or utc_now(),
                gate_override=gate_override,
            )

    # What happened

    def events(self, subject: str | None = None, limit: int = 100) -> list[Event]:
        """Newest first."""
        with self.database.read() as connection:
            return list(list_events(connection, subject=subject, limit=limit, newest_first=True))

    def history(self, task_id: str, limit: int = 1000) -> list[Event]:
        """Events of a task, its adapters and its rollouts, newest first. Raises UnknownTask."""
        with self.database.read() as connection:
            task_rows.read_task(connection, task_id)
            return lineage.find_events(connection, task=task_id, limit=limit)

    def lineage(self, adapter: str) -> Lineage:
        """Adapter, data set, source objects, base model, scorecards, rollouts. UnknownAdapter."""
        with self.database.read() as connection:
            return lineage.trace(connection, adapter)

    def dataset_lineage(self, digest: str) -> DatasetLineage:
        """A data set's source objects and adapters; a unique beginning will do. UnknownDataset."""
        with self.database.read() as connection:
            return lineage.trace_dataset(connection, digest)

    def object_lineage(self, key: str) -> ObjectLineage:
        """The data sets and adapters that learned from a log object. Raises UnknownObject."""
        with self.database.read() as connection:
            return lineage.trace_object(connection, key)

    def answer_lineage(
        self, store: ObjectStore, call_id: str, *, within_seconds: float = 60.0
    ) -> AnswerLineage:
        """Who gave an answer and what stands behind it, by the call's id.

        Raises CallNotFound, ObjectStoreError.
        """
        return lineage.trace_answer(self.database, store, call_id, within_seconds=within_seconds)
