"""A scorer in a process of its own: asked over pipes, killed when it takes too long.

    python -m evaluators.scorer_process

One JSON object a line: first ``{"use", "options", "timeout_seconds"}``, then
``{"expected", "got", "request"}`` each. Every line is answered by one: ``{"score": 0.5}`` or
``{"failed": "why"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evaluators.scorers import BadScore, Scorer, ScorerUnusable, checked_score, make_scorer

START_SECONDS = 60.0
GIVE_UP_AFTER = 3
"""Answers in a row at which its process hung or died; the rest is not scored."""
MAX_REPLY_BYTES = 1 << 16


class Scored(NamedTuple):
    """One answer's score, or why there is none."""

    value: float
    failure: str | None = None


@dataclass(frozen=True)
class Scorable:
    """One answer to score."""

    expected: Mapping[str, Any]
    got: Mapping[str, Any]
    request: Mapping[str, Any]


async def score_all(
    use: str, options: Mapping[str, Any], answers: Sequence[Scorable], *, timeout_seconds: float
) -> list[Scored]:
    """Score every answer; none of what a scorer does ends more than its own scores.

    Raises ScorerUnusable when it cannot be made at all.
    """
    found: list[Scored] = []
    lost = 0
    process = _Process(use, options, timeout_seconds)
    try:
        for answer in answers:
            if lost >= GIVE_UP_AFTER:
                found.append(Scored(0.0, f"not scored after {lost} that hung or died"))
                continue
            scored, alive = await process.score(answer)
            lost = 0 if alive else lost + 1
            found.append(scored)
    finally:
        await process.close()
    return found


class _Process:
    """Started at the first answer, and again after one that it did not survive."""

    def __init__(self, use: str, options: Mapping[str, Any], timeout_seconds: float) -> None:
        self._use, self._options, self._seconds = use, options, timeout_seconds
        self._child: asyncio.subprocess.Process | None = None

    async def score(self, answer: Scorable) -> tuple[Scored, bool]:
        """The score, and whether the process is still there. Raises ScorerUnusable."""
        if self._child is None:
            await self._start()
        asked = {"expected": answer.expected, "got": answer.got, "request": answer.request}
        try:
            reply = await self._ask(asked, self._seconds)
        except TimeoutError:
            await self.close()
            return Scored(0.0, f"no score within {self._seconds:g} seconds"), False
        except (OSError, ValueError):
            await self.close()
            return Scored(0.0, "its process died"), False
        if "failed" in reply:
            return Scored(0.0, str(reply["failed"])), True
        try:
            return Scored(checked_score(reply.get("score"))), True
        except BadScore as error:
            return Scored(0.0, str(error)), True

    async def _start(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "evaluators.scorer_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_REPLY_BYTES,
            start_new_session=True,
        )
        first = {"use": self._use, "options": self._options, "timeout_seconds": self._seconds}
        try:
            reply = await self._ask(first, START_SECONDS)
        except (OSError, ValueError, TimeoutError):
            await self.close()
            raise ScorerUnusable(f"the process of the scorer {self._use!r} did not start") from None
        if "failed" in reply:
            raise ScorerUnusable(str(reply["failed"]))

    async def _ask(self, value: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Raises TimeoutError, OSError and ValueError (it is gone, or answers something else)."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        async with asyncio.timeout(seconds):
            child.stdin.write(json.dumps(value).encode() + b"\n")
            await child.stdin.drain()
            reply = json.loads(await child.stdout.readline())
        if not isinstance(reply, dict):
            raise ValueError("not an object")
        return reply

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # with whatever it started itself
        await child.wait()


def main() -> None:
    """Answer on a copy of stdout: what a scorer prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def reply(value: Mapping[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    lines = sys.stdin.buffer
    first = json.loads(lines.readline())
    try:
        scorer = make_scorer(first["use"], first["options"])
    except ScorerUnusable as error:
        reply({"failed": str(error)})
        return
    reply({"ready": True})
    # Whoever asked may be killed meanwhile: then nobody else would end a scorer that hangs.
    seconds = math.ceil(first["timeout_seconds"]) + 60
    for line in lines:
        signal.alarm(seconds)
        reply(_scored(scorer, json.loads(line)))
        signal.alarm(0)


def _scored(scorer: Scorer, asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"score": checked_score(scorer(asked["expected"], asked["got"], asked["request"]))}
    except BadScore as error:
        return {"failed": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it raises is a failure of its own
        return {"failed": f"it raised {type(error).__name__}"}


if __name__ == "__main__":
    main()
