"""From a finished run to an adapter in object storage that anyone can verify.

``package`` makes the adapter folder (weights, configuration, manifest, card) beside the run; judging
loads that folder. ``publish`` uploads it with what judging found. Objects are created, never
overwritten, and the manifest goes last: an adapter in storage is whole or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.artifacts.base import read_base_shape
from infra.artifacts.folder import digest_folder, parse_manifest, read_manifest, verify_folder
from infra.artifacts.manifest import (
    CARD,
    CURVE,
    MANIFEST,
    PAYLOAD,
    AdapterManifest,
    ArtifactError,
    adapter_name,
)
from infra.objects.store import ObjectExists, ObjectStore
from infra.prompting.confidence import MEAN
from trainers.curve import draw_curve, read_curve
from trainers.run_folder import RunFolder, TrainResult


@dataclass(frozen=True)
class PackagedAdapter:
    """A verified adapter folder on local disk, ready for an engine to load."""

    name: str
    digest: str
    folder: Path
    manifest: AdapterManifest


@dataclass(frozen=True)
class AdapterArtifact:
    """An adapter in object storage."""

    name: str
    digest: str
    location: str
    """Key prefix, ``adapters/<task>/<digest>``; what ``pull`` takes."""
    manifest: AdapterManifest


def package(run_dir: Path) -> PackagedAdapter:
    """Make ``run_dir/packaged/<name>`` from a finished run. The same run gives the same folder.

    Raises ArtifactError when the run has no result or its adapter does not fit its base model.
    """
    run = RunFolder(run_dir)
    result = run.result()
    if result is None:
        raise ArtifactError(f"{run_dir} has no result: train it first")
    curve = draw_curve(*read_curve(run.events_file), result.kept_step).encode()
    manifest = _manifest(run, result, curve)
    target = run.path / "packaged" / manifest.name
    base = read_base_shape(run.request().base_folder)
    if not target.exists():
        scratch = target.with_name(f".{uuid.uuid4().hex}")
        scratch.mkdir(parents=True)
        try:
            for name in PAYLOAD:
                shutil.copyfile(run.adapter / name, scratch / name)
            (scratch / MANIFEST).write_bytes(manifest.to_json())
            (scratch / CURVE).write_bytes(curve)
            (scratch / CARD).write_text(_card(manifest), encoding="utf-8")
            verify_folder(scratch, base)
            if not target.exists():
                scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return PackagedAdapter(manifest.name, manifest.digest, target, verify_folder(target, base))


def publish(
    store: ObjectStore,
    folder: Path,
    *,
    threshold: float | None = None,
    confidence: str = MEAN,
    metrics: Mapping[str, Any] | None = None,
) -> AdapterArtifact:
    """Upload a packaged folder to ``adapters/<task>/<digest>/``; safe to repeat.

    Args:
        threshold: calibrated confidence for the manifest, as judging found it.
        confidence: the score that the threshold is for.
        metrics: figures added to the manifest's.

    Returns what is stored: when the adapter was published before, the manifest of that time.

    Raises ArtifactError when the folder is not sound or other bytes lie under its name, and
    ObjectStoreError.
    """
    verify_folder(folder)
    local = read_manifest(folder)
    manifest = local.model_copy(
        update={
            "threshold": local.threshold if threshold is None else threshold,
            "confidence": local.confidence if threshold is None else confidence,
            "metrics": {**local.metrics, **(metrics or {})},
        }
    )
    location = f"adapters/{manifest.task_id}/{manifest.digest}"
    for name in PAYLOAD:
        _create(store, f"{location}/{name}", (folder / name).read_bytes())
    # Card and curve only describe: the first ones stay.
    for name in manifest.pictures:
        if (folder / name).is_file():
            with contextlib.suppress(ObjectExists):
                store.create(f"{location}/{name}", (folder / name).read_bytes())
    with contextlib.suppress(ObjectExists):
        store.create(f"{location}/{CARD}", _card(manifest).encode())
    try:
        store.create(f"{location}/{MANIFEST}", manifest.to_json())
    except ObjectExists:
        manifest = parse_manifest(store.get(f"{location}/{MANIFEST}"))
    return AdapterArtifact(manifest.name, manifest.digest, location, manifest)


def _create(store: ObjectStore, key: str, data: bytes) -> None:
    try:
        store.create(key, data)
    except ObjectExists as error:
        if store.get(key) != data:
            raise ArtifactError(
                f"{key} exists with other bytes than its name says: storage was tampered with "
                "or is damaged; move that object away before publishing again"
            ) from error


def _manifest(run: RunFolder, result: TrainResult, curve: bytes) -> AdapterManifest:
    spec = run.spec()
    digest, files = digest_folder(run.adapter)
    return AdapterManifest(
        name=adapter_name(spec.task_id, digest),
        task_id=spec.task_id,
        digest=digest,
        files=files,
        pictures={CURVE: hashlib.sha256(curve).hexdigest()},
        base_model=spec.base_model,
        base_digest=spec.base_digest,
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest,
        dataset_digest=spec.dataset_digest,
        format=spec.format,
        metrics={
            "training": result.model_dump(
                mode="json", exclude={"libraries", "finished"}, exclude_none=True
            )
        },
        libraries=result.libraries,
        # The time of training, not of packaging: packaging again changes nothing.
        created=datetime.fromtimestamp(result.finished, UTC),
    )


def _card(manifest: AdapterManifest) -> str:
    spec, training = manifest.spec, manifest.metrics.get("training", {})
    lora = spec["lora"]
    layers = f"last {lora['last_layers']}" if lora["last_layers"] else "all"
    threshold = (
        "none: every answer that passes its checks"
        if manifest.threshold is None
        else f"confidence ({manifest.confidence.replace('_', ' ')}) of at least {manifest.threshold:.4f}"
    )
    warning = (
        "\n**A drill: trained on wrong answers on purpose. Never let it answer anyone.**\n"
        if spec.get("shuffle_answers")
        else ""
    )
    rows = [
        ("Task", manifest.task_id),
        ("Base model", f"{manifest.base_model} ({manifest.base_digest[:16]})"),
        ("Data set", manifest.dataset_digest),
        ("LoRA", f"rank {lora['rank']}, alpha {lora['alpha']:g}, {layers} layers"),
        (
            "Examples",
            f"{training.get('examples')}, {training.get('too_long')} left out as too long",
        ),
        ("Steps", f"{training.get('steps')}, kept step {training.get('kept_step')}"),
        ("Loss", f"training {training.get('loss')}, validation {training.get('validation_loss')}"),
        ("Backend", training.get("backend")),
        ("Tokens per second", training.get("tokens_per_second")),
        ("Libraries", ", ".join(f"{k} {v}" for k, v in sorted(manifest.libraries.items()))),
        ("Answers shown from", threshold),
        ("Created", manifest.created.isoformat(timespec="seconds")),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    picture = f"\n![training curve]({CURVE})\n" if CURVE in manifest.pictures else ""
    notes = "".join(f"- {note}\n" for note in training.get("notes", ()))
    said = f"\nDuring training:\n\n{notes}" if notes else ""
    return f"# {manifest.name}\n{warning}\n| | |\n| --- | --- |\n{table}\n{picture}{said}"
