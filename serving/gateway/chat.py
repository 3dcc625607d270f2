"""``POST /v1/chat/completions``: from the request's bytes to the answer's last byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web

from serving.gateway.answering import Answering, error_code
from serving.gateway.call import Call
from serving.gateway.feedback import CallIndex
from serving.gateway.intake import SessionNames, parse_chat
from serving.gateway.keys import Caller
from serving.gateway.problems import CallerGone, GatewayError, teacher_unavailable
from serving.gateway.recorder import Recorder
from serving.gateway.streaming import Assembler, StreamProblem, chunks, event
from serving.gateway.upstream import Reply, passed_back, read_reply

_EVENT_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


class Chat:
    """The handler. One per gateway."""

    def __init__(
        self, answering: Answering, recorder: Recorder, names: SessionNames, calls: CallIndex
    ) -> None:
        self._answering = answering
        self._recorder = recorder
        self._names = names
        self._calls = calls

    async def handle(self, request: web.Request, raw: bytes, caller: Caller) -> web.StreamResponse:
        """Raises GatewayError for what the caller gets as an error."""
        chat = parse_chat(raw, request.headers, caller.tenant, self._names)
        await self._recorder.room()
        call = Call(chat, caller.tenant)
        headers = self._answering.teacher.headers(request.headers, caller.key_known)
        try:
            own = await self._answering.try_small_model(call)
            if own is not None:
                return await self._show(request, call, own)
            if chat.stream:
                return await self._stream(request, call, headers)
            return await self._whole(call, headers)
        except GatewayError as error:
            call.failed(error.status, error.code or error.kind)
            error.headers = call.headers()
            raise
        except CallerGone:
            call.failed(499, "caller_gone")
            raise
        finally:
            self._calls.add(call.tenant, call.id, chat.session, call.response.get("id"))
            self._answering.finish(call, headers)

    async def _show(
        self, request: web.Request, call: Call, response: dict[str, Any]
    ) -> web.StreamResponse:
        """An answer of the small model, in the form that was asked for."""
        call.answered(response)
        if not call.chat.stream:
            return web.json_response(response, headers=call.headers())
        options = call.chat.body.get("stream_options") or {}
        body = b"".join(chunks(response, include_usage=options.get("include_usage") is True))
        return web.Response(body=body, headers={**_EVENT_STREAM, **call.headers()})

    async def _whole(self, call: Call, headers: Mapping[str, str]) -> web.Response:
        body = self._answering.teacher_body(call)
        return self._pass_on(call, await self._answering.teacher.ask(body, headers))

    def _pass_on(self, call: Call, reply: Reply) -> web.Response:
        """The teacher's answer as it came, and what the log makes of it."""
        body = reply.json()
        call.answer_bytes = len(reply.body)
        if reply.status == 200 and body is not None and body.get("choices"):
            call.answered(body)
        else:
            call.failed(reply.status, error_code(body))
        return web.Response(
            status=reply.status,
            body=reply.body,
            headers={
                **reply.headers,
                "Content-Type": reply.content_type,
                **call.headers(),
            },
        )

    async def _stream(
        self, request: web.Request, call: Call, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        teacher = self._answering.teacher
        body = self._answering.teacher_body(call)
        response: web.StreamResponse | None = None
        try:
            async with teacher.chat(body, headers) as upstream:
                kind = upstream.headers.get("Content-Type", "")
                if upstream.status != 200 or "text/event-stream" not in kind:
                    return self._pass_on(call, await read_reply(upstream))
                response = web.StreamResponse(
                    headers={**_EVENT_STREAM, **passed_back(upstream.headers), **call.headers()}
                )
                await _prepare(response, request)
                await self._pass_chunks(call, upstream, response)
        except GatewayError as error:
            if response is None:
                raise
            # The status line is long gone: the error is the stream's last event.
            call.failed(error.status, error.code or error.kind)
            await _write(response, event(error.body()))
        assert response is not None
        try:
            await response.write_eof()
        except OSError:
            raise CallerGone from None
        return response

    async def _pass_chunks(
        self, call: Call, upstream: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        assembler: Assembler | None = Assembler()
        async for chunk in upstream.content.iter_any():
            call.answer_bytes += len(chunk)
            if assembler is not None:
                try:
                    assembler.feed(chunk)
                except StreamProblem:
                    assembler = None  # the caller's business; not a thing to learn from
            await _write(response, chunk)
        if assembler is None:
            call.failed(200, "stream_not_understood")
        elif assembler.complete:
            call.answered(assembler.response())
        elif assembler.error:
            call.failed(200, "stream_error")
        else:
            raise teacher_unavailable("it broke off in the middle of its answer")


async def _prepare(response: web.StreamResponse, request: web.Request) -> None:
    try:
        await response.prepare(request)
    except OSError:
        raise CallerGone from None


async def _write(response: web.StreamResponse, data: bytes) -> None:
    # A caller that is gone must not look like a teacher that failed.
    try:
        await response.write(data)
    except OSError:
        raise CallerGone from None
