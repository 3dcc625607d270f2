"""What is said, and the seam to those who carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, get_args

MAX_KEY_CHARACTERS = 200
MAX_EVIDENCE = 200
MAX_ACTIONS = 10

Doing = Literal["approve", "pause", "resume", "abort", "rollback"]


@dataclass(frozen=True)
class Action:
    """What a person may do about it at the press of a button, where a channel has buttons."""

    what: Doing
    rollout_id: str


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
    exposed: str = ""
    """Who answers what from now on."""
    actions: tuple[Action, ...] = ()
    thread: str = ""
    """Messages of one thread stand together, e.g. a rollout's; they are of one topic."""
    progress: bool = False
    """Nobody is called for it: a channel that can edit shows it in its thread's first message, one that
    only calls leaves it out."""

    def __post_init__(self) -> None:
        for name in ("key", "topic"):
            if not 0 < len(getattr(self, name)) <= MAX_KEY_CHARACTERS:
                raise ValueError(f"a message's {name} has 1 to {MAX_KEY_CHARACTERS} characters")
        if len(self.thread) > MAX_KEY_CHARACTERS:
            raise ValueError(f"a message's thread has at most {MAX_KEY_CHARACTERS} characters")
        if len(self.actions) > MAX_ACTIONS:
            raise ValueError(f"a message has at most {MAX_ACTIONS} actions")
        if not self.title:
            raise ValueError("a message has a title")
        if len(self.evidence) > MAX_EVIDENCE:
            raise ValueError(f"a message has at most {MAX_EVIDENCE} pieces of evidence")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "evidence": dict(self.evidence),
            "actions": [asdict(action) for action in self.actions],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """Raises ValueError for what ``to_dict`` did not write; unknown names are left out."""
        try:
            known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
            known["actions"] = tuple(
                Action(action["what"], action["rollout_id"])
                for action in known.get("actions", ())
                # One that a newer release added is one that this release cannot do.
                if action["what"] in get_args(Doing)
            )
            return cls(**known)
        except (TypeError, KeyError) as error:
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

    def send(self, message: Message, tried_since: datetime | None = None) -> None:
        """Returns when the receiver has it, within a bounded time. Raises DeliveryFailed.

        Args:
            tried_since: a try since then may have reached the receiver, and nobody knows: a channel
                that can look looks first, and does not say it twice.
        """
        ...
