"""The whole loop in miniature: what ``make demo`` plays, with one kind of traffic and less of it.

Real Prefect, Ray, engine, gateway and base model. Minutes, most of them training and judging.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from flows.demo.settings import demo_ports

LIMIT_SECONDS = 1500
PROGRAM = """
import sys
from pathlib import Path
from flows.demo.script import Pace, play_demo
pace = Pace(
    day_one_sessions=230,
    batch_sessions=24,
    max_batches=100,
    kinds=("triage",),
    settings={
        "training.max_steps": 40,
        "gate.max_base_rows": 6,
        # A label is a few tokens; the base model, which knows none, talks on to the limit.
        "engine.max_answer_tokens": 24,
        "engine.models": sys.argv[3],
    },
)
sys.exit(play_demo(Path(sys.argv[1]), int(sys.argv[2]), 3, keep_running=False, pace=pace))
"""
KEYS = {
    "calls": {"captured", "ingested", "quarantined", "lost"},
    "tasks": {"id", "name", "size", "purity"},
    "adapters": {
        *("adapter", "task", "base_score", "adapter_score", "teacher_score"),
        *("coverage", "served_score", "gate"),
    },
    "rollouts": {"adapter", "state", "sessions", "reason"},
    "links": {"prefect", "evidently", "gateway"},
}


def free_ports() -> int:
    """The first of free ports in a row, below those that outgoing connections are given."""
    while True:
        base = random.randrange(20_000, 32_000, 20)
        if all(_free(port) for port in demo_ports(base).values()):
            return base


def _free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS + 60)
def test_a_day_a_night_and_the_next_day(tmp_path: Path):
    folder = tmp_path / "demo"
    models = Path("var/models").absolute()
    played = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(free_ports()), str(models)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        check=False,
    )
    assert played.returncode == 0, played.stdout[-6000:] + played.stderr[-2000:]
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["calls"]) == KEYS["calls"]
    assert set(summary["links"]) == KEYS["links"]
    for name in ("tasks", "adapters", "rollouts"):
        assert summary[name]
        assert all(set(item) == KEYS[name] for item in summary[name])

    assert summary["calls"]["lost"] == 0
    assert summary["calls"]["ingested"] == summary["calls"]["captured"] > 300
    assert summary["personal_data"]
    assert [task["purity"] for task in summary["tasks"]] == [1.0]

    good, bad = summary["rollouts"]
    assert (good["state"], bad["state"]) == ("promoted", "rolled_back")
    judged = {item["adapter"]: item for item in summary["adapters"]}
    assert judged[good["adapter"]]["gate"] == "pass"
    assert judged[good["adapter"]]["adapter_score"] > judged[good["adapter"]]["base_score"]
    assert judged[bad["adapter"]]["gate"] != "pass"
    assert summary["small_model_share"] > 0
    assert summary["served_agreement"] > 0.9

    said = [json.loads(line)["text"] for line in (folder / "slack.jsonl").read_text().splitlines()]
    assert any(good["adapter"] in text and "promoted" in text for text in said), said
    assert any(bad["adapter"] in text and "rolled back" in text for text in said), said

    everything = b"".join(
        path.read_bytes() for path in sorted((folder / "spool").rglob("*")) if path.is_file()
    )
    assert b"@example.com" not in everything
