"""Load the base model and its tokenizer from a folder, for serving on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from infra.artifacts.manifest import ArtifactError
from infra.artifacts.weights import read_header

LARGE_PARAMETERS = 400_000_000

Precision = Literal["auto", "bfloat16", "float32"]


class BaseModelRefused(ValueError):
    """The folder holds no model that the embedded engine can serve."""


@dataclass(frozen=True)
class BaseModel:
    model: Any
    """A transformers causal language model in eval mode."""
    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    """Tokens that end any answer."""
    pad_token: int
    special_tokens: dict[str, int]
    """Text of each control token to its id."""
    longest_token: int
    """Characters of the vocabulary's longest token: no text has fewer than length / this tokens."""
    max_tokens: int
    """Prompt and answer together."""
    precision: str
    folder: Path

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        # The plain tokenizer keeps no state between calls, so threads may share it.
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text


def choose_precision(precision: Precision, parameters: int) -> torch.dtype:
    """The type to compute in; ``auto`` decides by size and processor.

    A small model gains no speed from bfloat16 (135M parameters on AVX512-BF16: prompts a quarter
    slower, tokens within a tenth) and loses that a text is the same in any company. A large one
    has its weights to stream, and half of them is half the time, where the hardware multiplies it.
    """
    if precision == "auto":
        large = parameters >= LARGE_PARAMETERS
        return torch.bfloat16 if large and _has_bfloat16() else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def count_parameters(folder: Path) -> int:
    """Parameters in the folder's safetensors files, without loading them. Raises ArtifactError."""
    return sum(
        math.prod(tensor.shape)
        for path in folder.glob("*.safetensors")
        for tensor in read_header(path).values()
    )


def load_base_model(folder: Path, precision: Precision = "auto") -> BaseModel:
    """Load weights (safetensors only) and tokenizer. Raises BaseModelRefused."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise BaseModelRefused(f"{folder} has no {name}: it is not a model folder")
    try:
        dtype = choose_precision(precision, count_parameters(folder))
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, ArtifactError) as error:
        raise BaseModelRefused(f"{folder} cannot be loaded: {error}") from error
    config = model.config
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()) or (
        getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    ):
        raise BaseModelRefused(
            f"{folder} is a model with windowed or linear attention; serve it with vLLM"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ends = _end_tokens(model)
    return BaseModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        end_tokens=ends,
        pad_token=config.pad_token_id if config.pad_token_id is not None else 0,
        special_tokens={
            token.content: number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        },
        longest_token=max(map(len, tokenizer.get_vocab())),
        max_tokens=int(config.max_position_embeddings),
        precision=str(dtype).removeprefix("torch."),
        folder=folder,
    )


def _end_tokens(model: Any) -> frozenset[int]:
    ends: set[int] = set()
    for source in (model.config, model.generation_config):
        value = getattr(source, "eos_token_id", None)
        ends.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ends)


def _has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
