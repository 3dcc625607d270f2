"""Read what a safetensors file declares without torch, and refuse what it must not contain.

Format: 8 bytes little-endian header length, JSON header ``{name: {dtype, shape, data_offsets}}``,
then the tensors' bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.artifacts.manifest import ArtifactError

MAX_HEADER_BYTES = 64 << 20
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2}
_SIZES |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
# All exponent bits set means infinity or not-a-number.
_EXPONENT: Mapping[str, tuple[str, int]] = {
    "F32": ("<u4", 0x7F800000),
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; ``start`` and ``end`` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Name to tensor for a safetensors file.

    Raises ArtifactError when the file is not safetensors, is cut off, or its offsets overlap.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ArtifactError(f"{path.name} is not a safetensors file (bad header length)")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(value, 8 + length) for name, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path.name} is not a safetensors file (bad header)") from error
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != position or tensor.end - tensor.start != _bytes(tensor):
            raise ArtifactError(f"{path.name}: tensor {name} has wrong offsets")
        position = tensor.end
    if position != size:
        raise ArtifactError(f"{path.name} is cut off or has bytes that belong to no tensor")
    return tensors


def refuse_not_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError naming the first tensor that holds an infinity or not-a-number."""
    if not tensors:
        return
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for name, tensor in tensors.items():
        kind, mask = _EXPONENT[tensor.dtype]
        bits = np.frombuffer(data[tensor.start : tensor.end].tobytes(), dtype=kind)
        if bool(np.any((bits & mask) == mask)):
            raise ArtifactError(f"{path.name}: tensor {name} holds values that are not finite")


def _tensor(value: Mapping[str, Any], base: int) -> Tensor:
    start, end = value["data_offsets"]
    shape = tuple(int(extent) for extent in value["shape"])
    if any(extent < 0 for extent in shape) or value["dtype"] not in _SIZES:
        raise ValueError("shape or dtype")
    return Tensor(str(value["dtype"]), shape, base + int(start), base + int(end))


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * _SIZES[tensor.dtype]
