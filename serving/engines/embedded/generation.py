"""One answer on its way: its row in the batch, the news of it, and what of it may be shown."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch

from infra.calls.record import new_id
from serving.engines.embedded import dialect
from serving.engines.embedded.base_model import BaseModel
from serving.engines.embedded.batcher import Job
from serving.engines.embedded.decoding import Row

News = tuple[int, bool, Exception | None]
"""Tokens so far, whether the row is out of the batch, and the error that took it out."""


class Generation:
    """Lives in the event loop; the model's thread only appends to ``row`` and sends news.

    Args:
        asked: the request.
        prompt: its token ids.
        slot: the adapter's slot.
        base: the base model.
        release: called once, when the row is out of the batch.
        index: which of the request's answers it is.
    """

    def __init__(
        self,
        asked: dialect.CompletionRequest,
        prompt: list[int],
        slot: int,
        base: BaseModel,
        release: Callable[[], None] | None = None,
        index: int = 0,
    ) -> None:
        special = base.special_tokens
        self._asked = asked
        self._base = base
        self.row = Row(
            prompt=prompt,
            slot=slot,
            max_tokens=asked.max_tokens,
            stop_tokens=base.end_tokens | {special[text] for text in asked.stop if text in special},
            stop_texts=tuple(text for text in asked.stop if text not in special),
        )
        self._index = index
        if asked.temperature:
            self.row.temperature, self.row.drawing = asked.temperature, torch.Generator()
            seed = secrets.randbits(62) if asked.seed is None else asked.seed + index
            self.row.drawing.manual_seed(seed)
        self.news: asyncio.Queue[News] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(count: int, done: bool, error: Exception | None) -> None:
            loop.call_soon_threadsafe(self._told, (count, done, error))

        self.job = Job(self.row, report, every_token=asked.stream)
        self._release = release
        self._id = f"cmpl-{new_id()}"
        self._created = int(time.time())

    def _told(self, news: News) -> None:
        if news[1] and self._release is not None:
            self._release()
        self.news.put_nowait(news)

    async def answer(self) -> dict[str, Any]:
        """The body of the answer, once it is whole. Raises the error that ended it."""
        done = False
        while not done:
            count, done, error = await self.news.get()
        if error is not None:
            raise error
        choice = dialect.choice(
            self._text(count, True), self.row.finish_reason, *self._tokens(0, count), self._index
        )
        return self._body([choice], dialect.usage(len(self.row.prompt), count))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The bodies of a streamed answer. Raises the error that ended it."""
        shown, sent, done = "", 0, False
        while not done:
            count, done, error = await self.news.get()
            if error is not None:
                raise error
            text = self._text(count, done)
            finish_reason = self.row.finish_reason if done else None
            choice = dialect.choice(text[len(shown) :], finish_reason, *self._tokens(sent, count))
            yield self._body([choice], None)
            shown, sent = text, count
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            yield self._body([], dialect.usage(len(self.row.prompt), sent))

    def _text(self, count: int, done: bool) -> str:
        """What may be shown of the first ``count`` tokens."""
        tokens = self.row.tokens[:count]
        if tokens and tokens[-1] in self.row.stop_tokens:
            tokens = tokens[:-1]
        text = self._base.decode(tokens, skip_special_tokens=self._asked.skip_special_tokens)
        text = dialect.cut(text, self.row.stop_texts)
        return text if done else dialect.settled(text, self.row.stop_texts)

    def _tokens(self, start: int, end: int) -> tuple[list[str], list[float] | None]:
        if self._asked.logprobs is None:
            return [], None
        tokens = [self._base.decode([token]) for token in self.row.tokens[start:end]]
        return tokens, self.row.logprobs[start:end]

    def _body(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        return dialect.completion(self._id, self._created, self._asked.model, choices, usage)
