"""The read API as an aiohttp application: who may read, bounded waits, errors that say what to do.

A key of the role operate or admin reads the whole registry, whatever its tenant: operating is a role in
the deployment. A key of the role call reads nothing. Of what was said in calls only the anonymized words
that a task is told by are shown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from aiohttp import web
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from infra.calls.finding import CallNotFound
from infra.database.open import Database, DatabaseError
from infra.database.patience import answers_within
from infra.objects.store import ObjectStore, ObjectStoreError
from infra.settings.operating import RegistryApi
from serving.registry import keys
from serving.registry.errors import Unknown
from serving.registry.reading import queries
from serving.registry.reading.openapi import LINEAGE_PATH, openapi_document
from serving.registry.reading.operations import OPERATIONS, Operation
from serving.registry.reading.pages import (
    MAX_CURSOR,
    MAX_KEY,
    MAX_NAME,
    BadRequest,
    clean_limit,
    clean_text,
)
from serving.registry.reading.queries import Asked
from serving.registry.registry import Registry

logger = logging.getLogger(__name__)

READERS = frozenset({"operate", "admin"})
RETRY_SECONDS = 5
THREADS = 8
SLACK_SECONDS = 2.0
"""Beyond the database's own bound, for making the answer."""
MAX_KEY_CHARACTERS = 500
MAX_LINE_BYTES = 64 << 10
"""Of a request's first line: three names and a cursor, each letter spelled by its bytes in percent."""
_LONGEST = {"after": MAX_CURSOR, "of": MAX_KEY}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ReadApi:
    """See the module.

    Args:
        database: of this process; its own waits (locks, connections) should be as short as
            ``settings.database_seconds``.
        open_store: makes the object store, in a thread, when a call is first asked for.
    """

    def __init__(
        self, settings: RegistryApi, database: Database, open_store: Callable[[], ObjectStore]
    ) -> None:
        self._settings = settings
        self._database = database
        self._registry = Registry(database)
        self._open_store = open_store
        self._store: ObjectStore | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read")
        self._in_flight = 0
        self._document = orjson.dumps(openapi_document(require_key=settings.require_key))

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_answer_errors], client_max_size=1024)
        get = app.router.add_get
        get("/healthz", self._health, allow_head=False)
        get("/readyz", self._ready, allow_head=False)
        get("/openapi.json", self._openapi, allow_head=False)
        get(LINEAGE_PATH, self._lineage, allow_head=False)
        for operation in OPERATIONS:
            get(operation.path, self._handler(operation), allow_head=False)
        app.cleanup_ctx.append(self._close)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        _parameters(request, frozenset())
        return _json(b'{"status":"ok"}')

    async def _ready(self, request: web.Request) -> web.Response:
        _parameters(request, frozenset())

        def look() -> bytes:
            with self._database.read() as connection:
                connection.execute(text("SELECT 1 FROM routes")).first()
            return b'{"status":"ok"}'

        return _json(await self._run(look))

    async def _openapi(self, request: web.Request) -> web.Response:
        _parameters(request, frozenset())
        return _json(self._document)

    def _handler(self, operation: Operation) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            def answer() -> bytes:
                self._require_reader(request)
                given = _parameters(request, operation.query_parameters)
                given |= {
                    name: clean_text(name, value) for name, value in request.match_info.items()
                }
                after, limit = given.pop("after", None), clean_limit(given.pop("limit", None))
                with self._database.read() as connection:
                    found = operation.answer(connection, Asked(given, after, limit))
                return orjson.dumps(found)

            return _json(await self._run(answer))

        return handle

    async def _lineage(self, request: web.Request) -> web.Response:
        def answer() -> bytes:
            self._require_reader(request)
            given = _parameters(request, frozenset({"of", "kind"}))
            if "of" not in given:
                raise BadRequest(
                    "of is missing: an adapter, a call id, a data set or an object key"
                )
            if self._store is None:
                self._store = self._open_store()
            return orjson.dumps(queries.lineage(self._registry, self._store, Asked(given)))

        return _json(await self._run(answer, queries.CALL_SECONDS))

    def _require_reader(self, request: web.Request) -> None:
        """Raises Refused, and what the database raises."""
        if not self._settings.require_key:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        key = key.strip()
        found = None
        if scheme.lower() == "bearer" and 0 < len(key) <= MAX_KEY_CHARACTERS:
            found = keys.find_key(self._database, key)
        if found is None:
            raise Refused(
                401,
                "invalid_api_key",
                "no API key, or one that is not known here: send 'Authorization: Bearer <key>'; "
                "nightschool keys create --role operate makes one",
                WWW_Authenticate="Bearer",
            )
        if found.role not in READERS:
            raise Refused(
                403,
                "role_may_not_read",
                f"a key of the role {found.role} may not read the registry: operate and admin may",
            )

    async def _run(self, answer: Callable[[], bytes], more_seconds: float = 0.0) -> bytes:
        """In a thread, bounded in number and in time: a slow database costs its readers a clear 503."""
        if self._in_flight >= self._settings.max_in_flight:
            raise _unavailable("too many requests wait for the database")
        seconds = self._settings.database_seconds

        def patient() -> bytes:
            with answers_within(seconds + more_seconds):
                return answer()

        self._in_flight += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, patient)
        future.add_done_callback(self._ended)
        done, _ = await asyncio.wait({future}, timeout=seconds + more_seconds + SLACK_SECONDS)
        if not done:
            # The thread goes on to its own bounds, and keeps its place among those in flight.
            raise _unavailable(f"no answer from the database within {seconds:g} seconds")
        return future.result()

    def _ended(self, future: asyncio.Future[bytes]) -> None:
        self._in_flight -= 1
        if not future.cancelled():
            future.exception()  # whoever waited for it has heard, or has gone

    async def _close(self, _: web.Application) -> AsyncIterator[None]:
        yield
        self._threads.shutdown(wait=False, cancel_futures=True)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as JSON; no text of a driver and no stack trace leaves."""
    try:
        return await handler(request)
    except Refused as refused:
        return _error(refused)
    except BadRequest as error:
        return _error(Refused(400, "bad_request", str(error)))
    except (Unknown, CallNotFound) as error:
        return _error(Refused(404, "not_found", str(error)))
    except web.HTTPException as error:
        return _error(_plain(error))
    except (SQLAlchemyError, DatabaseError) as error:
        logger.warning("the database did not answer: %s", type(error).__name__)
        return _error(_unavailable("the database did not answer in time"))
    except ObjectStoreError as error:
        logger.warning("the object store did not answer: %s", error)
        return _error(_unavailable("the object store did not answer"))
    except Exception:
        logger.exception("a request could not be answered")
        return _error(Refused(500, "internal", "this is a fault of the registry: see its log"))


def _plain(error: web.HTTPException) -> Refused:
    told = {
        404: ("not_found", "there is no such address: /openapi.json lists those there are"),
        405: ("method_not_allowed", "this API only reads: use GET"),
        413: ("too_large", "a request to this API has no body"),
    }
    code, message = told.get(error.status, ("bad_request", error.reason or "not understood"))
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return Refused(error.status, code, message, **headers)


def _parameters(request: web.Request, known: frozenset[str]) -> dict[str, str]:
    """The query, each parameter once and none that is unknown. Raises BadRequest."""
    unknown = set(request.query) - known
    if unknown:
        names = ", ".join(sorted(known)) or "none"
        raise BadRequest(f"unknown parameters in the query; known are: {names}")
    if len(request.query) != len(set(request.query)):
        raise BadRequest("a parameter is given more than once")
    return {
        name: clean_text(name, value, _LONGEST.get(name, MAX_NAME))
        for name, value in request.query.items()
    }


def _unavailable(why: str) -> Refused:
    return Refused(
        503, "unavailable", f"{why}: try again in a moment", Retry_After=str(RETRY_SECONDS)
    )


def _error(refused: Refused) -> web.Response:
    body: dict[str, Any] = {"error": {"message": str(refused), "code": refused.code}}
    return web.Response(
        status=refused.status,
        body=orjson.dumps(body),
        content_type="application/json",
        headers=refused.headers,
    )


def _json(body: bytes) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=body, content_type="application/json", headers=headers)
