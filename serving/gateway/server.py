"""The gateway's parts put together, its HTTP routes, and its start and end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from infra.anonymize.anonymizer import Anonymizer
from infra.calls.record import utc_now
from infra.database.open import Database, open_database
from infra.notify.open import channel_names
from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from serving.engines.client import EngineClient
from serving.engines.protocol import Engine
from serving.gateway import kills
from serving.gateway.answering import Answering
from serving.gateway.background import Background
from serving.gateway.chat import Chat
from serving.gateway.feedback import CallIndex, anonymized, read_feedback
from serving.gateway.guard import KillSwitch, tended
from serving.gateway.holdings import Holdings
from serving.gateway.intake import SessionNames, parse_object
from serving.gateway.keys import Caller, identify
from serving.gateway.metrics import CONTENT_TYPE, Metrics
from serving.gateway.passing import pass_through
from serving.gateway.problems import (
    CallerGone,
    GatewayError,
    log_unavailable,
    overloaded,
    too_large,
    too_slow,
)
from serving.gateway.recorder import Recorder
from serving.gateway.refresh import RouteTable
from serving.gateway.routes import Snapshot
from serving.gateway.shipper import Shipper
from serving.gateway.small_calls import SmallCalls
from serving.gateway.spool import Spool
from serving.gateway.upstream import Teacher
from serving.small_model import SmallModel

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 20.0
SHIP_AT_END_SECONDS = 20.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Everything one gateway process holds. Made inside the event loop that it serves from.

    Args:
        settings: the whole configuration.
        engine: asks the small model; None makes a client for ``[engine]``.

    Raises:
        OSError: the spool folder cannot be used.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
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
        self.kills = KillSwitch(self.spool.folder / "kills.json", gateway.kill_error_burst)
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
        self.engine = engine or make_engine(settings)
        self.holdings = Holdings(
            self.engine, self._open_store, gateway.adapters, settings.engine.max_adapters
        )
        self.small = SmallCalls(SmallModel(self.engine), self.holdings, settings)
        self.teacher = Teacher(settings.teacher)
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
            personal=lambda text: bool(self.anonymizer.find(text)),
            hash_key=key.get_secret_value().encode() if key else b"",
        )
        self.chat = Chat(self.answering, self.recorder, names, self.calls)
        self._watch()

    def app(self) -> web.Application:
        """The aiohttp application; starting and stopping it starts and stops the gateway."""
        app = web.Application(client_max_size=self.settings.gateway.max_body_bytes)
        app.on_startup.append(self._start)
        app.on_shutdown.append(self._drain)
        app.on_cleanup.append(self._stop)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._guarded(self._models))
        app.router.add_post("/v1/chat/completions", self._guarded(self._chat))
        app.router.add_post("/v1/feedback", self._guarded(self._feedback))
        app.router.add_route("*", "/v1/{path:.+}", self._guarded(self._pass_through))
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    # What callers ask

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        return await self.chat.handle(request, await self._body(request), caller)

    async def _feedback(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        raw = await self._body(request)
        body = parse_object(raw)
        record, call = read_feedback(body, caller.tenant, self.calls)
        await self.recorder.room()
        make = anonymized(record, call, self.answering.scopes, self.anonymizer)
        kept = self.recorder.put(make, len(raw) + 4096)
        await self.recorder.settled(kept)
        if kept.done() and not kept.result():
            raise log_unavailable()
        return web.json_response({"object": "feedback", "id": record.id, "call_id": record.call_id})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        data: list[dict[str, Any]] = [_model(self.settings.teacher.model, "teacher")]
        for task in self.table.current.tasks:
            if task.tenant in (None, caller.tenant):
                champion = task.champion.name if task.champion and task.adapters() else "teacher"
                data.append({**_model(task.id, "nightschool"), "champion": champion})
        return web.json_response({"object": "list", "data": data})

    async def _pass_through(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request)
        body = await self._body(request) if request.body_exists else None
        return await pass_through(request, body, self.teacher, caller)

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        return GatewayError(404, "no such path: the API is under /v1", code="not_found").response()

    def _caller(self, request: web.Request) -> Caller:
        return identify(
            request.headers, self.table.current.tenants, self.settings.gateway.require_key
        )

    async def _body(self, request: web.Request) -> bytes:
        limit = self.settings.gateway.max_body_bytes
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        try:
            # Nothing to wait for is the common case, and a timer is not free.
            if request.content.is_eof():
                return await request.read()
            async with asyncio.timeout(self.settings.gateway.read_timeout_seconds):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large(limit) from None
        except TimeoutError:
            raise too_slow(self.settings.gateway.read_timeout_seconds) from None

    def _guarded(self, handler: Handler) -> Handler:
        """In-flight limit, and every failure in OpenAI's shape."""

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

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        """503 while draining, and when callers need keys and no snapshot was ever had."""
        unknown = not self.table.known and self.settings.gateway.require_key
        age = self.table.current.age_seconds()
        body = {
            "ready": not (self._draining or unknown),
            "draining": self._draining,
            "routes": len(self.table.current.tasks),
            "routes_age_seconds": None if age is None else round(age, 3),
            "registry_reachable": not self.table.failing,
            "adapters_ready": sorted(self.holdings.ready),
            "records_waiting": self.recorder.backlog + self.spool.count,
        }
        return web.json_response(body, status=200 if body["ready"] else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

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

    async def _drain(self, _: web.Application) -> None:
        self._draining = True

    async def _stop(self, _: web.Application) -> None:
        """Calls are answered by now: finish what nobody waits for, then write and ship."""
        await asyncio.gather(self.audits.drain(DRAIN_SECONDS), self.shadows.drain(DRAIN_SECONDS))
        await self.holdings.stop()
        self._stopping.set()
        await asyncio.to_thread(self.recorder.close)
        await asyncio.to_thread(self.shipper.stop, SHIP_AT_END_SECONDS)
        await asyncio.to_thread(self.table.stop)
        self.answering.close()
        await self.teacher.close()
        close = getattr(self.engine, "close", None)
        if close is not None:
            await close()
        self.spool.close()
        if self._database is not None:
            self._database.close()

    def _deliver_kills(self) -> None:
        channels = channel_names(self.settings.notify)
        while not self._stopping.wait(self.settings.gateway.refresh_seconds):
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

    def _watch(self) -> None:
        def age() -> float:
            seconds = self.table.current.age_seconds(utc_now())
            return float("nan") if seconds is None else seconds

        def rollouts(untended_only: bool) -> int:
            now, limit = utc_now(), self.settings.gateway.dead_man_seconds
            return sum(
                task.stage != "none" and not (untended_only and tended(task, now, limit))
                for task in self.table.current.tasks
            )

        watch = self.metrics.watch
        watch("nightschool_routes_age_seconds", "Since the routes were last read", age)
        watch("nightschool_rollouts", "Open, with a stage", lambda: rollouts(False))
        watch(
            "nightschool_rollouts_untended",
            "Whose canary gets nothing because nobody tends it: the dead man's timer",
            lambda: rollouts(True),
        )
        watch("nightschool_spool_records", "In the open spool file", lambda: self.spool.count)
        watch("nightschool_spool_bytes", "In the open spool file", lambda: self.spool.size_bytes)
        watch("nightschool_spool_objects", "Made and not yet shipped", self.spool.waiting)
        watch("nightschool_in_flight", "Calls being answered", lambda: self._in_flight)
        watch(
            "nightschool_small_model_under_way",
            "Small-model calls under way",
            lambda: self.small.under_way,
        )
        watch(
            "nightschool_background_waiting",
            "Second opinions waiting",
            lambda: self.audits.depth() + self.shadows.depth(),
        )
        watch(
            "nightschool_adapters_ready",
            "Adapters that may get traffic",
            lambda: len(self.holdings.ready),
        )


def make_engine(settings: Settings) -> EngineClient:
    key = settings.engine.api_key
    return EngineClient(
        settings.engine.url,
        api_key=key.get_secret_value() if key else None,
        timeout_seconds=settings.gateway.small_model_timeout_seconds,
        max_rank=settings.engine.max_rank,
    )


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
