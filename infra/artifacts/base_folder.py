"""Where a base model's files are on this machine, found without fetching or converting anything."""

from __future__ import annotations

import re
from pathlib import Path

from infra.artifacts.manifest import ArtifactError
from infra.settings.serving import Engine

CONVERSION_VERSION = 1
PACKAGED_SHA256 = {
    "smollm2-135m": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
}
"""Packaged models by name, with the digest of the file that they are converted from."""
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w.-]+)?$")


def converted_folder(models: Path, name: str, sha256: str) -> Path:
    """Where the converted form of a packaged model belongs."""
    return models / f"{name}-{sha256[:12]}-v{CONVERSION_VERSION}"


def local_base_folder(settings: Engine) -> Path:
    """The folder of ``settings.base_model``: converted before, named directly, or in the hub's cache.

    Raises ArtifactError when it is not there, saying how to bring it.
    """
    name = settings.base_model
    if name in PACKAGED_SHA256:
        folder = converted_folder(settings.models, name, PACKAGED_SHA256[name])
        if not folder.is_dir():
            raise ArtifactError(
                f"base model {name} is not at {folder}: copy that folder from a machine that trains "
                "or run `nightschool up` once, or set engine.models to where it is"
            )
        return folder
    if Path(name).is_dir():
        return Path(name)
    cached = _cached(name) if HUB_ID.match(name) and not name.startswith(".") else None
    if cached is None:
        raise ArtifactError(
            f"the files of engine.base_model {name!r} are not on this machine: adapters are checked "
            "against config.json, tokenizer.json and *.safetensors of the base before the engine "
            "gets them; set engine.base_model to a folder that has them"
        )
    return cached


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        return None
    identifier, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(identifier, revision=revision or None, local_files_only=True))
    except Exception:  # noqa: BLE001 - the hub client raises many unrelated kinds: it is not there
        return None
