"""What every engine that runs the small model can do, and how it fails.

An engine holds one base model and any number of LoRA adapters under names that are never used
twice (``task@digest``). Its HTTP dialect is vLLM's, so that one client speaks to both the embedded
server and vLLM; one contract suite runs against both.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from infra.prompting.template import STOP

FinishReason = Literal["stop", "length"]

ADAPTER_NAME = re.compile(r"^[a-z0-9][a-z0-9._@-]{0,199}$")
"""Names an engine may hold. No slash and no leading dot: a name can never walk a path."""

STOPS: tuple[str, ...] = (STOP,)


class EngineError(Exception):
    """Any failure of an engine. ``status`` is the HTTP status behind it, if there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EngineUnavailable(EngineError):
    """No engine there, or it failed inside: nothing wrong with the request, another may answer."""


class EngineAbsent(EngineUnavailable):
    """No connection could be made: the request reached nobody and did no harm."""


class EngineTimeout(EngineUnavailable):
    """The engine did not answer within the time that the caller gave it."""


class EngineOverloaded(EngineError):
    """The engine's queue is full: it refused at once, try elsewhere or later."""


class EngineRefused(EngineError):
    """The engine understood and said no: unknown model, bad adapter, prompt too long.

    Asking again in the same way gives the same answer.
    """


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt."""

    text: str
    """Generated text without the stop token."""
    token_logprobs: tuple[float, ...]
    """Natural log-probability of each generated token, in order. The stop token is the last one
    when ``finish_reason`` is ``stop``: ending the answer there is part of the answer."""
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[str, ...] = ()
    """The text of each token of ``token_logprobs``; none where the engine tells none."""


@dataclass(frozen=True)
class CompletionChunk:
    """One step of a streamed completion. The last chunk of a stream has the finish reason."""

    text: str
    token_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    tokens: tuple[str, ...] = ()


class Engine(Protocol):
    """A base model with adapters that can be loaded and unloaded while it serves.

    ``model`` is an adapter's name, or None for the base model. All methods raise ``EngineError``.
    """

    async def loaded(self) -> Mapping[str, str]:
        """The adapters held now: name to folder, as the engine sees it. The base is not in it."""
        ...

    async def ensure_loaded(self, name: str, folder: Path) -> bool:
        """Load the adapter unless it is there. True when this call loaded it.

        Raises EngineRefused when the folder is not an intact adapter for the engine's base model.
        """
        ...

    async def ensure_unloaded(self, name: str) -> bool:
        """Unload the adapter unless it is gone. True when this call unloaded it."""
        ...

    async def probe(self, name: str | None) -> float:
        """Generate one token; returns the seconds it took. The proof before any traffic."""
        ...

    async def complete(
        self,
        model: str | None,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> Completion:
        """Continue the prompt greedily, up to a stop string or ``max_tokens`` tokens."""
        ...

    async def draw(
        self,
        model: str | None,
        prompt: str,
        *,
        count: int,
        seed: int,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> tuple[Completion, ...]:
        """``count`` continuations drawn from the model's own distribution, at most ``MAX_DRAWN``.

        The same seed draws the same again, but where two tokens' chances differ in their last digits.
        """
        ...

    def stream(
        self,
        model: str | None,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float | None = None,
        stop: Sequence[str] = STOPS,
    ) -> AsyncIterator[CompletionChunk]:
        """As ``complete``, piece by piece."""
        ...


def check_adapter_name(name: str) -> str:
    """The name itself. Raises EngineRefused for one that no engine may hold."""
    if not ADAPTER_NAME.fullmatch(name):
        raise EngineRefused(
            f"adapter name {name[:80]!r} is not allowed: lower-case letters, digits and ._@- only, "
            "starting with a letter or digit, at most 200 characters",
            status=400,
        )
    return name
