"""In which number format a base model is held, and what makes two runs of it the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal


def base_precision(asked: Literal["auto", "bf16", "fp32"]) -> Literal["bfloat16", "float32"]:
    """The torch type name for a spec's precision.

    ``auto`` is bfloat16 where the hardware multiplies in it: emulated, it is slower than float32.
    """
    if asked != "auto":
        return "bfloat16" if asked == "bf16" else "float32"
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _processor_has_bf16(Path("/proc/cpuinfo")) else "float32"


def begin_alike(seed: int) -> None:
    """Make this process's run the same as any other one's of that seed, on a GPU as far as its kernels allow.

    To be called before anything is computed there.
    """
    import torch
    from transformers import set_seed

    set_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def _processor_has_bf16(description: Path) -> bool:
    try:
        words = set(description.read_text(errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
