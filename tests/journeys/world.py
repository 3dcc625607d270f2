"""A machine of its own for a night: store, database, engine; and what the night leaves there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.wiring import open_context
from infra.database.open import open_database
from infra.settings.model import Settings
from infra.settings.sources import load_settings
from tests.trainers.recorded import home, put_log, ticket
from trainers.ingest.ingest import totals
from trainers.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CALLS = 96
STEPS = 30


@dataclass(frozen=True)
class World:
    folder: Path
    variables: dict[str, str]

    @property
    def settings(self) -> Settings:
        return load_settings(environ=self.variables)

    @property
    def log(self) -> Path:
        return self.folder / "night.log"

    def run(self) -> RunFolder | None:
        """The folder of the training run, once there is one with a spec."""
        found = list(self.settings.training.runs.glob("*/spec.json"))
        assert len(found) <= 1, "one data set, one spec, one run"
        return RunFolder(found[0].parent) if found else None

    def sealed(self) -> int:
        """How many whole checkpoints the training has written so far, or kept of them: the last step."""
        run = self.run()
        if run is None:
            return 0
        steps = [
            int(p.parent.name.split("-")[1]) for p in run.checkpoints.glob("checkpoint-*/sealed")
        ]
        return max(steps, default=0)

    @contextmanager
    def night(self, *stages: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """A night in a process of its own; killed at the end if it still runs."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.journeys.driver", *stages],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.variables, **variables},
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def night_to_end(self, *stages: str, timeout_seconds: float = 240, **variables: str) -> int:
        """The exit code of a night; -9 when it was killed on the way."""
        with self.night(*stages, **variables) as process:
            return process.wait(timeout_seconds)

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


def make_world(folder: Path, variables: dict[str, str]) -> World:
    """Three log objects: one task worth training, calls of none, one broken line."""
    folder.mkdir()
    world = World(
        folder,
        {
            **variables,
            "NIGHTSCHOOL_STORAGE__URL": str(folder / "objects"),
            "NIGHTSCHOOL_DATABASE__URL": f"sqlite:///{folder}/nightschool.db",
            "NIGHTSCHOOL_GATEWAY__ADAPTERS": str(folder / "adapters"),
            "NIGHTSCHOOL_TRAINING__RUNS": str(folder / "runs"),
            "NIGHTSCHOOL_HOOKS__KEY_FILE": str(folder / "hooks.key"),
            "NIGHTSCHOOL_TRAINING__BACKEND": "peft",
            "NIGHTSCHOOL_TRAINING__EXECUTOR": "local",
            "NIGHTSCHOOL_TRAINING__WORKERS": "1",
            "NIGHTSCHOOL_TRAINING__RANK": "4",
            "NIGHTSCHOOL_TRAINING__BATCH_SIZE": "4",
            "NIGHTSCHOOL_TRAINING__MAX_STEPS": str(STEPS),
            "NIGHTSCHOOL_TRAINING__CHECKPOINT_STEPS": "2",
            "NIGHTSCHOOL_TRAINING__MAX_SEQUENCE_TOKENS": "128",
            "NIGHTSCHOOL_TRAINING__MIN_EXAMPLES": "40",
            "NIGHTSCHOOL_GATE__MIN_ROWS": "5",
            "NIGHTSCHOOL_GATE__MAX_TEST_ROWS": "12",
            "NIGHTSCHOOL_GATE__MAX_BASE_ROWS": "4",
        },
    )
    open_database(world.settings.database).upgrade()
    with open_context(world.settings) as context:
        half = CALLS // 2
        put_log(context.store, [home(number) for number in range(half)], 0)
        put_log(context.store, [ticket(number) for number in range(1000, 1024)], 1)
        put_log(context.store, [home(number) for number in range(half, CALLS)], 2, b"cut off")
    return world


def registry_state(world: World) -> dict[str, Any]:
    """Everything a night is to leave behind; without times, latencies and random ids."""
    with open_context(world.settings) as context:
        registry = context.registry
        adapters = registry.adapters()
        return {
            "ingested": asdict(totals(context.database)),
            "tasks": [
                (t.id, t.name, t.state, t.policy, t.size, t.signature, t.details)
                for t in registry.tasks()
            ],
            "datasets": [
                (d.task_id, d.digest, d.location, d.manifest["counts"])
                for t in registry.tasks()
                for d in registry.datasets(t.id)
            ],
            "adapters": [
                (a.name, a.dataset_digest, a.spec_digest, a.location, a.threshold, a.state)
                for a in adapters
            ],
            "scorecards": [
                (card.adapter, card.digest, card.gate["verdict"], card.gate["numbers"])
                for a in adapters
                for card in registry.scorecards(a.name)
            ],
            "rollouts": [
                (r.task_id, r.adapter, r.state, r.step, r.champion, r.evidence["gate_override"])
                for r in registry.rollouts()
            ],
            "routes": [
                (r.task_id, r.champion, r.candidate, r.stage, r.weight, r.version)
                for r in registry.routes()
            ],
            # An effect that happened twice shows here, even where the second changed nothing.
            "events": sorted(Counter(event.what for event in registry.events(limit=1000)).items()),
            "objects": sorted(item.key for item in context.store.list()),
        }
