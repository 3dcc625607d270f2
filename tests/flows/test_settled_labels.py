"""A run learns what the teacher settled on, and its adapter says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.learning import TrainingFailed, train, train_spec
from flows.wiring import open_context
from infra.artifacts.folder import read_manifest
from infra.database.open import Database
from infra.prompting.template import PRUNED
from infra.settings.model import Settings
from tests.teacher_server import FakeTeacher
from tests.tiny_model import make_tiny_model, tool_examples
from trainers.base_model import prepare_base
from trainers.data_sets.labels import Example
from trainers.data_sets.versions import write_version
from trainers.executors.local import LocalExecutor
from trainers.resampling import kept_labels, labels_digest
from trainers.run_folder import RunFolder

PROMPT = "what is it?"


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    fake = FakeTeacher({PROMPT: ["no", "maybe", "no"]})
    yield fake
    fake.close()


def examples() -> list[Example]:
    """Twenty calls; two of them ask the same and were answered differently."""
    messages = [{"role": "user", "content": PROMPT}]
    asked: list[Any] = [({"messages": messages}, {"content": word}) for word in ("yes", "no")]
    asked += [(row["request"], row["answer"]) for row in tool_examples(18)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Example(
            call_id=f"c{number}",
            session=f"s{number}",
            time=start + timedelta(seconds=number),
            request=dict(request),
            answer={"role": "assistant", **answer},
            weight=1.0,
            source="teacher",
            signature="s",
        )
        for number, (request, answer) in enumerate(asked)
    ]


def test_what_was_settled_is_trained_on_and_named_by_the_adapter(
    settings: Settings, database: Database, teacher: FakeTeacher, tmp_path: Path
) -> None:
    base = make_tiny_model(tmp_path / "base")
    training = {"resample_calls": 10, "backend": "peft", "max_steps": 2}
    training |= {"rslora": True, "optimizer": "adafactor"}
    changed = settings.model_copy(
        update={
            "teacher": teacher.settings,
            "engine": settings.engine.model_copy(update={"base_model": str(base)}),
            "training": settings.training.model_copy(update=training),
        }
    )
    found, executor = examples(), LocalExecutor(1)
    splits = {"train": found[:16], "validation": found[16:18], "test": found[18:]}
    manifest = {"format": PRUNED.to_dict(), "counts": {k: len(v) for k, v in splits.items()}}
    with open_context(changed) as context:
        dataset = write_version(
            context.store, "lights", "d" * 64, splits, manifest | {"task_id": "lights"}
        )
        model = prepare_base(context.settings.engine)
        spec = train_spec(context, model, dataset, 2)
        assert (spec.lora.rslora, spec.optimizer, spec.load_in_4bit) == (True, "adafactor", False)
        assert teacher.asked == [PROMPT] * 3
        assert train_spec(context, model, dataset, 2) == spec
        assert teacher.asked == [PROMPT] * 3, "what was settled is not asked again"
        labels = kept_labels(context.store, dataset.digest)
        assert spec.labels_digest == labels_digest(labels) is not None
        assert train_spec(context, model, dataset, 2, shuffle_answers=True).labels_digest is None
        try:
            trained = train(context, executor, spec, dataset)
            other = spec.model_copy(update={"labels_digest": "0" * 64})
            with pytest.raises(TrainingFailed, match="changed"):
                train(context, executor, other, dataset)
        finally:
            executor.close()
        rows = RunFolder(changed.training.runs / spec.digest[:16]).examples("train")
    said = [
        row["answer"]["content"]
        for row in rows
        if row["request"]["messages"][0]["content"] == PROMPT
    ]
    assert said == ["no", "no"]
    assert read_manifest(trained.folder).spec["labels_digest"] == spec.labels_digest
