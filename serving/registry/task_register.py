"""The registry's part about tasks: what they are, and what people say of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from infra.calls.record import utc_now
from infra.database.open import Database
from serving.registry import joining, task_rows
from serving.registry.records import ApprovalPolicy, Task
from serving.rollout.machine import TaskPolicy


class TaskRegister:
    """Every method is one transaction, and every change has its event."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def tasks(self, state: str | None = None) -> list[Task]:
        with self.database.read() as connection:
            return task_rows.read_tasks(connection, state)

    def task(self, task_id: str) -> Task:
        """Raises UnknownTask."""
        with self.database.read() as connection:
            return task_rows.read_task(connection, task_id)

    def set_task_policy(
        self,
        task_id: str,
        policy: TaskPolicy,
        *,
        actor: str,
        why: str,
        now: datetime | None = None,
    ) -> Task:
        """Say how far a task may go. Raises UnknownTask, ValueError for another policy."""
        if policy not in ("specialize", "shadow", "teacher"):
            raise ValueError(f"a task's policy is specialize, shadow or teacher, not {policy!r}")
        changes = {"policy": policy}
        return self._change_task(task_id, changes, "task.policy", actor, why, now)

    def set_task_approval(
        self,
        task_id: str,
        approval: ApprovalPolicy | None,
        *,
        actor: str,
        why: str,
        now: datetime | None = None,
    ) -> Task:
        """Whether a person agrees to the promotions of rollouts opened from now on; None: as set up.

        Raises UnknownTask, ValueError for another value.
        """
        if approval not in ("auto", "approve", None):
            raise ValueError(f"a task's approval is auto or approve, not {approval!r}")
        changes = {"approval": approval}
        return self._change_task(task_id, changes, "task.approval", actor, why, now)

    def _change_task(
        self,
        task_id: str,
        changes: dict[str, Any],
        what: str,
        actor: str,
        why: str,
        now: datetime | None,
    ) -> Task:
        with self.database.begin() as connection:
            current = task_rows.read_task(connection, task_id, lock=True)
            return task_rows.change_task(
                connection, current, changes, what=what, actor=actor, why=why, now=now or utc_now()
            )

    def merge_task(
        self, kept: str, gone: str, *, actor: str, why: str, now: datetime | None = None
    ) -> Task:
        """Make the calls of ``gone`` those of ``kept``; see ``joining``. Raises UnknownTask, CannotJoin."""
        with self.database.begin() as connection:
            return joining.join(connection, kept, gone, actor=actor, why=why, now=now or utc_now())

    def separate_task(
        self, gone: str, *, actor: str, why: str, now: datetime | None = None
    ) -> Task:
        """Take a merge back. Raises UnknownTask, CannotJoin."""
        with self.database.begin() as connection:
            return joining.separate(connection, gone, actor=actor, why=why, now=now or utc_now())

    def override_task(
        self,
        task_id: str,
        *,
        name: str | None = None,
        pinned: bool | None = None,
        actor: str,
        why: str,
        now: datetime | None = None,
    ) -> Task:
        """What a person says of a task, and no night takes back. Raises UnknownTask, ValueError.

        Args:
            name: 1 to 200 characters that can be printed.
            pinned: whether the task's place (centroid and radius) stays as it is.
        """
        with self.database.begin() as connection:
            return task_rows.override_task(
                connection, task_id, name=name, pinned=pinned, actor=actor, why=why, now=now
            )
