"""What one training run is: frozen, hashed, readable without torch.

Same spec, same seed, same hardware: same adapter. The digest names the run folder, so a night that
is run again finds what is already trained.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from infra.prompting.template import PromptFormat

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = PROJECTIONS
    last_layers: int | None = Field(None, ge=1, description="Adapt only the last N layers")
    rslora: bool = False
    """Scale by alpha / sqrt(rank); written as the plain LoRA that computes the same."""
    dora: bool = False
    """Weight-decomposed LoRA. Refused: the engines compute plain LoRA only."""

    @field_validator("dora")
    @classmethod
    def _servable(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "DoRA is not trained, since no engine here could serve it: take rslora or another rank"
            )
        return value


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
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    warmup_share: float = Field(0.05, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(16, ge=1)
    """Examples per optimizer step."""
    batching: Literal["grouped", "packed", "shuffled"] = "grouped"
    """grouped: examples of like length share a batch; packed: a batch is one row without padding,
    each example attending to itself only; shuffled: neither."""
    steps: int = Field(200, ge=1)
    patience: int | None = Field(None, ge=1)
    """Validations in a row without a better loss before the run ends; None: never early."""
    max_sequence_tokens: int = Field(512, ge=16)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the base model; fp32 is refused by the unsloth backend on a GPU that has bf16."""
    load_in_4bit: bool = False
    """Hold the base in 4 bit while training (unsloth backend); it is served as it is."""
    processes: int = Field(1, ge=1, le=64)
    """That share each step's examples, by Ray Train: the same steps up to rounding."""
    checkpoint_steps: int = Field(25, ge=1)
    data_share: float = Field(1.0, gt=0, le=1)
    """Share of the training examples used: for learning curves."""
    old_share: float = Field(0.0, ge=0, lt=1)
    """Share of each step's examples, on average, that come from ``old_datasets``."""
    old_datasets: tuple[str, ...] = ()
    """Digests of earlier data sets mixed in, so that a retraining does not forget."""
    labels_digest: str | None = None
    """sha256 of the teacher's new answers that replace disagreeing ones; None: as logged."""
    seed: int = Field(7, ge=0)
    shuffle_answers: bool = False
    """Train on answers dealt to the wrong prompts: a deliberately bad adapter, for drills only."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if bool(self.old_share) != bool(self.old_datasets):
            raise ValueError("old_share and old_datasets go together: name both or neither")
        if self.batch_size % self.processes:
            raise ValueError(
                f"a step of {self.batch_size} examples does not divide among {self.processes} "
                "processes: set batch_size to a multiple"
            )
        return self

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the spec, 64 hex characters."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat.from_dict(self.format)
