"""Verify an adapter folder before anything loads it, and pull adapters from object storage.

Engines accept too much: a wrong-shaped adapter or a pickle may load without a word. So every folder
is checked here first, without torch: an allow-list of files, every sha256, the LoRA configuration,
each tensor's shape against the base model, and the base model's fingerprint.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.artifacts.base import BaseShape, sha256_file
from infra.artifacts.manifest import (
    CARD,
    CONFIG,
    CURVE,
    MANIFEST,
    PAYLOAD,
    WEIGHTS,
    AdapterManifest,
    ArtifactError,
    adapter_name,
    digest_files,
)
from infra.artifacts.weights import read_header, refuse_not_finite
from infra.objects.store import ObjectMissing, ObjectStore

MAX_MANIFEST_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 4 << 30
_ALLOWED = {*PAYLOAD, MANIFEST, CARD, CURVE}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_DTYPES = {"F32", "F16", "BF16"}
# Options that change the arithmetic beyond W + (alpha / r) B A, which every engine computes.
_REFUSED = (
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "fan_in_fan_out",
    "auto_mapping",
)


def digest_folder(folder: Path) -> tuple[str, dict[str, str]]:
    """The adapter digest of a folder and its payload's sha256 by file name.

    Raises ArtifactError when a payload file is missing.
    """
    for name in PAYLOAD:
        if not (folder / name).is_file():
            raise ArtifactError(f"adapter folder {folder} has no {name}")
    files = {name: sha256_file(folder / name) for name in PAYLOAD}
    return digest_files(files), files


def read_manifest(folder: Path) -> AdapterManifest:
    """Raises ArtifactError when ``manifest.json`` is missing, too large or not a manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"adapter folder {folder} has no {MANIFEST}: package it with the trainer, "
            "adapters of unknown origin are not loaded"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{MANIFEST} of {folder} is larger than {MAX_MANIFEST_BYTES} bytes")
    return parse_manifest(path.read_bytes())


def parse_manifest(data: bytes) -> AdapterManifest:
    """Raises ArtifactError naming the fields that are wrong."""
    try:
        return AdapterManifest.model_validate_json(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}"
            for item in error.errors()[:5]
        )
        raise ArtifactError(f"{MANIFEST} is not valid: {problems}") from error


def verify_folder(
    folder: Path, base: BaseShape | None = None, *, max_rank: int | None = None
) -> AdapterManifest:
    """Everything that must hold before an engine loads ``folder``; returns its manifest.

    Args:
        folder: a local adapter folder.
        base: the base model it is to run on; None skips shapes and fingerprint (storage checks).
        max_rank: the largest rank the engine takes; None for no limit.

    Raises ArtifactError with the first thing that is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"adapter folder {folder} does not exist")
    _verify_listing(folder)
    manifest = read_manifest(folder)
    digest, files = digest_folder(folder)
    for name, expected in manifest.files.items():
        if files[name] != expected:
            raise ArtifactError(
                f"{name} of {manifest.name} is corrupt: its sha256 is {files[name][:12]}, "
                f"the manifest says {expected[:12]}; pull it again"
            )
    for name, expected in manifest.pictures.items():
        path = folder / name
        if path.exists() and sha256_file(path) != expected:
            raise ArtifactError(f"{name} of {manifest.name} is corrupt: pull it again")
    if digest != manifest.digest:
        raise ArtifactError(f"{manifest.name}: the folder's digest is {digest[:16]}")
    if base is not None and manifest.base_digest != base.digest:
        raise ArtifactError(
            f"{manifest.name} was trained on base {manifest.base_model} "
            f"({manifest.base_digest[:12]}), the engine runs {base.digest[:12]}: retrain it"
        )
    rank, targets = _verify_config(folder / CONFIG, manifest.name, max_rank)
    _verify_weights(folder / WEIGHTS, manifest.name, rank, targets, base)
    return manifest


def pull(store: ObjectStore, location: str, cache_dir: Path) -> Path:
    """Bring the adapter at ``location`` (``adapters/<task>/<digest>``) to local disk, verified.

    The folder appears whole or not at all; two pulls at once are safe; one that is already there
    and sound is used as it is, without asking the store; a damaged one is fetched again.

    Raises ArtifactError (no manifest, wrong digest, any fault ``verify_folder`` finds) and
    ObjectStoreError (store out of reach).
    """
    location = location.rstrip("/")
    here = _sound_copy(location, cache_dir)
    if here is not None:
        return here
    try:
        manifest = parse_manifest(_download(store, f"{location}/{MANIFEST}", MAX_MANIFEST_BYTES))
    except ObjectMissing as error:
        raise ArtifactError(f"no adapter at {location}: there is no {MANIFEST}") from error
    if location.rpartition("/")[2] != manifest.digest:
        raise ArtifactError(f"{location} holds {manifest.name}, whose digest is another")
    target = Path(cache_dir) / manifest.name
    if target.exists():
        try:
            verify_folder(target)
        except ArtifactError:
            # Renamed, not deleted: an engine may still hold files of it open.
            _rename_away(target)
        else:
            return target
    scratch = Path(cache_dir) / f".pull-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        (scratch / MANIFEST).write_bytes(manifest.to_json())
        for name in PAYLOAD:
            _save(store, f"{location}/{name}", scratch / name)
        verify_folder(scratch)
        try:
            scratch.rename(target)
        except OSError:
            # Another pull was faster: its folder is used, if it is sound.
            verify_folder(target)
    except ObjectMissing as error:
        raise ArtifactError(
            f"adapter {manifest.name} at {location} is incomplete: {error}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _sound_copy(location: str, cache_dir: Path) -> Path | None:
    """The local copy of what belongs at ``location``, if there is one that is whole."""
    task_id, _, digest = location.removeprefix("adapters/").rpartition("/")
    target = Path(cache_dir) / adapter_name(task_id, digest)
    try:
        manifest = verify_folder(target)
    except (ArtifactError, OSError):
        return None
    return target if (manifest.name, manifest.digest) == (target.name, digest) else None


def _verify_listing(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLES:
            raise ArtifactError(
                f"{path.name} in {folder} may hold a pickle, which runs code when it is loaded; "
                "weights must be safetensors"
            )
        if path.name not in _ALLOWED or path.is_symlink() or not path.is_file():
            raise ArtifactError(
                f"{path.name} in {folder} does not belong to an adapter; "
                f"allowed are {', '.join(sorted(_ALLOWED))}"
            )


def _verify_config(path: Path, name: str, max_rank: int | None) -> tuple[int, set[str]]:
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        rank, targets = int(config["r"]), config["target_modules"]
        alpha = float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{CONFIG} of {name} is not a LoRA configuration") from error
    if config.get("peft_type") != "LORA" or not isinstance(targets, list) or not targets:
        raise ArtifactError(f"{CONFIG} of {name}: only LoRA with listed target modules is served")
    if config.get("bias", "none") != "none":
        raise ArtifactError(f"{CONFIG} of {name}: trained biases are not served")
    for option in _REFUSED:
        if config.get(option):
            raise ArtifactError(f"{CONFIG} of {name}: option {option} is not served")
    if rank < 1 or alpha <= 0 or (max_rank is not None and rank > max_rank):
        raise ArtifactError(
            f"{name} has rank {rank}; the engine takes 1 to {max_rank}. "
            "Raise engine.max_rank or train with a smaller training.rank"
        )
    return rank, set(targets)


def _verify_weights(
    path: Path, name: str, rank: int, targets: set[str], base: BaseShape | None
) -> None:
    tensors = read_header(path)
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.match(key)
        if not match or tensor.dtype not in _DTYPES or len(tensor.shape) != 2:
            raise ArtifactError(f"{name}: {key[:120]} is not a LoRA matrix in float")
        sides.setdefault(match["module"], {})[match["side"]] = tensor.shape
    if not sides:
        raise ArtifactError(f"{name}: {WEIGHTS} holds no LoRA matrices")
    for module, pair in sides.items():
        _verify_pair(name, module, pair, rank, targets, base)
    refuse_not_finite(path, tensors)


def _verify_pair(
    name: str,
    module: str,
    pair: Mapping[str, tuple[int, ...]],
    rank: int,
    targets: set[str],
    base: BaseShape | None,
) -> None:
    if module.rpartition(".")[2] not in targets:
        raise ArtifactError(f"{name}: {module[:120]} is not among its target modules")
    if set(pair) != {"A", "B"}:
        raise ArtifactError(f"{name}: {module} has lora_{min(pair)} without its partner")
    if pair["A"][0] != rank or pair["B"][1] != rank:
        raise ArtifactError(
            f"{name}: {module} has rank {pair['A'][0]} and {pair['B'][1]}, its config says {rank}"
        )
    if base is None:
        return
    expected = base.matrices.get(module)
    if expected is None:
        raise ArtifactError(f"{name}: the base model has no module {module[:120]}")
    if (pair["B"][0], pair["A"][1]) != expected:
        raise ArtifactError(
            f"{name}: {module} is {pair['B'][0]} x {pair['A'][1]}, "
            f"the base model's is {expected[0]} x {expected[1]}"
        )


def _download(store: ObjectStore, key: str, limit: int) -> bytes:
    with store.open(key) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ArtifactError(f"{key} is larger than {limit} bytes")
    return data


def _save(store: ObjectStore, key: str, path: Path) -> None:
    written = 0
    with store.open(key) as stream, path.open("wb") as out:
        while chunk := stream.read(1 << 20):
            written += len(chunk)
            if written > MAX_WEIGHT_BYTES:
                raise ArtifactError(f"{key} is larger than {MAX_WEIGHT_BYTES} bytes")
            out.write(chunk)


def _rename_away(folder: Path) -> None:
    # OSError here means that another pull has just moved it.
    try:
        folder.rename(folder.with_name(f".damaged-{uuid.uuid4().hex}-{folder.name}"))
    except OSError:
        return
