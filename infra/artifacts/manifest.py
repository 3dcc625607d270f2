"""What an adapter says of itself: which task, which base, which data, which files, how sure.

The manifest travels with the weights as ``manifest.json``. The adapter's digest is over its payload
files only, so metrics and the calibrated threshold can be written once judging is done without
changing the adapter's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from infra.prompting.confidence import MEAN

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
CARD = "card.md"
CURVE = "curve.svg"
"""The picture on the card."""
PAYLOAD = (CONFIG, WEIGHTS)
"""The files that make an adapter what it is, in sorted order."""

TASK_ID = r"^[a-z0-9][a-z0-9-]{0,40}$"
_SHA256 = r"^[0-9a-f]{64}$"


class ArtifactError(Exception):
    """An adapter or base model folder that must not be used; the message says what is wrong with it."""


class AdapterManifest(BaseModel):
    """Unknown fields survive a round trip, so that an older reader does not lose a newer one's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: int = 1
    name: str
    """``task_id@digest[:16]``; never used for other weights."""
    task_id: str = Field(pattern=TASK_ID)
    digest: str = Field(pattern=_SHA256)
    files: dict[str, str]
    """Payload file name to sha256, 64 hex characters."""
    pictures: dict[str, str] = Field(default_factory=dict)
    """File name to sha256 of what only describes the adapter; no part of its digest."""
    base_model: str
    base_digest: str
    """Fingerprint of the base model's folder, see ``base.fingerprint``."""
    spec: dict[str, Any]
    """The TrainSpec it was trained with, as JSON."""
    spec_digest: str
    dataset_digest: str
    format: dict[str, bool | int]
    """PromptFormat: what the prompt leaves out."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    threshold: float | None = None
    """Calibrated confidence an answer must reach; None: every checked answer."""
    confidence: str = Field(default=MEAN, max_length=40)
    """Which score the threshold is for, see ``prompting.confidence``. One that a reader does not know
    is never reached."""
    libraries: dict[str, str] = Field(default_factory=dict)
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _consistent(self) -> AdapterManifest:
        if sorted(self.files) != sorted(PAYLOAD):
            raise ValueError(f"files must be exactly {', '.join(PAYLOAD)}")
        if not set(self.pictures) <= {CURVE}:
            raise ValueError(f"pictures may only name {CURVE}")
        if digest_files(self.files) != self.digest:
            raise ValueError("digest is not the digest of files")
        if self.name != adapter_name(self.task_id, self.digest):
            raise ValueError("name is not task_id@digest[:16]")
        return self

    def to_json(self) -> bytes:
        """Canonical: sorted keys, two spaces, newline at the end."""
        body = self.model_dump(mode="json")
        return (json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def adapter_name(task_id: str, digest: str) -> str:
    """The name under which every engine, route and event knows the adapter."""
    return f"{task_id}@{digest[:16]}"


def digest_files(files: Mapping[str, str]) -> str:
    """sha256 over the sorted ``name NUL sha256 LF`` lines of ``files``, 64 hex characters."""
    lines = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
