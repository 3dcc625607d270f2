"""What an adapter must fit: the fingerprint of a base model folder and the shapes of its layers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from infra.artifacts.manifest import ArtifactError, digest_files
from infra.artifacts.weights import read_header

_CHUNK = 1 << 20


@dataclass(frozen=True)
class BaseShape:
    """A base model as an adapter sees it."""

    digest: str
    """Fingerprint of the folder, 64 hex characters."""
    matrices: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Module path (``model.layers.0.self_attn.q_proj``) to (out, in) features."""


def read_base_shape(folder: Path) -> BaseShape:
    """Read fingerprint and matrix shapes of a base model folder, without torch.

    Raises ArtifactError for a folder without ``config.json``, tokenizer or safetensors weights.
    """
    matrices: dict[str, tuple[int, int]] = {}
    for path in _weight_files(folder):
        for name, tensor in read_header(path).items():
            if name.endswith(".weight") and len(tensor.shape) == 2:
                matrices[name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return BaseShape(fingerprint(folder), matrices)


def fingerprint(folder: Path) -> str:
    """Digest of what decides a base model's answers: config, weights and tokenizer.

    Raises ArtifactError for a folder without ``config.json``, tokenizer or safetensors weights.
    """
    weights = _weight_files(folder)
    files = [folder / "config.json", folder / "tokenizer.json", *weights]
    for path in files[:2]:
        if not path.is_file():
            raise ArtifactError(f"base model folder {folder} has no {path.name}")
    return digest_files({path.name: sha256_file(path) for path in files})


def sha256_file(path: Path) -> str:
    """sha256 of a file, 64 hex characters; remembered while size and time stamps stay the same."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, inode: int, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    weights = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not weights:
        raise ArtifactError(
            f"base model folder {folder} has no safetensors weights; convert it first "
            "(pickled weights are never loaded)"
        )
    return weights
