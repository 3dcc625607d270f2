"""The demo's configuration: everything in one folder, on seven ports in a row, at a day's pace.

What differs from the defaults is here and nowhere else: a night that starts when asked, deadlines
and horizons of seconds instead of hours, and margins that a few hundred calls can decide.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

SENDER = "demo"


def demo_variables(
    folder: Path, port_base: int, seed: int, changes: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Environment variables that make this and every child process use the demo's settings.

    Args:
        changes: settings on top of the demo's own, by dotted key.
    """
    folder = folder.absolute()
    ports = demo_ports(port_base)
    secret = base64.b64encode(hashlib.sha256(f"demo webhook {seed}".encode()).digest()).decode()
    values: dict[str, object] = {
        "storage.url": folder / "objects",
        "database.url": f"sqlite:///{folder}/nightschool.db",
        "teacher.url": f"http://127.0.0.1:{ports['teacher']}/v1",
        "gateway.port": ports["gateway"],
        "gateway.spool": folder / "spool",
        "gateway.snapshot": folder / "routes.json",
        "gateway.adapters": folder / "adapters",
        "gateway.ship_seconds": 1,
        "engine.url": f"http://127.0.0.1:{ports['engine']}",
        # Converted once and kept beside the demo's folder, which is emptied at every start.
        "engine.models": folder.parent / "models",
        "engine.max_answer_tokens": 96,
        "engine.threads": 2,
        "hooks.port": ports["hooks"],
        "hooks.key_file": folder / "hooks.key",
        "hooks.secrets": f'{{"{SENDER}": "whsec_{secret}"}}',
        "notify.slack_webhook_url": f"http://127.0.0.1:{ports['slack']}/services/demo",
        "registry.port": ports["registry"],
        "prefect.port": ports["prefect"],
        "prefect.home": folder / "prefect",
        "training.runs": folder / "runs",
        "training.batch_size": 4,
        "training.learning_rate": 0.001,
        "training.last_layers": 12,
        "training.epochs": 2,
        "training.max_steps": 210,
        "training.checkpoint_steps": 105,
        "gate.margin": 0.1,
        "gate.level": 0.08,
        "gate.risk": 0.1,
        "gate.max_test_rows": 80,
        "gate.max_base_rows": 10,
        "rollout.steps": "[0.25, 0.5]",
        "rollout.shadow_sessions": 8,
        "rollout.step_sessions": 10,
        "rollout.margin": 0.15,
        "rollout.rollback_margin": 0.15,
        "rollout.teacher_rollback_margin": 0.15,
        # The large model's recorded answers come at once, which no small model on two cores does.
        "rollout.latency_floor_seconds": 30,
        "rollout.slow_seconds": 30,
        "rollout.maturity_seconds": 6,
        "rollout.tend_seconds": 2,
    }
    return {
        f"NIGHTSCHOOL_{key.replace('.', '__').upper()}": str(value)
        for key, value in {**values, **(changes or {})}.items()
    }


def demo_ports(base: int) -> Mapping[str, int]:
    names = ("gateway", "teacher", "engine", "hooks", "prefect", "slack", "registry")
    return {name: base + offset for offset, name in enumerate(names)}
