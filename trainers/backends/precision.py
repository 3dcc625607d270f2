"""In which number format a base model is held."""

from __future__ import annotations

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


def _processor_has_bf16(description: Path) -> bool:
    try:
        words = set(description.read_text(errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
