"""The console: the channel that is always there."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TextIO

from infra.notify.message import DeliveryFailed, Message


class ConsoleChannel:
    """``Channel`` that writes to a stream, standard error unless told otherwise."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        try:
            print(plain_text(message), file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError) as error:
            raise DeliveryFailed(f"the console is gone ({type(error).__name__})") from None


def plain_text(message: Message) -> str:
    """The message in lines, without characters that a terminal would act upon."""
    lines = [f"* {message.title}", f"  {message.what}"]
    if message.exposed:
        lines.append(f"  {message.exposed}")
    if message.why:
        lines.append(f"  why: {message.why}")
    if message.evidence:
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in message.evidence.items()
        )
        lines.append(f"  evidence: {shown}")
    if message.link:
        lines.append(f"  see: {message.link}")
    if message.undo:
        lines.append(f"  undo: {message.undo}")
    return "\n".join(
        "".join(character if character.isprintable() else " " for character in line)
        for line in lines
    )
