"""Ask the judge over the network: within a budget, and never the same question twice.

Every verdict is an object of its own, named by the question, and holds scores and reasons, no text. So a
night that was killed asks for the rest only, and a decision can be made again without the judge.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import openai

from evaluators.judge.budget import Budget
from evaluators.judge.questions import Question
from evaluators.judge.verdicts import Unreadable
from infra.objects.store import ObjectExists, ObjectMissing, ObjectStore
from infra.settings.judging import Judge

logger = logging.getLogger(__name__)

Read = Callable[[str], Any]
"""What a reply means, as JSON. Raises Unreadable."""
FIRST_PAUSE_SECONDS = 0.5
MOST_REFUSED_FIRST = 6
"""Questions refused before any was answered: three pairs. Then it is the settings that are refused."""
REFUSED = "the judge refused the question"
TOO_LONG = "the question is too long to be asked"
_REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)
_AWAY = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)


class JudgeAway(Exception):
    """The judge gives no verdicts for now; the message says why and what to do."""


class BudgetSpent(Exception):
    """No call or no money is left for now."""


class Judgements:
    """Verdicts of one judge, kept under one prefix. Use it as an async context manager.

    Args:
        prefix: key prefix of the verdicts, ending in a slash.
    """

    def __init__(self, settings: Judge, store: ObjectStore, budget: Budget, prefix: str) -> None:
        if settings.model is None:
            raise ValueError("judge.model names no model: nobody can be asked")
        self.settings, self.model = settings, settings.model
        self.asked = 0
        """Calls that were made, repeats among them."""
        self._heard, self._refused = False, 0
        self._wanted: set[str] = set()
        self._store, self._budget, self._prefix = store, budget, prefix
        self._places = asyncio.Semaphore(settings.concurrency)
        key = settings.api_key.get_secret_value() if settings.api_key else "none"
        self._client = openai.AsyncOpenAI(
            base_url=settings.url, api_key=key, timeout=settings.timeout_seconds, max_retries=0
        )

    async def __aenter__(self) -> Judgements:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def verdict(self, question: Question, read: Read) -> tuple[Any, str | None]:
        """What the judge says, and why it says nothing where it does: then that is its verdict for good.

        But a question that is too long by the settings of today is none for good, nor is a refusal
        before anything was answered: that may be the settings' fault, and ends the asking.

        Raises:
            BudgetSpent, JudgeAway: nothing is kept, ask another time.
            ObjectStoreError.
        """
        key = f"{self._prefix}{question.digest(self.model, self._sent)}.json"
        self._wanted.add(key)
        kept = await asyncio.to_thread(self._kept, key)
        if kept is None:
            if question.characters > self.settings.max_characters:
                return None, TOO_LONG
            async with self._places:
                kept = await self._ask(question, read)
            if kept.get("failed") == REFUSED and not self._heard:
                self._count_refused()
                return None, REFUSED
            kept = await asyncio.to_thread(self._keep, key, kept)
        self._heard |= kept.get("failed") != REFUSED
        return kept.get("verdict"), kept.get("failed")

    def clear_others(self) -> None:
        """Delete the verdicts that nobody asked for since it was opened: labels come and go, and so
        what is kept of them stays bounded. Raises ObjectStoreError."""
        for item in self._store.list(self._prefix):
            if item.key not in self._wanted:
                self._store.delete(item.key)

    def _count_refused(self) -> None:
        self._refused += 1
        if self._refused >= MOST_REFUSED_FIRST:
            raise JudgeAway(
                f"the judge at {self.settings.url} refused the first {self._refused} questions: check "
                "[judge] answer_format, token_limit and temperature; none of it is kept"
            )

    def _kept(self, key: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._store.get(key)))
        except ObjectMissing:
            return None

    def _keep(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        try:
            self._store.create(key, json.dumps(value, sort_keys=True).encode())
        except ObjectExists:
            return dict(json.loads(self._store.get(key)))  # another was faster: its word stands
        return value

    async def _ask(self, question: Question, read: Read) -> dict[str, Any]:
        settings = self.settings
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(settings.retries + 1):
            # A token is a byte at least.
            size = len(question.instruction.encode()) + len(question.material.encode())
            most = self._cost(size, settings.max_tokens)
            if not await asyncio.to_thread(self._budget.take, most):
                raise BudgetSpent("the judge's calls or money of this period are spent")
            self.asked += 1
            try:
                completion = await self._client.chat.completions.create(**self._body(question))
            except _REFUSED:
                return {"failed": REFUSED}
            except _AWAY as error:
                if attempt == settings.retries:
                    raise JudgeAway(
                        f"the judge at {settings.url} gave no answer ({type(error).__name__}): check "
                        "[judge] url, and that it runs; what it said until now is kept"
                    ) from error
                await asyncio.sleep(pause)
                pause *= 2
                continue
            except (openai.OpenAIError, ValueError) as error:
                raise JudgeAway(
                    f"the judge at {settings.url} does not take the question "
                    f"({type(error).__name__}): check [judge] url, model and api_key"
                ) from error
            used = completion.usage
            if used is not None:
                cost = self._cost(used.prompt_tokens, used.completion_tokens)
                await asyncio.to_thread(self._budget.correct, cost - most)
            return _read(completion, read)
        raise AssertionError("the last attempt returns or raises")

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        settings = self.settings
        return (
            prompt_tokens * settings.cost_per_million_input_tokens
            + completion_tokens * settings.cost_per_million_output_tokens
        ) / 1e6

    def _body(self, question: Question) -> dict[str, Any]:
        return {"model": self.model, "messages": question.messages, **self._sent}

    @property
    def _sent(self) -> dict[str, Any]:
        settings = self.settings
        sent: dict[str, Any] = {settings.token_limit: settings.max_tokens}
        if settings.temperature is not None:
            sent["temperature"] = settings.temperature
        if settings.answer_format == "json_object":
            sent["response_format"] = {"type": "json_object"}
        return sent


def _read(completion: Any, read: Read) -> dict[str, Any]:
    choices = getattr(completion, "choices", None)
    if not choices:
        return {"failed": "the judge gave no reply"}
    if choices[0].finish_reason == "length":
        return {"failed": "the judge's reply was cut off"}
    text = choices[0].message.content
    if not isinstance(text, str) or not text.strip():
        return {"failed": "the judge gave no reply"}
    try:
        return {"verdict": read(text)}
    except Unreadable as error:
        return {"failed": str(error)}
