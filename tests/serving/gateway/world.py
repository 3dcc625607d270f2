"""A gateway with everything around it: registry rows, adapters in the store, and its log read back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from safetensors.numpy import save_file
from sqlalchemy import insert, update

from infra.artifacts.folder import digest_folder
from infra.artifacts.manifest import AdapterManifest, adapter_name
from infra.calls.codec import parse_line, read_lines
from infra.calls.record import CallRecord, FeedbackRecord, LogRecord
from infra.database.open import Database
from infra.database.tables import adapters, dataset_versions, rollouts, routes, tasks
from infra.objects.store import ObjectStore
from infra.prompting.template import FULL, PromptFormat
from infra.tasks.embedding import embed, prompt_text
from infra.tasks.signature import signature

SYSTEM = "You switch the lights of a house and answer in one word."


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A request of the lights task."""
    return {
        "model": "big",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": text},
        ],
        **more,
    }


def add_task(
    database: Database,
    task_id: str = "lights",
    like: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """A task that was discovered from requests like ``like``."""
    like = like or chat("switch the kitchen light on")
    now = datetime.now(UTC)
    row = {
        "id": task_id,
        "name": task_id,
        "state": "specialized",
        "policy": "specialize",
        "tag": None,
        "signature": signature(like).digest,
        "centroid": [float(x) for x in embed([prompt_text(like)], 64)[0]],
        "radius": 2.0,
        "size": 100,
        "details": {},
        "version": 1,
        "created": now,
        "updated": now,
        **values,
    }
    with database.begin() as connection:
        connection.execute(insert(tasks).values(**row))
    return task_id


def add_adapter(
    database: Database,
    store: ObjectStore,
    scratch: Path,
    task_id: str = "lights",
    *,
    seed: int = 1,
    form: PromptFormat = FULL,
    threshold: float | None = -0.5,
    confidence: str = "mean",
    state: str = "registered",
) -> str:
    """A sound adapter folder in the store and its row; returns its name."""
    folder = scratch / f"adapter-{task_id}-{seed}"
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    where = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{where}.lora_A.weight": random.normal(size=(4, 16)).astype(np.float32),
        f"{where}.lora_B.weight": random.normal(size=(16, 4)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, '
        '"target_modules": ["q_proj"], "bias": "none", "lora_dropout": 0.0}'
    )
    digest, files = digest_folder(folder)
    manifest = AdapterManifest(
        name=adapter_name(task_id, digest),
        task_id=task_id,
        digest=digest,
        files=files,
        base_model="tiny",
        base_digest="0" * 64,
        spec={},
        spec_digest="0" * 64,
        dataset_digest="0" * 64,
        format=form.to_dict(),
        threshold=threshold,
        confidence=confidence,
    )
    location = f"adapters/{task_id}/{digest}"
    for path in folder.iterdir():
        store.put(f"{location}/{path.name}", path.read_bytes())
    store.put(f"{location}/manifest.json", manifest.to_json())
    register(database, manifest, location, threshold, state)
    return manifest.name


def register(
    database: Database,
    manifest: AdapterManifest,
    location: str,
    threshold: float | None,
    state: str = "registered",
) -> None:
    """The rows of an adapter that lies in the store."""
    now = datetime.now(UTC)
    data = f"data-{manifest.name}"[:64]
    with database.begin() as connection:
        connection.execute(
            insert(dataset_versions).values(
                digest=data,
                task_id=manifest.task_id,
                location="datasets/x",
                manifest={},
                created=now,
            )
        )
        connection.execute(
            insert(adapters).values(
                name=manifest.name,
                task_id=manifest.task_id,
                digest=manifest.digest,
                dataset_digest=data,
                spec_digest="0" * 64,
                location=location,
                manifest=manifest.model_dump(mode="json"),
                threshold=threshold,
                state=state,
                created=now,
            )
        )


def set_route(database: Database, task_id: str = "lights", **values: Any) -> None:
    """Write the task's route, whatever it was."""
    row = {
        "task_id": task_id,
        "champion": "teacher",
        "candidate": None,
        "rollout_id": None,
        "stage": "none",
        "weight": 0.0,
        "salt": "salt",
        "version": 1,
        "fence": 0,
        "updated": datetime.now(UTC),
        **values,
    }
    with database.begin() as connection:
        if connection.execute(
            update(routes).where(routes.c.task_id == task_id).values(**row)
        ).rowcount:
            return
        connection.execute(insert(routes).values(**row))


def open_rollout(
    database: Database,
    adapter: str,
    rollout_id: str = "rollout-1",
    task_id: str = "lights",
    audit_rate: float = 0.0,
    state: str = "canary",
) -> str:
    """The row of a rollout, whose policy says how much is audited."""
    now = datetime.now(UTC)
    from serving.rollout.policy import RolloutPolicy

    policy = {**RolloutPolicy().to_json(), "audit_rate": audit_rate}
    with database.begin() as connection:
        connection.execute(
            insert(rollouts).values(
                id=rollout_id,
                task_id=task_id,
                adapter=adapter,
                state=state,
                step=0,
                policy=policy,
                evidence={"salt": "salt", "champion": "teacher"},
                sessions=0,
                reason="",
                version=1,
                created=now,
                entered=now,
                deadline=datetime(2099, 1, 1, tzinfo=UTC),
            )
        )
    return rollout_id


def read_log(store: ObjectStore) -> list[LogRecord]:
    """Every record in object storage, in the order of the keys; a damaged line fails the test."""
    records = []
    for info in store.list("logs/v1/"):
        for line in read_lines(BytesIO(store.get(info.key))):
            assert isinstance(line.content, bytes), line.content
            records.append(parse_line(line.content))
    return records


def calls(store: ObjectStore) -> dict[str, CallRecord]:
    """Call records by id; a call that is there twice fails the test."""
    found = [record for record in read_log(store) if isinstance(record, CallRecord)]
    by_id = {record.id: record for record in found}
    assert len(by_id) == len(found)
    return by_id


def feedback(store: ObjectStore) -> list[FeedbackRecord]:
    return [record for record in read_log(store) if isinstance(record, FeedbackRecord)]


async def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for something to become true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = await asyncio.to_thread(what)
        if value:
            return value
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def logged(store: ObjectStore, call_id: str) -> CallRecord:
    """The record of a call once it is shipped."""
    await until(lambda: call_id in calls(store))
    return calls(store)[call_id]


async def ready(http: aiohttp.ClientSession, url: str, *names: str) -> dict[str, Any]:
    """Wait until the gateway has these adapters (all of them, and the present routes)."""
    deadline = time.monotonic() + 20
    while True:
        async with http.get(f"{url}/readyz") as response:
            body: dict[str, Any] = await response.json()
        if set(names) <= set(body["adapters_ready"]) and body["routes_age_seconds"] is not None:
            return body
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.02)
