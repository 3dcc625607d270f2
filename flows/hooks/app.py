"""The receiver of signed webhooks, and a window on the reports.

``POST /hooks/retrain`` and ``POST /hooks/rollback`` are signed by the Standard Webhooks scheme. An
accepted message is first kept in the database, then done; with Prefect down it stays kept and is
done when Prefect is back. The message id makes it happen once, however often it is sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mimetypes
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from flows.hooks.receipts import Receipt, Receipts
from flows.orchestrator import Orchestrator, OrchestratorDown, OrchestratorRefused
from infra.objects.store import ObjectMissing, ObjectStore, ObjectStoreError
from infra.settings.operating import Hooks

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
MAX_MESSAGE_ID = 200
HOOKS = frozenset({"retrain", "rollback"})


class Refused(Exception):
    """A message that is not taken: the HTTP status and the reason the sender is told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def verified_sender(settings: Hooks, headers: Mapping[str, str], body: bytes) -> str:
    """The sender whose secret signed the message.

    Raises:
        Refused: no known secret fits, or the timestamp is outside the scheme's five minutes.
    """
    for sender, secret in settings.secrets.items():
        try:
            Webhook(secret.get_secret_value()).verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError):
            continue
        return sender
    raise Refused(
        401, "no known secret signed this message, or its timestamp is over 5 minutes off"
    )


def parsed_body(hook: str, body: bytes) -> dict[str, Any]:
    """The message as parameters of a flow run. Raises Refused for what is not understood."""
    try:
        value = json.loads(body)
    except ValueError:
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, 'the body must be a JSON object such as {"task": "..."}')
    unknown = set(value) - {"task", "reason"}
    if unknown:
        raise Refused(400, f"unknown fields: {', '.join(sorted(unknown))[:200]}")
    task, reason = value.get("task"), value.get("reason", "asked for by webhook")
    if not isinstance(reason, str) or len(reason) > 500:
        raise Refused(400, "reason must be text of at most 500 characters")
    if task is not None and not (isinstance(task, str) and 0 < len(task) <= 64):
        raise Refused(400, "task must be the id of a task")
    if hook == "rollback" and task is None:
        raise Refused(400, "a rollback needs the id of a task")
    return {"task": task, "reason": reason}


class HookServer:
    """The aiohttp application and its background retry of kept messages."""

    def __init__(
        self,
        settings: Hooks,
        receipts: Receipts,
        store: ObjectStore,
        orchestrator: Orchestrator,
        ui_url: str,
    ) -> None:
        self._settings = settings
        self._receipts = receipts
        self._store = store
        self._orchestrator = orchestrator
        self._ui_url = ui_url

    def application(self) -> web.Application:
        app = web.Application(client_max_size=self._settings.max_body_bytes)
        app.router.add_get("/healthz", self._health)
        app.router.add_post("/hooks/{hook}", self._receive)
        app.router.add_get("/reports/{key:.+}", self._report)
        app.cleanup_ctx.append(self._background)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _receive(self, request: web.Request) -> web.Response:
        hook = request.match_info["hook"]
        try:
            if hook not in HOOKS:
                raise Refused(404, f"no hook {hook!r}: there are {', '.join(sorted(HOOKS))}")
            body = await request.read()
            sender = verified_sender(self._settings, request.headers, body)
            parameters = parsed_body(hook, body)
            message_id = request.headers["webhook-id"]
            if len(message_id) > MAX_MESSAGE_ID:
                raise Refused(400, f"webhook-id is longer than {MAX_MESSAGE_ID} characters")
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)
        receipt = await asyncio.to_thread(self._receipts.take, sender, message_id, hook, parameters)
        if receipt.state == "kept":
            receipt = await asyncio.to_thread(self._carry_out, receipt)
        status = 422 if receipt.state == "failed" else 202
        answer = receipt.to_dict()
        if receipt.flow_run_id:
            answer["status_url"] = f"{self._ui_url}/runs/flow-run/{receipt.flow_run_id}"
        return web.json_response(answer, status=status)

    def _carry_out(self, receipt: Receipt) -> Receipt:
        """Start the flow run; the message id is its idempotency key, so a repeat is harmless."""
        key = f"{receipt.sender}:{receipt.message_id}"
        try:
            run = self._orchestrator.start(receipt.hook, receipt.body, idempotency_key=key)
        except OrchestratorDown as error:
            logger.warning("kept %s %s until Prefect is back: %s", receipt.hook, key, error)
        except OrchestratorRefused as error:
            self._receipts.settle(receipt, "failed", str(error))
        else:
            self._receipts.settle(receipt, "started", "", run.id)
        settled = self._receipts.find(receipt.sender, receipt.message_id)
        assert settled is not None
        return settled

    async def _background(self, _: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._retry_kept())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _retry_kept(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                for receipt in await asyncio.to_thread(self._receipts.kept):
                    await asyncio.to_thread(self._carry_out, receipt)
            except Exception:
                # The loop must outlive a database that is away for a while.
                logger.exception("kept webhooks could not be retried")

    async def _report(self, request: web.Request) -> web.StreamResponse:
        key = f"reports/{request.match_info['key']}"
        try:
            data = await asyncio.to_thread(self._store.get, key)
        except (ObjectMissing, ValueError):
            return web.json_response({"error": "no such report"}, status=404)
        except ObjectStoreError:
            return web.json_response({"error": "the object store does not answer"}, status=503)
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
        return web.Response(body=data, content_type=kind)
