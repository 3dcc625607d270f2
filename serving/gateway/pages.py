"""What the gateway itself knows and shows: its models, its health, its figures, its API's description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from infra.settings.model import Settings
from serving.gateway.clients import release
from serving.gateway.holdings import Holdings
from serving.gateway.keys import Caller, require_role
from serving.gateway.metrics import CONTENT_TYPE, Metrics
from serving.gateway.openapi import document
from serving.gateway.refresh import RouteTable
from serving.gateway.routes import TaskRoute
from serving.gateway.routing import MODEL_PREFIX


class Pages:
    """Handlers without a call of the model. ``guard`` in the settings decides who sees the figures.

    Args:
        draining: whether the gateway is about to end.
        waiting: records that are not shipped yet.
    """

    def __init__(
        self,
        settings: Settings,
        table: RouteTable,
        holdings: Holdings,
        metrics: Metrics,
        *,
        draining: Callable[[], bool],
        waiting: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._table = table
        self._holdings = holdings
        self._metrics = metrics
        self._draining = draining
        self._waiting = waiting
        self._document = orjson.dumps(document(release()), option=orjson.OPT_INDENT_2)

    def models(self, caller: Caller) -> web.Response:
        """``GET /v1/models``: the teacher and the caller's own tasks."""
        data = [_model(self._settings.teacher.model, "teacher")]
        data += [_described(task) for task in self._tasks(caller)]
        return web.json_response({"object": "list", "data": data})

    def model(self, name: str, caller: Caller) -> web.Response | None:
        """``GET /v1/models/<name>`` where the name is ours and may be known to the caller."""
        if name == self._settings.teacher.model:
            return web.json_response(_model(name, "teacher"))
        for task in self._tasks(caller):
            if name in (task.id, MODEL_PREFIX + task.id):
                return web.json_response(_described(task) | {"id": name})
        return None

    async def healthz(self, _: web.Request) -> web.Response:
        """Whether the process lives: a liveness probe that fails restarts it."""
        return web.json_response({"status": "ok"})

    def readyz(self, caller: Caller | None) -> web.Response:
        """Whether callers may be sent here: 503 while draining, and when callers need keys and no
        routes were ever read. With teacher, registry or store down it stays 200, because another
        gateway would be no better off.

        Args:
            caller: who asks; None where nobody is asked for a key.
        """
        table = self._table
        unknown = not table.known and self._settings.gateway.require_key
        age = table.current.age_seconds()
        body: dict[str, Any] = {
            "ready": not (self._draining() or unknown),
            "draining": self._draining(),
        }
        if caller is None or caller.may("operate"):
            body |= {
                "routes": len(table.current.tasks),
                "routes_age_seconds": None if age is None else round(age, 3),
                "registry_reachable": not table.failing,
                "adapters_ready": sorted(self._holdings.ready),
                "records_waiting": self._waiting(),
            }
        return web.json_response(body, status=200 if body["ready"] else 503)

    def metrics(self, caller: Caller | None) -> web.Response:
        """Raises GatewayError 401 or 403 where only operators may see them."""
        if caller is not None:
            require_role(caller, "operate", "/metrics")
        return web.Response(body=self._metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    def _tasks(self, caller: Caller) -> list[TaskRoute]:
        return [task for task in self._table.current.tasks if task.tenant in (None, caller.tenant)]


def _described(task: TaskRoute) -> dict[str, Any]:
    champion = task.champion.name if task.champion and task.adapters() else "teacher"
    return {**_model(task.id, "nightschool"), "champion": champion}


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
