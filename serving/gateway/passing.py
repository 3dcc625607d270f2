"""Every other path under ``/v1``: handed to the teacher as it is, and back. Nothing is logged."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from urllib.parse import unquote

from aiohttp import web

from serving.gateway.keys import Caller
from serving.gateway.open_paths import Permission
from serving.gateway.problems import CallerGone, GatewayError, bad_request
from serving.gateway.upstream import Teacher, passed_back

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_PATH = re.compile(r"(/[A-Za-z0-9_.:@~-]+)+/?")


def checked_path(request: web.Request, caller: Caller, permission: Permission) -> str:
    """The request's path without ``/v1`` and query.

    Raises GatewayError: 400 for a path that is none, 401 or 403 for one that is not the caller's to
    use.
    """
    if request.method not in METHODS:
        raise GatewayError(405, f"this path takes {', '.join(METHODS)}", code="invalid_method")
    path = request.raw_path.partition("?")[0].removeprefix("/v1")
    # Only plain segments: nothing may lead the teacher's server to another part of itself.
    plain = unquote(path)
    if not _PATH.fullmatch(plain) or any(part in (".", "..") for part in plain.split("/")):
        raise bad_request("the path has characters that no OpenAI path has", "invalid_path")
    permission.check(request.method, plain, caller)
    return path


async def pass_through(
    request: web.Request, path: str, body: bytes | None, teacher: Teacher, caller: Caller
) -> web.StreamResponse:
    """Raises GatewayError when the teacher cannot be asked."""
    # As it came: what is decoded and encoded again may mean something else.
    query = request.raw_path.partition("?")[2]
    if query:
        path = f"{path}?{query}"
    headers = teacher.headers(request.headers, caller.key_known)
    if "Content-Type" in request.headers:
        headers["content-type"] = request.headers["Content-Type"]
    response: web.StreamResponse | None = None
    try:
        async with teacher.open(request.method, path, body, headers) as upstream:
            response = web.StreamResponse(
                status=upstream.status, headers=passed_back(upstream.headers)
            )
            if "Content-Type" in upstream.headers:
                response.headers["Content-Type"] = upstream.headers["Content-Type"]
            await _to_caller(response.prepare(request))
            async for chunk in upstream.content.iter_any():
                await _to_caller(response.write(chunk))
    except GatewayError:
        if response is None or not response.prepared:
            raise
        # Half an answer is out: a broken connection is the only way to say that it is one.
        if request.transport is not None:
            request.transport.abort()
        raise CallerGone from None
    await _to_caller(response.write_eof())
    return response


async def _to_caller(step: Awaitable[object]) -> None:
    # A caller that is gone must not look like a teacher that failed.
    try:
        await step
    except OSError:
        raise CallerGone from None
