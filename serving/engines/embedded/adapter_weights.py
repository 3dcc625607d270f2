"""Read a verified PEFT adapter folder into weights for the bank."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from infra.artifacts.base import BaseShape
from infra.artifacts.folder import verify_folder
from infra.artifacts.manifest import CONFIG, WEIGHTS, ArtifactError
from serving.engines.embedded.mixed_lora import PROJECTIONS, AdapterWeights

PREFIX = "base_model.model."


def read_adapter(
    name: str, folder: Path, base: BaseShape, layers: Container[str], *, max_rank: int
) -> AdapterWeights:
    """Verify the folder, then read it.

    Args:
        name: the adapter's name; the folder's manifest must say the same.
        folder: a local adapter folder.
        base: the base model it is for.
        layers: module paths that can be adapted.
        max_rank: the largest rank that is served.

    Raises:
        ArtifactError: the folder must not be served, and why.
    """
    manifest = verify_folder(folder, base, max_rank=max_rank)
    if manifest.name != name:
        raise ArtifactError(f"the folder holds {manifest.name}, not {name}")
    config = json.loads((folder / CONFIG).read_bytes())
    rank, scale = int(config["r"]), float(config["lora_alpha"]) / int(config["r"])
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as file:
            for key in list(file.keys()):
                path, _, half = key.removesuffix(".weight").rpartition(".lora_")
                halves.setdefault(path.removeprefix(PREFIX), {})[half] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{WEIGHTS} of {name} cannot be read: {error}") from error
    unknown = [path for path in halves if path not in layers]
    if unknown:
        raise ArtifactError(
            f"{name} adapts {unknown[0]}; the embedded engine adapts {', '.join(PROJECTIONS)} only"
        )
    # Scaled in float32: rounding to the model's type comes once, at the end.
    pairs = {path: (pair["A"].float(), pair["B"].float() * scale) for path, pair in halves.items()}
    return AdapterWeights(rank, pairs)
