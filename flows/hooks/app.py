"""The receiver of signed webhooks, and a window on the reports: HTTP only.

An accepted message is kept in the database first and done then; with Prefect down it stays kept and is
done when Prefect is back, or given up after ``keep_seconds``. Its id makes it happen once, however often
it is sent. Instead of a signature an API key will do: of the role call for feedback, operate or admin
for everything.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import mimetypes
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args
from urllib.parse import quote

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from flows.hooks.carrying import TICK_SECONDS, Carrier
from flows.hooks.messages import Wish, wish
from flows.hooks.openapi import document
from flows.hooks.receipts import Conflicting, Receipt, Receipts
from flows.hooks.secrets import LiveSecrets, SecretError, SenderSecrets
from flows.hooks.senders import MAX_MESSAGE_ID, Refused, Signed, identify
from flows.orchestrator import OrchestratorDown, OrchestratorRefused
from flows.stack.services import prefect_ui_url
from flows.wiring import Context
from infra.anonymize.anonymizer import Anonymizer
from infra.calls.record import new_id
from infra.database.open import DatabaseError
from infra.database.patience import answers_within
from infra.objects.store import ObjectMissing, ObjectStoreError
from infra.settings.operating import HookName, HookSender
from infra.signed_links import LinkInvalid, LinkSigner
from infra.signing_keys import signing_keys
from serving.gateway.feedback import CallIndex, read_feedback, without_session
from serving.gateway.keys import RANK, bearer
from serving.gateway.problems import GatewayError
from serving.gateway.rate_limits import Bucket
from serving.registry.errors import UnknownTask
from serving.registry.keys import ApiKey, find_key

logger = logging.getLogger(__name__)

HOOKS = get_args(HookName)
NEEDS = {"feedback": "call"}
"""The role that an API key needs; operate for the others."""
REPORT_LINK = "report"
BODY_SECONDS = 10.0
START_SECONDS = 3.0
"""So long an answer waits for its flow run; it goes on without."""
DATABASE_SECONDS = 10.0
THREADS = 8
MAX_SENDERS = 10_000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _may(key: ApiKey, needed: str) -> bool:
    return RANK.get(key.role, 0) >= RANK[needed]


class HookServer:
    """The aiohttp application and its background work.

    Raises SigningKeyError: there is no usable key for links and sealed secrets.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings.hooks
        keys = signing_keys(self._settings)
        self._links = LinkSigner(keys)
        self._secrets = LiveSecrets(self._settings, SenderSecrets(context.database, keys))
        self._receipts = Receipts(context.database)
        self.carrier = Carrier(
            self._settings, self._receipts, context.store, context.orchestrator()
        )
        self._anonymizer = Anonymizer(context.settings.anonymizer)
        self._buckets: dict[str, Bucket] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hooks")
        self._starting = asyncio.Semaphore(THREADS // 2)
        self._watched = watched_places(context)

    def application(self) -> web.Application:
        app = web.Application(
            client_max_size=self._settings.max_body_bytes, middlewares=[_answer_errors]
        )
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_post("/hooks/{hook}", self._receive)
        app.router.add_get("/hooks/status/{id}", self._status)
        app.router.add_get("/reports/{key:.+}", self._report)
        app.cleanup_ctx.append(self._background)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(document())

    async def _receive(self, request: web.Request) -> web.Response:
        hook = request.match_info["hook"]
        if hook not in HOOKS:
            raise Refused(404, f"no hook of that name: there are {', '.join(HOOKS)}")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            most = self._settings.max_body_bytes
            raise Refused(
                413, f"the body is larger than {most} bytes (hooks.max_body_bytes)"
            ) from None
        except TimeoutError:
            raise Refused(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
        signed, how = await self._who(request, body, hook)
        self._charge(signed.sender, how)
        if self.carrier.waiting >= self._settings.max_kept:
            raise Refused(503, "too many messages wait to be done", 30)
        asked = wish(hook, how, request.headers, body, self._watched)
        digest = hashlib.sha256(body).hexdigest()
        receipt, new = await self._run(self._keep, signed, hook, asked, how.tenant, digest)
        silent = False
        if receipt.state == "kept" and hook in ("retrain", "rollback"):
            receipt, silent = await self._start(receipt)
        answer = {
            **receipt.to_dict(),
            "status_url": self._status_url(receipt),
            "duplicate": not new,
        }
        silent = silent or self.carrier.prefect_is_down
        if receipt.state == "kept" and hook != "feedback" and silent:
            answer["detail"] = "Prefect does not answer: this is kept, and started when it is back"
        return web.json_response(answer, status=422 if receipt.state == "failed" else 202)

    async def _who(self, request: web.Request, body: bytes, hook: str) -> tuple[Signed, HookSender]:
        """Who sends, by signature or key, and may ask for this. Raises Refused 401, 403."""
        key = await self._key(request)
        if key is not None:
            needed = NEEDS.get(hook, "operate")
            if not _may(key, needed):
                raise Refused(403, f"this needs a key of the role {needed}, not {key.role}")
            given = request.headers.get("webhook-id") or request.headers.get("idempotency-key")
            if given is not None and len(given) > MAX_MESSAGE_ID:
                raise Refused(400, f"webhook-id is longer than {MAX_MESSAGE_ID} characters")
            how = HookSender(tenant=key.tenant, requests_per_minute=key.requests_per_minute)
            return Signed(f"key:{key.id}", given or new_id()), how
        signed = await self._signed(request, body)
        how = self._settings.sender(signed.sender)
        if hook not in how.hooks:
            raise Refused(403, f"the sender {signed.sender} may not ask for {hook}")
        return signed, how

    async def _key(self, request: web.Request) -> ApiKey | None:
        """The API key that was sent; None without one. Raises Refused 401 for one that is not known."""
        given = bearer(request.headers)
        if given is None:
            return None
        found = await self._run(find_key, self._context.database, given[:500])
        if found is None:
            raise Refused(401, "this API key is not known, revoked or over")
        return found

    async def _signed(self, request: web.Request, body: bytes) -> Signed:
        if not self._secrets.fresh:
            await self._run(self._secrets.read)
        return identify(
            self._settings.senders,
            self._secrets.known(),
            request.headers,
            body,
            time.time(),
            named=request.query.get("sender"),
        )

    def _charge(self, sender: str, how: HookSender) -> None:
        per_minute = how.requests_per_minute or self._settings.requests_per_minute
        now = time.monotonic()
        bucket = self._buckets.get(sender)
        if bucket is None or bucket.per_minute != per_minute:
            if len(self._buckets) >= MAX_SENDERS:
                self._buckets.clear()
            bucket = self._buckets[sender] = Bucket(per_minute, now)
        if bucket.level(now) < 1:
            wait = max(1, math.ceil(bucket.seconds_until(1)))
            raise Refused(429, f"more than {per_minute} messages a minute of {sender}", wait)
        bucket.take(1)

    def _keep(
        self, signed: Signed, hook: str, asked: Wish, tenant: str, digest: str
    ) -> tuple[Receipt, bool]:
        body = asked.body
        if asked.ignored:
            body = {}
        elif hook == "feedback":
            # Before anything is stored.
            record, _ = read_feedback(body, tenant, CallIndex(0))
            body = without_session(record, self._anonymizer).model_dump(mode="json")
        elif hook != "objects":
            if body["task"] is not None:
                self._context.registry.task(body["task"])
            body = {**body, "asked_by": f"webhook:{signed.sender}"}
        return self._receipts.take(
            signed.sender,
            signed.message_id,
            hook,
            body,
            digest=digest,
            state="ignored" if asked.ignored else "kept",
            detail=asked.ignored,
        )

    async def _start(self, receipt: Receipt) -> tuple[Receipt, bool]:
        """Start its flow run now if that is quickly done; else the background does.

        Also whether Prefect was asked and did not answer: it may hang without counting as down.
        """
        if self.carrier.prefect_is_down or self._starting.locked():
            return receipt, False
        async with self._starting:
            try:
                async with asyncio.timeout(START_SECONDS):
                    await self._run(self.carrier.start, receipt)
            except (OrchestratorDown, TimeoutError):
                return receipt, True
        found = await self._run(self._receipts.find, receipt.sender, receipt.message_id)
        return found or receipt, False

    def _status_url(self, receipt: Receipt) -> str:
        message_id, sender = quote(receipt.message_id, safe=""), quote(receipt.sender, safe="")
        return f"{self._settings.address}/hooks/status/{message_id}?sender={sender}"

    async def _status(self, request: web.Request) -> web.Response:
        """For the sender, who signs the message's id as the body; or for a key of operate or admin."""
        message_id, sender = request.match_info["id"], request.query.get("sender")
        key = await self._key(request)
        if key is None:
            signed = await self._signed(request, message_id.encode())
            sender = signed.sender
        elif not _may(key, "operate"):
            sender = f"key:{key.id}"  # its own only
        if sender is None:
            found = await self._run(self._receipts.named, message_id)
            if len(found) > 1:
                raise Refused(409, "several senders used this id: add ?sender=")
        else:
            one = await self._run(self._receipts.find, sender, message_id)
            found = [one] if one else []
        if not found:
            raise Refused(404, "no message of that id came from there")
        answer = found[0].to_dict()
        if found[0].flow_run_id:
            answer |= await self._run(self._of_run, found[0].flow_run_id)
        return web.json_response(answer)

    def _of_run(self, run_id: str) -> dict[str, Any]:
        told = {"run_url": f"{prefect_ui_url(self._context.settings)}/runs/flow-run/{run_id}"}
        try:
            return {**told, "run_state": self._context.orchestrator().run(run_id).state}
        except (OrchestratorDown, OrchestratorRefused):
            return {**told, "run_state": None}

    async def _report(self, request: web.Request) -> web.StreamResponse:
        """For whoever has a link to this report, or a key of operate or admin."""
        key = f"reports/{request.match_info['key']}"
        link = request.query.get("link")
        if link is not None:
            try:
                if self._links.check(REPORT_LINK, link).subject != key:
                    raise LinkInvalid("this link is to another report")
            except LinkInvalid as error:
                raise Refused(403, str(error)) from None
        else:
            found = await self._key(request)
            if found is None:
                raise Refused(401, "a report needs its link, or a key of the role operate")
            if not _may(found, "operate"):
                raise Refused(403, f"this needs a key of the role operate, not {found.role}")
        try:
            data = await self._run(self._context.store.get, key)
        except (ObjectMissing, ValueError):
            raise Refused(404, "no such report") from None
        except ObjectStoreError:
            raise Refused(503, "the object store does not answer", 5) from None
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
        return web.Response(body=data, content_type=kind, headers=_REPORT_HEADERS)

    async def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """In a thread; a database that neither answers nor closes costs the sender a 503, not for ever."""

        def patient() -> Any:
            with answers_within(DATABASE_SECONDS):
                return call(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._threads, patient)

    async def _background(self, _: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._keep_carrying())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _keep_carrying(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.carrier.carry_out)
            except (SQLAlchemyError, DatabaseError) as error:
                logger.warning("kept webhooks wait for the database: %s", type(error).__name__)
            except Exception:
                # Whatever else it is, the next look must come.
                logger.exception("kept webhooks could not be carried out")
            await asyncio.sleep(TICK_SECONDS)


# A report shows what was said in calls: its scripts get no origin, and its address goes nowhere.
_REPORT_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "sandbox allow-scripts allow-popups",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=300",
}


def watched_places(context: Context) -> list[str]:
    """``bucket/prefix`` of our own logs and of every source, as far as they are in S3."""
    places = [f"{context.settings.storage.url.rstrip('/')}/logs/"]
    places += [source.location for source in context.settings.ingest.sources]
    return [place.removeprefix("s3://") for place in places if place.startswith("s3://")]


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as JSON; no text of a driver and no stack trace leaves."""
    try:
        return await handler(request)
    except Refused as refused:
        return _error(refused.status, str(refused), refused.retry_after_seconds)
    except GatewayError as error:
        return _error(error.status, str(error))
    except UnknownTask as error:
        return _error(404, str(error))
    except Conflicting as error:
        return _error(409, str(error))
    except web.HTTPException as error:
        return _error(error.status, error.reason)
    except (SQLAlchemyError, DatabaseError, SecretError) as error:
        told = str(error) if isinstance(error, SecretError) else type(error).__name__
        logger.warning("a webhook could not be taken: %s", told)
        return _error(503, "the message could not be kept: send it again", 5)


def _error(status: int, reason: str, retry_after_seconds: int | None = None) -> web.Response:
    headers = {"Retry-After": str(retry_after_seconds)} if retry_after_seconds else {}
    return web.json_response({"error": reason}, status=status, headers=headers)
