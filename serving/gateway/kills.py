"""Tells the registry what the kill switch did, as soon as the registry can be told."""

from __future__ import annotations

import logging
from collections.abc import Callable

from infra.database.open import Database
from serving.gateway.guard import KillSwitch
from serving.registry.errors import UnknownTask
from serving.registry.registry import Registry

logger = logging.getLogger(__name__)

ACTOR = "gateway-kill-switch"


def deliver(
    switch: KillSwitch, open_database: Callable[[], Database], channels: tuple[str, ...] = ()
) -> int:
    """Ask for a rollback for each kill that the registry does not know of; how many were taken.

    Safe to repeat and to run in several gateways at once: the adapter is taken off once. Raises
    whatever the database raises; the kills then wait for the next time.
    """
    waiting = switch.undelivered()
    if not waiting:
        return 0
    # A gateway without a kill to tell of does not need the control plane's code.
    from serving.rollout.controller import request_rollback

    registry = Registry(open_database())
    for kill in waiting:
        try:
            request_rollback(
                registry, kill.task_id, kill.adapter, kill.reason, ACTOR, channels=channels
            )
        except UnknownTask:
            logger.warning("task %s is gone; its kill has nothing to stop", kill.task_id)
        switch.delivered(kill.rollout_id)
    return len(waiting)
