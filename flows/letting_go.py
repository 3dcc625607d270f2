"""An adapter that was loaded to be asked is unloaded again, unless callers are to get its answers."""

from __future__ import annotations

import asyncio
import logging

from flows.wiring import Context
from infra.calls.record import utc_now
from serving.engines.protocol import Engine, EngineError
from serving.registry.retention.inventory import read_inventory

logger = logging.getLogger(__name__)


async def let_go(context: Context, engine: Engine, task_id: str, name: str) -> None:
    """Unload ``name``, if no route names it or did lately and no open rollout brings it in.

    The judgement stands whether or not the engine lets go; the gateways clear up later.
    """
    if await asyncio.to_thread(_in_use, context, task_id, name):
        return
    try:
        await engine.ensure_unloaded(name)
    except EngineError as error:
        logger.warning("%s was judged but not unloaded: %s", name, error)


def _in_use(context: Context, task_id: str, name: str) -> bool:
    with context.database.read() as connection:
        found = read_inventory(connection, utc_now(), task_id=task_id)
    return name in {*found.routed, *found.rolling, *found.draining}
