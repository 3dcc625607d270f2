"""What is said, and the seam to those who carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

MAX_KEY_CHARACTERS = 200
MAX_EVIDENCE = 200


@dataclass(frozen=True)
class Message:
    """One thing that happened, as somebody who was not there needs it. No personal data."""

    key: str
    """Says a message once: the same key is the same message, e.g. ``rollout-7/promoted``."""
    topic: str
    """Messages of one topic arrive in order, e.g. a task's id."""
    title: str
    what: str
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Names to numbers or short texts."""
    link: str = ""
    """Where to look, http or https."""
    undo: str = ""
    """The command that takes it back."""

    def __post_init__(self) -> None:
        for name in ("key", "topic"):
            if not 0 < len(getattr(self, name)) <= MAX_KEY_CHARACTERS:
                raise ValueError(f"a message's {name} has 1 to {MAX_KEY_CHARACTERS} characters")
        if not self.title:
            raise ValueError("a message has a title")
        if len(self.evidence) > MAX_EVIDENCE:
            raise ValueError(f"a message has at most {MAX_EVIDENCE} pieces of evidence")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"evidence": dict(self.evidence)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """Raises ValueError for what ``to_dict`` did not write; unknown names are left out."""
        try:
            return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})
        except TypeError as error:
            raise ValueError(f"not a message: {error}") from None


class DeliveryFailed(Exception):
    """A channel did not take a message. The text holds no secret (addresses may be secrets).

    Attributes:
        retry_after_seconds: the receiver's own wish; such a refusal does not count as an attempt.
        permanent: this message will never be taken.
    """

    def __init__(
        self, reason: str, *, retry_after_seconds: float | None = None, permanent: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
        self.permanent = permanent


class Channel(Protocol):
    """Carries messages somewhere. Called from one thread at a time."""

    def send(self, message: Message) -> None:
        """Returns when the receiver has it, within a bounded time. Raises DeliveryFailed."""
        ...
