"""A registered adapter judged again through a real engine: what is shown, what is kept, what alarms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from prefect.states import Failed
from safetensors.numpy import save_file

from evaluators.calibration import Threshold, calibrate_outcomes
from evaluators.judge.asking import JudgeAway
from evaluators.replay import Outcome
from flows import judging
from flows.cli import main
from flows.letting_go import let_go
from flows.night import worth_again
from flows.wiring import Context
from infra.artifacts.folder import read_manifest
from infra.database.open import Database
from infra.objects.open import open_store
from infra.settings.model import Settings
from serving.registry.registry import Registry
from tests.scorer_package import offer_scorers
from tests.serving.engines.building import describe, engine_process
from tests.serving.registry.world import NOW, add_task, digest
from tests.tiny_model import make_tiny_model, tool_examples
from trainers.data_sets.labels import Example, prompt_key
from trainers.data_sets.versions import DatasetVersion, location_of, write_version

TASK = "lights"
SPLITS = (("train", 0, 8), ("validation", 8, 14), ("test", 14, 26))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def engine_url(base: Path) -> Iterator[str]:
    with engine_process(base, "--max-rank", "16", "--max-prompt-tokens", "448") as url:
        yield url


@pytest.fixture
def context(
    settings: Settings, database: Database, engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> Context:
    for name, value in {
        "DATABASE__URL": settings.database.url.get_secret_value(),
        "STORAGE__URL": str(settings.storage.url),
        "GATEWAY__ADAPTERS": str(settings.gateway.adapters),
        "HOOKS__KEY_FILE": str(settings.hooks.key_file),
        "ENGINE__URL": engine_url,
        "ENGINE__MAX_ANSWER_TOKENS": "12",
        "GATE__MIN_ROWS": "10",
    }.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_{name}", value)
    add_task(database, TASK)
    return Context(settings, open_store(settings.storage), database, Registry(database), {}, "t:1")


def dataset(context: Context) -> DatasetVersion:
    examples = [
        Example(
            f"call-{place}",
            f"acme/s{place}",
            NOW + timedelta(minutes=place),
            {"messages": row["request"]["messages"], "tools": row["request"]["tools"]},  # type: ignore[index]
            row["answer"],  # type: ignore[arg-type]
            1.0,
            "teacher",
            "s",
        )
        for place, row in enumerate(tool_examples(26))
    ]
    made = write_version(
        context.store,
        TASK,
        digest("lights data"),
        {name: examples[start:end] for name, start, end in SPLITS},  # type: ignore[misc]
        {"task_id": TASK, "parents": {}},
    )
    context.registry.record_dataset(
        digest=made.digest,
        task_id=TASK,
        location=location_of(TASK, made.digest),
        manifest={"parents": {"log_objects": []}},
    )
    return made


def adapter(context: Context, base: Path, folder: Path, probes: list[dict[str, Any]]) -> str:
    """A registered adapter that has learned nothing, with what its trainer is said to have noted."""
    made, scratch = dataset(context), folder / "scratch"
    scratch.mkdir(parents=True)
    where = "base_model.model.model.layers.0.self_attn.q_proj"
    random = np.random.default_rng(1)
    save_file(
        {
            f"{where}.lora_A.weight": random.normal(size=(4, 64)).astype(np.float32),
            f"{where}.lora_B.weight": random.normal(size=(64, 4)).astype(np.float32),
        },
        scratch / "adapter_model.safetensors",
    )
    (scratch / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, '
        '"target_modules": ["q_proj"], "layers_to_transform": [0], "bias": "none", '
        '"lora_dropout": 0.0}'
    )
    name, packaged = describe(base, scratch, folder, task=TASK)
    manifest = read_manifest(packaged).model_copy(
        update={"metrics": {"training": {"probes": probes}}}
    )
    (packaged / "manifest.json").write_bytes(manifest.to_json())
    location = f"adapters/{TASK}/{manifest.digest}"
    for path in packaged.iterdir():
        context.store.put(f"{location}/{path.name}", path.read_bytes())
    context.registry.register_adapter(
        name=name,
        task_id=TASK,
        digest=manifest.digest,
        dataset_digest=made.digest,
        spec_digest=digest("spec"),
        location=location,
        manifest=manifest.model_dump(mode="json"),
        threshold=None,
    )
    return name


def ask(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_looking_changes_nothing_and_keeping_adds_a_decision(
    context: Context, base: Path, tmp_path: Path
) -> None:
    name = adapter(context, base, tmp_path / "made", [])
    events = context.registry.events(None, 100)
    found = ask("judge", name)
    judgement = found["judgement"]
    assert judgement["verdict"] == "fail" and found["page"] is None
    assert set(judgement["scorecards"]) == {"adapter", "base", "teacher", "served"}
    assert judgement["scorecards"]["served"]["mean"] == 1  # nothing of it would be shown
    assert judgement["costs"]["served"] == judgement["costs"]["teacher"] > 0
    assert "language=en" in judgement["scorecards"]["adapter"]["slices"]
    assert [row["call"] for row in found["worst"]] == sorted(f"call-{n}" for n in range(14, 26))
    assert "turn" in found["worst"][0]["asked"] and found["worst"][0]["right"]
    assert context.registry.events(None, 100) == events
    assert context.registry.scorecards(name) == []

    shown = CliRunner().invoke(main, ["judge", name])
    assert shown.exit_code == 0 and shown.stdout.startswith(f"# {name} fails")
    assert "| what callers get | 100.0%" in shown.stdout and "asked: " in shown.stdout

    kept = ask("judge", name, "--keep", "--why", "a new engine", "--as", "ann")
    page = context.store.get(kept["page"]).decode()
    assert "<svg" in page and "call-14" in page
    assert "kitchen" not in page, "no text of a call is kept"
    folder = kept["page"].rpartition("/")[0]
    assert context.store.get(f"{folder}/scorecard.md").startswith(f"# {name}".encode())
    assert "link=" in kept["link"]
    assert context.registry.events(name, 1)[0].why == "a new engine"
    assert ask("gate", "--replay", name)["same"] is True

    # The same evidence by other terms, and then by the first ones again: the newest decides.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTSCHOOL_GATE__MIN_ROWS", "100")
        ask("judge", name, "--keep")
    again = ask("judge", name, "--keep")
    cards = context.registry.scorecards(name)
    assert [card.verdict for card in cards] == ["fail", "inconclusive", "fail"]
    assert len({card.gate["evidence_digest"] for card in cards}) == 1
    assert len({kept["page"], again["page"]}) == 2 and ask("gate", "--replay", name)["same"]


def test_further_metrics_stand_in_the_scorecard_and_replay(
    context: Context, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_scorers(tmp_path, monkeypatch)
    for key, value in {
        "GATE__SCORERS": '[{"name": "ours", "use": "odd", "tasks": ["Task lights"]}]',
        "GATE__METRICS": '[{"name": "ours"}, {"name": "judge"}, {"name": "normalized"}]',
        "JUDGE__MODEL": "large",
        "GATE__DRAWN_ANSWERS": "2",
    }.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_{key}", value)
    calibrated: list[Outcome] = []

    def calibrate(rows: list[Outcome], risk: float, level: float) -> Threshold:
        calibrated.extend(rows)
        return calibrate_outcomes(rows, risk, level)

    monkeypatch.setattr(judging, "calibrate_outcomes", calibrate)
    name = adapter(context, base, tmp_path / "made", [])
    found = ask("judge", name, "--keep")["judgement"]
    assert len(calibrated) == 6 and all(row.drawn_tokens for row in calibrated)
    assert all("agreement_2" in row.confidences for row in calibrated)
    card = found["scorecards"]["adapter"]
    assert (card["stages"]["ours"]["rows"], card["stages"]["ours"]["mean"]) == (12, 0.5)
    assert card["details"]["kind"] == "tool_call"
    numbers = found["gate"]["numbers"]["metrics"]
    assert numbers["ours"]["rows"] == numbers["normalized"]["rows"] == 12
    assert numbers["judge"]["asked"] == 0, "the teacher answers all of it, so both say the same"
    assert any("judge cannot be relied on: people labelled 0" in why for why in found["reasons"])
    assert ask("gate", "--replay", name)["same"] is True


def test_a_judge_that_is_away_is_told_before_the_engine_is_asked(
    context: Context, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {
        "GATE__METRICS": '[{"name": "judge"}]',
        "JUDGE__MODEL": "large",
        "JUDGE__MODE": "rubric",
        "JUDGE__URL": "http://127.0.0.1:9/v1",
        "JUDGE__RETRIES": "0",
        "ENGINE__URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_{key}", value)
    name = adapter(context, base, tmp_path / "made", [])
    case = tmp_path / "case.json"
    row = tool_examples(1)[0]
    case.write_text(json.dumps({"request": row["request"], "answer": row["answer"]}))
    ask("golden", "add", TASK, "--file", str(case), "--why", "the audit")
    done = CliRunner().invoke(main, ["judge", name])
    assert (
        done.exit_code == 1 and "the judge at http://127.0.0.1:9/v1 gave no answer" in done.stderr
    )
    again = Failed(data=ValueError()), Failed(data=JudgeAway("spent"))
    assert [worth_again(None, None, state) for state in again] == [True, False]


def test_an_engine_that_says_other_than_the_trainer_is_an_event_and_no_pass(
    context: Context, base: Path, tmp_path: Path
) -> None:
    asked = [row["request"] for row in tool_examples(14)[8:]]
    probes = [
        {"prompt": prompt_key(request), "text": "never this", "log_probabilities": [-0.01] * 4}  # type: ignore[arg-type]
        for request in asked
    ]
    name = adapter(context, base, tmp_path / "made", probes)
    found = ask("judge", name, "--keep")["judgement"]
    assert found["verdict"] != "pass"
    assert found["gate"]["numbers"]["engine_match"]["other"] == len(asked)
    assert any("other than the trainer" in reason for reason in found["reasons"])
    (event,) = [e for e in context.registry.events(name, 10) if e.what == "engine.mismatch"]
    assert event.evidence["rows"] == len(asked)


async def test_an_adapter_that_callers_are_to_get_stays_loaded(
    context: Context, base: Path, tmp_path: Path
) -> None:
    name = adapter(context, base, tmp_path / "made", [])
    async with context.engine() as engine:
        unloaded: list[str] = []

        async def note(gone: str) -> None:
            unloaded.append(gone)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "ensure_unloaded", note)
            await let_go(context, engine, TASK, name)
            assert unloaded == [name]
            context.registry.set_route(TASK, 0, None, actor="t", why="t", champion=name, salt="s")
            await let_go(context, engine, TASK, name)
    assert unloaded == [name], "evicted, it may have been loaded by the judge, but it is routed"


def test_an_adapter_that_is_not_there_is_said_so(context: Context) -> None:
    done = CliRunner().invoke(main, ["judge", "nobody@0123456789abcdef"])
    assert done.exit_code == 3 and "no adapter" in done.stderr
