"""An incumbent that gives no answers is told of, and a sick engine makes no judgement."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.served import Served
from flows.heard import require_incumbent
from flows.judging import _incumbent
from flows.wiring import Context
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.engines.protocol import EngineUnavailable
from serving.registry.registry import Registry
from tests.infra.artifacts.building import make_adapter
from tests.serving.gateway.upstreams import EngineServer, listening
from tests.serving.registry.world import NOW, add_task, digest
from trainers.data_sets.labels import Example

TASK = "lights"


async def asked(
    settings: Settings, database: Database, folder: Path, mode: str
) -> tuple[dict[str, list[Served]] | None, str, tuple[str, ...]]:
    engine = EngineServer()
    engine.mode = mode
    async with listening(engine.app()) as url:
        settings = settings.model_copy(
            update={
                "engine": settings.engine.model_copy(update={"url": url}),
                "gateway": settings.gateway.model_copy(update={"adapters": folder}),
            }
        )
        add_task(database, TASK)
        registry = Registry(database)
        made = make_adapter(folder / "made", digest("base"))
        (folder / "made").rename(folder / made.name)
        registry.record_dataset(
            digest=made.dataset_digest,
            task_id=TASK,
            location="datasets/lights/1",
            manifest={"parents": {"log_objects": []}},
            now=NOW,
        )
        registry.register_adapter(
            name=made.name,
            task_id=TASK,
            digest=made.digest,
            dataset_digest=made.dataset_digest,
            spec_digest=made.spec_digest,
            location=f"adapters/{TASK}/{made.digest}",
            manifest={"spec": {}, "metrics": {}},
            threshold=None,
        )
        registry.set_route(TASK, 0, None, actor="t", why="t", champion=made.name, salt="s")
        context = Context(settings, open_store(settings.storage), database, registry, {}, "t:1")
        request = {"messages": [{"role": "user", "content": "hall on"}]}
        tests = [
            Example(str(n), f"s{n}", NOW, request, {"content": "ok"}, 1.0, "teacher", "s")
            for n in range(40)
        ]
        served, name, said = await _incumbent(
            context, TASK, "lights@0000", {"d": tests}, lambda _: None
        )
        return served, name, require_incumbent(name, said["d"])


async def test_what_it_refuses_is_said_with_the_decision(
    settings: Settings, database: Database, tmp_path: Path
):
    said, name, noted = await asked(settings, database, tmp_path / "adapters", "too long")
    assert said is not None and not any(row.accepted for row in said["d"])
    assert (
        name in noted[0]
        and "no answer to 40 of 40" in noted[0]
        and noted[0].endswith("EngineRefused")
    )


async def test_one_that_answers_needs_no_word(
    settings: Settings, database: Database, tmp_path: Path
):
    assert (await asked(settings, database, tmp_path / "adapters", "ok"))[2] == ()


async def test_a_sick_engine_makes_no_judgement(
    settings: Settings, database: Database, tmp_path: Path
):
    with pytest.raises(EngineUnavailable, match="run the night again"):
        await asked(settings, database, tmp_path / "adapters", "error")
