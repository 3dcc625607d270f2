"""Tells the registry what the kill switch did, as soon as the registry can be told."""

from __future__ import annotations

import logging
from collections.abc import Callable

from infra.database.open import Database
from infra.database.patience import answers_within
from serving.gateway.guard import KillSwitch
from serving.registry.errors import RegistryError, UnknownTask
from serving.registry.registry import Registry

logger = logging.getLogger(__name__)

ACTOR = "gateway-kill-switch"
ANSWER_SECONDS = 10.0
"""Longest wait for PostgreSQL; another gateway may reach it where this one cannot."""


def deliver(
    switch: KillSwitch, open_database: Callable[[], Database], channels: tuple[str, ...] = ()
) -> int:
    """Ask for a rollback for each kill that the registry does not know of; how many were taken.

    Safe to repeat and to run in several gateways at once: the adapter is taken off once. A kill that
    the registry will not take now (somebody else writes that route) waits for the next time and keeps
    no other one waiting. Raises whatever the database raises; all kills then wait.
    """
    waiting = switch.undelivered()
    if not waiting:
        return 0
    # A gateway without a kill to tell of does not need the control plane's code.
    from serving.rollout.controller import request_rollback

    registry = Registry(open_database())
    taken = 0
    for kill in waiting:
        try:
            with answers_within(ANSWER_SECONDS):
                request_rollback(
                    registry, kill.task_id, kill.adapter, kill.reason, ACTOR, channels=channels
                )
        except UnknownTask:
            logger.warning("task %s is gone; its kill has nothing to stop", kill.task_id)
        except RegistryError as error:
            logger.warning("the kill of %s waits: %s", kill.adapter, error)
            continue
        switch.delivered(kill.rollout_id)
        taken += 1
    return taken
