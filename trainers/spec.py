"""What one training run is: frozen, hashed, readable without torch.

Same spec, same seed, same hardware: same adapter. The digest names the run folder, so a night that
is run again finds what is already trained.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.prompting.template import PromptFormat

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = PROJECTIONS
    last_layers: int | None = Field(None, ge=1, description="Adapt only the last N layers")


class TrainSpec(BaseModel):
    """One LoRA training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task_id: str
    base_model: str
    base_digest: str
    """Fingerprint of the base model's weights and tokenizer."""
    dataset_digest: str
    lora: LoraSpec = LoraSpec()
    format: dict[str, bool | int] = Field(default_factory=lambda: PromptFormat().to_dict())
    """PromptFormat as a dict: what the prompt leaves out."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    warmup_share: float = Field(0.05, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(16, ge=1)
    steps: int = Field(200, ge=1)
    max_sequence_tokens: int = Field(512, ge=16)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpoint_steps: int = Field(25, ge=1)
    seed: int = Field(7, ge=0)
    shuffle_answers: bool = False
    """Train on answers dealt to the wrong prompts: a deliberately bad adapter, for drills only."""

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the spec, 64 hex characters."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat.from_dict(self.format)
