"""A decision of the gate comes out the same from what was stored, and a changed one is told."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from evaluators.gate import GateEvidence, GatePolicy, decide
from evaluators.served import serve
from flows.cli import main
from flows.gate_replay import UnknownDecision, replay_gate
from flows.judging_inputs import (
    earlier_tests,
    golden_seen,
    honesty_of,
    right_or_wrong,
    slices_by_example,
    trained_prompts,
    tries_before,
)
from flows.wiring import Context
from infra.database.open import Database
from infra.database.tables import scorecards
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.registry.registry import Registry
from tests.evaluators.making import outcome, row
from tests.serving.registry.world import NOW, add_adapter, add_task, digest
from trainers.data_sets.golden import make_case
from trainers.data_sets.labels import Example
from trainers.data_sets.splits import SPLITS
from trainers.data_sets.versions import location_of, write_version

TASK = "mail"


@pytest.fixture
def context(settings: Settings, database: Database) -> Context:
    add_task(database, TASK)
    return Context(settings, open_store(settings.storage), database, Registry(database), {}, "t:1")


def judged(context: Context, number: int, incumbent: str = "teacher") -> str:
    adapter = add_adapter(context.registry, TASK, number, None)
    given = GateEvidence(adapter.name, incumbent, tuple(row(place) for place in range(80)))
    policy = GatePolicy()
    result = decide(policy, given)
    context.registry.record_scorecard(
        digest=result.evidence_digest,
        adapter=adapter.name,
        dataset_digest=adapter.dataset_digest,
        body={},
        gate={**result.to_dict(), "policy": policy.to_dict(), "evidence": given.to_dict()},
    )
    return adapter.name


def test_the_same_comes_out_by_name_and_by_id(context: Context):
    name = judged(context, 1)
    found = replay_gate(context, name)
    assert (found.same, found.again, found.verdict) == (True, "pass", "pass")
    assert replay_gate(context, found.id[:10]) == found
    with pytest.raises(UnknownDecision, match="adapters"):
        replay_gate(context, "nobody@0123456789abcdef")


def test_stored_evidence_that_was_changed_is_told(context: Context):
    name = judged(context, 1)
    (card,) = context.registry.scorecards(name)
    gate = json.loads(json.dumps(card.gate))
    gate["evidence"]["rows"][0]["served"] = 0.0
    with context.database.begin() as connection:
        connection.execute(update(scorecards).values(gate=gate))
    assert not replay_gate(context, name).same


def test_tries_count_other_adapters_against_the_same_incumbent(context: Context):
    first, other = judged(context, 1), judged(context, 2, incumbent="mail@fedcba9876543210")
    third = judged(context, 3)
    assert tries_before(context, TASK, "mail@new", "teacher") == 2
    assert tries_before(context, TASK, third, "teacher") == 1
    assert tries_before(context, TASK, first, "mail@fedcba9876543210") == 1
    assert tries_before(context, TASK, other, "mail@fedcba9876543210") == 0


def version(context: Context, name: str, calls: list[str], minute: int):
    examples = [
        Example(call, call, NOW, {"messages": []}, {"content": "x"}, 1.0, "teacher", "s")
        for call in calls
    ]
    splits = {split: examples if split == "test" else [] for split in SPLITS}
    made = write_version(
        context.store, TASK, digest(name), splits, {"task_id": TASK, "parents": {}}
    )
    context.registry.record_dataset(
        digest=made.digest,
        task_id=TASK,
        location=location_of(TASK, made.digest),
        manifest={"parents": {"log_objects": []}},
        now=NOW + timedelta(minutes=minute),
    )
    return made, examples


def test_earlier_tests_are_those_before_without_what_is_asked_already(context: Context):
    version(context, "oldest", ["z"], 0)
    first, _ = version(context, "first", ["a", "b"], 1)
    second, _ = version(context, "second", ["b", "c"], 2)
    present, test = version(context, "present", ["c", "d"], 3)
    version(context, "later", ["e"], 4)
    found = earlier_tests(context, present, test)
    assert {name: [row.call_id for row in rows] for name, rows in found.items()} == {
        second.digest: ["b"],
        first.digest: ["a"],
    }
    context.store.delete(f"{second.location}/test.parquet")
    said: list[str] = []
    assert set(earlier_tests(context, present, test, said.append)) == {
        first.digest,
        digest("oldest"),
    }
    assert second.digest[:12] in said[0]


def test_what_a_judgement_rests_on_beside_the_answers(context: Context):
    def example(call: str, asked: str) -> Example:
        request = {"messages": [{"role": "user", "content": asked}]}
        return Example(call, f"acme/{call}", NOW, request, {"content": "x"}, 1.0, "teacher", "s")

    test = [example("c", "new"), example("d", "learned")]
    splits = {"train": [example("a", "learned")], "validation": [], "test": test}
    made = write_version(
        context.store, TASK, digest("whole"), splits, {"task_id": TASK, "parents": {}}
    )
    trained = trained_prompts(context, made)
    found = honesty_of(trained, test)
    assert (found.seen_in_training, found.distinct_prompts, found.independent_labels) == (1, 2, 0)
    assert slices_by_example(test)["c"] == {
        "tool": "words",
        "length": "short",
        "tenant": "acme",
        "language": "short",
    }
    words = "schalte bitte das Licht in der Küche ein", "bitte"
    asked = {"messages": [{"role": "user", "content": said} for said in words]}
    german = slices_by_example([replace(test[0], request=asked)])["c"]
    assert german["language"] == "de", "all that the user said last, as drift reads it"
    cases = [
        make_case(TASK, row.request, {"content": "x"}, least=0.5, why="", by="ann") for row in test
    ]
    assert golden_seen(trained, cases) == 1
    said = [outcome(case.id, score) for case, score in zip(cases, (0.5, 0.4), strict=True)]
    assert [row.correct for row in right_or_wrong(said, cases)] == [1.0, 0.0]
    assert [row.correct for row in right_or_wrong(serve(said, None), cases)] == [1.0, 0.0]


def test_the_command_returns_1_for_a_changed_decision(
    context: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("NIGHTSCHOOL_DATABASE__URL", settings.database.url.get_secret_value())
    monkeypatch.setenv("NIGHTSCHOOL_STORAGE__URL", str(settings.storage.url))
    name = judged(context, 1)
    done = CliRunner().invoke(main, ["gate", "--replay", name, "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["same"] is True
    (card,) = context.registry.scorecards(name)
    gate = json.loads(json.dumps(card.gate))
    gate["evidence"]["rows"][0]["served"] = 0.0
    for changed, status in ((gate, 1), ({"verdict": "pass"}, 3)):
        with context.database.begin() as connection:
            connection.execute(update(scorecards).values(gate=changed))
        assert CliRunner().invoke(main, ["gate", "--replay", name]).exit_code == status
