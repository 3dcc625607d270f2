"""``POST /v1/chat/completions``: from the request's bytes to the answer's last byte.

A call is in the spool before the last byte of its answer goes out, so that no caller ever holds an
answer that a crash could take from the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from infra.anonymize.session_names import SessionNames
from serving.gateway.answering import Answering
from serving.gateway.call import Call
from serving.gateway.early import TextTurnedBad
from serving.gateway.feedback import CallIndex
from serving.gateway.intake import parse_chat
from serving.gateway.keys import Caller
from serving.gateway.problems import CallerGone, GatewayError, teacher_unavailable, text_broken_off
from serving.gateway.recorder import Recorder
from serving.gateway.streaming import Assembler, StreamProblem, TextStream, chunks, event
from serving.gateway.upstream import Answer, Reply, passed_back, read_reply
from serving.gateway.whole_answer import whole_answer

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

    async def handle(
        self,
        request: web.Request,
        raw: bytes,
        caller: Caller,
        done: Callable[[Call], None] | None = None,
    ) -> web.StreamResponse:
        """Raises GatewayError for what the caller gets as an error.

        Args:
            done: told once of the call as it is logged.
        """
        chat = parse_chat(raw, request.headers, caller.tenant, self._names)
        await self._recorder.room()
        call = Call(chat, caller.tenant)
        headers = self._answering.teacher.headers(request.headers, caller.key_known)
        exchange = _Exchange(
            request, call, headers, self._answering, self._recorder, self._calls, done
        )
        try:
            return await exchange.answer()
        except GatewayError as error:
            call.failed(error.status, error.code or error.kind)
            self._answering.meanwhile(call)
            error.headers |= call.headers()
            raise
        except CallerGone:
            call.failed(499, "caller_gone")
            raise
        finally:
            exchange.log()


class _Exchange:
    """One call between its caller and whoever answers it."""

    def __init__(
        self,
        request: web.Request,
        call: Call,
        headers: Mapping[str, str],
        answering: Answering,
        recorder: Recorder,
        calls: CallIndex,
        done: Callable[[Call], None] | None,
    ) -> None:
        self._done = done
        self._request = request
        self._call = call
        self._headers = headers
        self._answering = answering
        self._recorder = recorder
        self._calls = calls
        self._logged = False
        self._text: TextStream | None = None

    async def answer(self) -> web.StreamResponse:
        call = self._call
        send = self._send_text if call.chat.stream else None
        try:
            own = await self._answering.try_small_model(call, self._headers, send)
        except TextTurnedBad:
            problem = text_broken_off()
            call.failed(problem.status, problem.code or problem.kind)
            assert self._text is not None
            return await self._end(self._text.response, event(problem.body()))
        if own is not None:
            return await self._show(own)
        if call.hedged is not None:
            return await self._show_hedged(call.hedged)
        # Once the request is on its way: what follows writes it before the loop turns.
        asyncio.get_running_loop().call_soon(self._answering.meanwhile, call)
        if call.chat.stream:
            return await self._stream()
        body = self._answering.teacher_body(call)
        return await self._pass_on(await self._answering.teacher.ask(body, self._headers))

    def log(self) -> asyncio.Future[bool] | None:
        """Log the call, once: the future of its record, or None when that was done before."""
        if self._logged:
            return None
        self._logged = True
        call = self._call
        self._answering.meanwhile(call)
        if self._done is not None:
            self._done(call)
        self._calls.add(call.tenant, call.id, call.chat.session, call.response.get("id"))
        return self._answering.finish(call, self._headers)

    async def _settle(self) -> None:
        """Before the answer's last byte. Raises GatewayError where the policy is to refuse."""
        logged = self.log()
        if logged is not None:
            await self._recorder.settled(logged)

    async def _show(self, response: dict[str, Any]) -> web.StreamResponse:
        """An answer of the small model, in the form that was asked for."""
        call = self._call
        call.answered(response)
        if self._text is not None:
            return await self._end(self._text.response, self._text.rest(response, _usage(call)))
        await self._settle()
        if not call.chat.stream:
            headers = {"Content-Type": "application/json", **call.headers()}
            return whole_answer(200, orjson.dumps(response), headers)
        body = b"".join(chunks(response, include_usage=_usage(call)))
        return whole_answer(200, body, {**_EVENT_STREAM, **call.headers()})

    async def _show_hedged(self, reply: Reply) -> web.StreamResponse:
        body = reply.json()
        if not self._call.chat.stream or body is None or not body.get("choices"):
            return await self._pass_on(reply)
        self._call.answer_bytes = len(reply.body)
        return await self._show(body)

    async def _pass_on(self, reply: Reply) -> web.StreamResponse:
        """The teacher's answer as it came, and what the log makes of it."""
        call = self._call
        body = reply.json()
        call.answer_bytes = len(reply.body)
        if reply.status == 200 and body is not None and body.get("choices"):
            call.answered(body)
        else:
            call.failed(reply.status, error_code(body))
        await self._settle()
        headers = {**reply.headers, "Content-Type": reply.content_type, **call.headers()}
        return whole_answer(reply.status, reply.body, headers)

    async def _stream(self) -> web.StreamResponse:
        call, teacher = self._call, self._answering.teacher
        body = self._answering.teacher_body(call)
        response: web.StreamResponse | None = None
        try:
            async with teacher.chat(body, self._headers) as upstream:
                kind = upstream.headers.get("Content-Type", "")
                if upstream.status != 200 or "text/event-stream" not in kind:
                    return await self._pass_on(await read_reply(upstream))
                self._answering.meanwhile(call)
                response = web.StreamResponse(
                    headers={**_EVENT_STREAM, **passed_back(upstream.headers), **call.headers()}
                )
                await _prepare(response, self._request)
                await self._pass_chunks(upstream, response)
        except GatewayError as error:
            if response is None:
                raise
            # The status line is long gone: the error is the stream's last event.
            if not self._logged:
                call.failed(error.status, error.code or error.kind)
            await _write(response, event(error.body()))
        assert response is not None
        return await self._end(response)

    async def _pass_chunks(self, upstream: Answer, response: web.StreamResponse) -> None:
        call = self._call
        assembler: Assembler | None = Assembler()
        async for chunk in upstream.content.iter_any():
            call.answer_bytes += len(chunk)
            if assembler is not None:
                try:
                    assembler.feed(chunk)
                except StreamProblem:
                    assembler = None  # the caller's business; not a thing to learn from
                else:
                    if assembler.done and assembler.complete and not self._logged:
                        call.answered(assembler.response())
                        await self._settle()
            await _write(response, chunk)
        if self._logged:
            return
        if assembler is None:
            call.failed(200, "stream_not_understood")
        elif assembler.complete:
            call.answered(assembler.response())
        elif assembler.error:
            call.failed(200, "stream_error")
        else:
            raise teacher_unavailable("it broke off in the middle of its answer")

    async def _send_text(self, text: str) -> None:
        if self._text is None:
            call = self._call
            assert call.assignment.answerer is not None
            headers = call.headers_of(call.assignment.answerer.name)
            response = web.StreamResponse(headers={**_EVENT_STREAM, **headers})
            self._text = TextStream(call.id, call.assignment.answerer.name, response)
            await _prepare(response, self._request)
        await _write(self._text.response, self._text.more(text))

    async def _end(self, response: web.StreamResponse, last: bytes = b"") -> web.StreamResponse:
        try:
            await self._settle()
        except GatewayError as error:
            last = event(error.body())
        if last:
            await _write(response, last)
        try:
            await response.write_eof()
        except OSError:
            raise CallerGone from None
        return response


def error_code(body: Mapping[str, Any] | None) -> str:
    """The code or type of an OpenAI error body, for the log; never its message."""
    error = (body or {}).get("error")
    if isinstance(error, dict):
        for name in ("code", "type"):
            if isinstance(error.get(name), str) and len(error[name]) < 80:
                return str(error[name])
    return "upstream_error"


def _usage(call: Call) -> bool:
    """Whether a streaming caller asked for the usage."""
    options = call.chat.body.get("stream_options") or {}
    return options.get("include_usage") is True


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
