"""The gateway's parts put together, its HTTP routes, and its start and end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable

from aiohttp import web

from infra.anonymize.anonymizer import Anonymizer
from infra.anonymize.session_names import SessionNames
from infra.database.open import Database, open_database
from infra.notify.open import channel_names
from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.engines.open import open_engine
from serving.gateway import kills
from serving.gateway.answering import Answering
from serving.gateway.background import Background
from serving.gateway.call import Call
from serving.gateway.chat import Chat
from serving.gateway.clients import make_small_calls, make_teacher, open_tracing
from serving.gateway.feedback import CallIndex, anonymized, read_feedback
from serving.gateway.gauges import watch
from serving.gateway.guard import KillSwitch
from serving.gateway.holdings import Holdings
from serving.gateway.intake import parse_object, read_body
from serving.gateway.keys import Caller, identify
from serving.gateway.metrics import Metrics
from serving.gateway.open_paths import Permission
from serving.gateway.pages import Pages
from serving.gateway.passing import checked_path, pass_through
from serving.gateway.problems import (
    CallerGone,
    GatewayError,
    log_unavailable,
    overloaded,
)
from serving.gateway.rate_limits import Admission, RateLimits, is_text
from serving.gateway.recorder import RECORD_BYTES, Recorder
from serving.gateway.refresh import RouteTable
from serving.gateway.routes import Snapshot
from serving.gateway.shipper import Shipper
from serving.gateway.spool import Spool

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 20.0
SHIP_AT_END_SECONDS = 20.0
SERVER = "nightschool"
"""Instead of the names and versions of what it is made of."""
_ADMISSION = web.RequestKey("admission", Admission)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Everything one gateway process holds. Made inside the event loop that it serves from.

    Args:
        settings: the whole configuration.

    Raises:
        OSError: the spool folder cannot be used.
        ArtifactError: the engine is vLLM and its base model's files are not here.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        gateway = settings.gateway
        self.metrics = Metrics()
        self._database: Database | None = None
        self._database_lock = threading.Lock()
        self._store: ObjectStore | None = None
        self._loop = asyncio.get_running_loop()
        self._in_flight = 0
        self._draining = False
        self.anonymizer = Anonymizer(settings.anonymizer)
        self.spool = Spool(gateway.spool, gateway.spool_max_bytes)
        self.kills = KillSwitch(
            self.spool.folder / "kills.json",
            gateway.kill_error_burst,
            slow_burst=gateway.kill_slow_burst,
            champion_burst=gateway.kill_champion_burst,
        )
        self.table = RouteTable(
            self._open_database, gateway.snapshot, gateway.refresh_seconds, self._routes_changed
        )
        self.shipper = Shipper(
            self.spool,
            self._open_store,
            ship_seconds=gateway.ship_seconds,
            ship_bytes=gateway.ship_bytes,
            shipped=self._shipped,
        )
        self.tracing = open_tracing(settings)
        self.engine = open_engine(
            settings.engine,
            timeout_seconds=gateway.small_model_timeout_seconds,
            trace_headers=self.tracing.headers if self.tracing is not None else dict,
        )
        self.holdings = Holdings(
            self.engine,
            self._open_store,
            gateway.adapters,
            settings.engine.max_adapters,
            residence_seconds=settings.engine.residence_seconds,
            # Another gateway hears of a route within a refresh, and its calls have a limit.
            grace_seconds=gateway.small_model_timeout_seconds + 2 * gateway.refresh_seconds,
            max_bytes=gateway.adapters_max_bytes,
            unfit=self._cannot_load,
            loaded=lambda names: self.kills.loaded(names, self.table.current),
        )
        self.small = make_small_calls(self.engine, self.holdings, settings, self.tracing)
        self.teacher = make_teacher(settings, self.tracing)
        # A path that its server fails at says nothing about the chats that it can answer.
        self.passed = make_teacher(settings, self.tracing, beside=self.teacher)
        self.recorder = Recorder(
            self.spool,
            self.metrics,
            self.shipper.poke,
            fsync_seconds=gateway.fsync_seconds,
            unlogged=gateway.unlogged,
            log_wait_seconds=gateway.log_wait_seconds,
        )
        self.audits = Background(workers=8, waiting=256)
        # Few at a time: callers come before shadows at the engine.
        self.shadows = Background(workers=4, waiting=32)
        self.calls = CallIndex()
        self.answering = Answering(
            settings,
            snapshot=lambda: self.table.current,
            router=lambda: self.table.router,
            anonymizer=self.anonymizer,
            teacher=self.teacher,
            small=self.small,
            holdings=self.holdings,
            kills=self.kills,
            recorder=self.recorder,
            audits=self.audits,
            shadows=self.shadows,
            metrics=self.metrics,
        )
        key = settings.anonymizer.hash_key
        names = SessionNames(
            personal=self.anonymizer.personal,
            hash_key=key.get_secret_value().encode() if key else b"",
        )
        self.chat = Chat(self.answering, self.recorder, names, self.calls)
        self.limits = RateLimits(gateway.gateways)
        self._permission = Permission(settings)
        self.pages = Pages(
            settings,
            self.table,
            self.holdings,
            self.metrics,
            draining=lambda: self._draining,
            waiting=lambda: self.recorder.backlog + self.spool.count,
        )
        watch(self, in_flight=lambda: self.in_flight)

    def _cannot_load(self, name: str, reason: str) -> None:
        """An adapter was refused, by its check or by the engine; a candidate does not get for ever."""
        for task in self.table.current.tasks:
            named = task.candidate is not None and task.candidate.name == name
            if named and self.kills.cannot_load(task, reason) is not None:
                self.metrics.kills.labels(task.id).inc()

    def app(self) -> web.Application:
        """The aiohttp application; starting and stopping it starts and stops the gateway."""
        app = web.Application(client_max_size=self.settings.gateway.max_body_bytes)
        app.on_startup.append(self._start)
        app.on_shutdown.append(self._drain)
        app.on_cleanup.append(self._stop)
        app.on_response_prepare.append(self._tell)
        app.router.add_get("/healthz", self.pages.healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self.pages.openapi)
        app.router.add_get("/v1/models", self._guarded(self._models))
        app.router.add_get("/v1/models/{model:.+}", self._guarded(self._model))
        app.router.add_post("/v1/chat/completions", self._guarded(self._chat))
        app.router.add_post("/v1/feedback", self._guarded(self._feedback))
        app.router.add_route("*", "/v1/{path:.+}", self._guarded(self._pass_through))
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    # What callers ask

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        caller, admission = self._admitted(request)
        body = await self._body(request)
        if admission is not None:
            admission.weigh(len(body))  # a chat is text, whatever its head calls it
        elif self.tracing is None:
            return await self.chat.handle(request, body, caller)

        def done(call: Call) -> None:
            if admission is not None:
                admission.settle(call.response)
            if self.tracing is not None:
                self.tracing.describe(call)

        return await self.chat.handle(request, body, caller, done)

    async def _feedback(self, request: web.Request) -> web.StreamResponse:
        caller, _ = self._admitted(request)
        raw = await self._body(request)
        body = parse_object(raw)
        record, call = read_feedback(body, caller.tenant, self.calls)
        await self.recorder.room()
        make = anonymized(record, call, self.answering.scopes, self.anonymizer)
        kept = self.recorder.put(make, len(raw) + RECORD_BYTES)
        await self.recorder.settled(kept)
        if kept.done() and not kept.result():
            raise log_unavailable()
        return web.json_response({"object": "feedback", "id": record.id, "call_id": record.call_id})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return self.pages.models(self._admitted(request)[0])

    async def _model(self, request: web.Request) -> web.StreamResponse:
        caller, _ = self._admitted(request)
        known = self.pages.model(request.match_info["model"], caller)
        return known or await self._passed_on(request, caller)

    async def _pass_through(self, request: web.Request) -> web.StreamResponse:
        return await self._passed_on(request, self._admitted(request)[0])

    async def _passed_on(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        path = checked_path(request, caller, self._permission)
        body = await self._body(request) if request.body_exists else None
        return await pass_through(request, path, body, self.passed, caller)

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        return GatewayError(404, "no such path: the API is under /v1", code="not_found").response()

    def _admitted(self, request: web.Request) -> tuple[Caller, Admission | None]:
        """Who calls, and what the call is charged to. Before the body is read: a refusal is cheap."""
        gateway = self.settings.gateway
        caller = identify(request.headers, self.table.current.keys, gateway.require_key)
        if caller.key is None or not caller.key.limited:
            return caller, None
        length = request.content_length or 0
        admission = self.limits.admit(caller, length if is_text(request.content_type) else 0)
        if admission is not None:
            request[_ADMISSION] = admission
        return caller, admission

    async def _tell(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER
        if self._draining:
            response.headers["Connection"] = "close"
            response.force_close()
        admission = request.get(_ADMISSION)
        if admission is not None:
            # In the teacher's place: they are the operator's business.
            response.headers.update(admission.headers(self.limits.clock()))

    async def _body(self, request: web.Request) -> bytes:
        gateway = self.settings.gateway
        raw = await read_body(request, gateway.max_body_bytes, gateway.read_timeout_seconds)
        admission = request.get(_ADMISSION)
        if admission is not None and is_text(request.content_type):
            admission.weigh(len(raw))
        return raw

    def _guarded(self, handler: Handler) -> Handler:
        """In-flight limit, every failure in OpenAI's shape, and a span where traces are wanted."""
        if self.tracing is not None:
            handler = self.tracing.traced(handler)

        async def guarded(request: web.Request) -> web.StreamResponse:
            if self._in_flight >= self.settings.gateway.max_in_flight:
                self.metrics.errors.labels("429").inc()
                return overloaded().response()
            self._in_flight += 1
            try:
                return await handler(request)
            except GatewayError as error:
                self.metrics.errors.labels(str(error.status)).inc()
                return error.response()
            except (CallerGone, ConnectionError):
                self.metrics.errors.labels("499").inc()
                return web.Response(status=499)
            except Exception:
                logger.exception("a call failed inside the gateway")
                self.metrics.errors.labels("500").inc()
                return GatewayError(500, "the gateway failed", kind="api_error").response()
            finally:
                self._in_flight -= 1

        return guarded

    # What operators ask

    async def _readyz(self, request: web.Request) -> web.Response:
        try:
            return self.pages.readyz(self._operator(request))
        except GatewayError:
            return self.pages.readyz(Caller("", key_known=False))

    async def _metrics(self, request: web.Request) -> web.Response:
        try:
            return self.pages.metrics(self._operator(request))
        except GatewayError as error:
            return error.response()

    def _operator(self, request: web.Request) -> Caller | None:
        """Who asks for what operators see; None where everybody may."""
        if not self.settings.gateway.guard_metrics:
            return None
        return identify(request.headers, self.table.current.keys, require=True)

    # Start and end

    async def _start(self, _: web.Application) -> None:
        self.holdings.want(self.table.current)
        self.holdings.start()
        self.audits.start()
        self.shadows.start()
        self.table.start()
        self.shipper.start()
        self._kill_thread = threading.Thread(target=self._deliver_kills, daemon=True, name="kills")
        self._stopping = threading.Event()
        self._kill_thread.start()

    def drain(self) -> None:
        """The end is near: say so, and go on answering."""
        self._draining = True

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._in_flight

    async def _drain(self, _: web.Application) -> None:
        self.drain()

    async def _stop(self, _: web.Application) -> None:
        """Calls are answered by now: finish what nobody waits for, then write and ship."""
        await asyncio.gather(self.audits.drain(DRAIN_SECONDS), self.shadows.drain(DRAIN_SECONDS))
        await self.holdings.stop()
        self._stopping.set()
        self.kills.wake()
        await asyncio.to_thread(self.recorder.close)
        await asyncio.to_thread(self.shipper.stop, SHIP_AT_END_SECONDS)
        await asyncio.to_thread(self.table.stop)
        self.answering.close()
        await asyncio.gather(self.teacher.close(), self.passed.close())
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        await self.engine.close()
        self.spool.close()
        if self._database is not None:
            self._database.close()

    def _deliver_kills(self) -> None:
        channels = channel_names(self.settings.notify)
        while True:
            self.kills.wait(self.settings.gateway.refresh_seconds)
            if self._stopping.is_set():
                return
            try:
                kills.deliver(self.kills, self._open_database, channels)
            except Exception as error:  # noqa: BLE001 - the registry is away: the kill holds here
                logger.warning("a kill waits for the registry: %s", type(error).__name__)

    def _routes_changed(self, snapshot: Snapshot) -> None:
        # Called in the refresher's thread.
        self.kills.forget(snapshot)
        self._loop.call_soon_threadsafe(self.holdings.want, snapshot)

    def _shipped(self, count: int, reached: bool) -> None:
        self.metrics.shipped.inc(count)
        self.metrics.store_reached.set(reached)

    def _open_database(self) -> Database:
        with self._database_lock:
            if self._database is None:
                self._database = open_database(self.settings.database)
            return self._database

    def _open_store(self) -> ObjectStore:
        if self._store is None:
            self._store = open_store(self.settings.storage)
        return self._store
