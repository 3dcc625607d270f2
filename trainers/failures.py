"""How a run can end without an adapter: a named state with its reason, and whether to try again.

What is worth another try is what may be different the next time (a full disk, a store out of
reach); what follows from spec, data and base model is not.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from pydantic import ValidationError

from infra.objects.store import ObjectRefused, ObjectStoreError

FailureState = Literal[
    "loss_not_finite",
    "out_of_memory",
    "empty_split",
    "examples_too_long",
    "chat_template_missing",
    "target_modules_missing",
    "base_model_unusable",
    "gpu_missing",
    "library_missing",
    "disk_full",
    "storage_refused",
    "storage_unreachable",
    "worker_lost",
    "cluster_lost",
    "stuck",
    "spec_invalid",
    "unexpected",
]
STATES: tuple[str, ...] = get_args(FailureState)


class TrainingError(Exception):
    """The run cannot succeed as it is asked for; trying again would change nothing."""

    def __init__(self, message: str, state: FailureState = "unexpected") -> None:
        super().__init__(message)
        self.state: FailureState = state


@dataclass(frozen=True)
class Failure:
    """What ``error.json`` of a run folder holds."""

    state: FailureState
    message: str
    again: bool
    """Whether another process may have better luck."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Failure:
        value = json.loads(text)
        state = value.get("state", "unexpected")
        return cls(
            state if state in STATES else "unexpected",
            str(value["message"]),
            bool(value.get("again", False)),
        )


def classify(error: BaseException) -> Failure:
    """The named state of whatever ended a run."""
    if isinstance(error, TrainingError):
        return Failure(error.state, str(error)[:2000], False)
    if isinstance(error, ValidationError):
        return Failure("spec_invalid", f"the run's files are not valid: {error}"[:2000], False)
    message = f"{type(error).__name__}: {error}"[:2000]
    if is_out_of_memory(error):
        return Failure("out_of_memory", message, True)
    if is_disk_full(error):
        return Failure("disk_full", f"{message}: free space below training.runs", True)
    if isinstance(error, ObjectStoreError):
        refused = isinstance(error, ObjectRefused)
        return Failure("storage_refused" if refused else "storage_unreachable", message, True)
    return Failure("unexpected", message, isinstance(error, OSError))


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what it came from, says that no space is left."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Some libraries write from native code and keep only the words.
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the processor."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (
            isinstance(error, RuntimeError)
            and any(word in str(error) for word in ("out of memory", "can't allocate memory"))
        )
    )
