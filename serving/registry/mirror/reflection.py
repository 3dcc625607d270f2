"""What MLflow is told of an adapter. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serving.registry.records import Adapter, Route, Scorecard

PREFIX = "nightschool"
MAX_PARAMS = 90
MAX_VALUE = 500
"""Characters of a parameter or tag: every release of MLflow takes so many."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9 ._-]")


@dataclass(frozen=True)
class Reflection:
    """One adapter as a run and a model version."""

    adapter: str
    experiment: str
    model: str
    source: str
    created_ms: int
    """Milliseconds since the epoch, as MLflow counts."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    measured_ms: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Changes when anything of it does."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def reflect(adapter: Adapter, card: Scorecard | None, route: Route | None) -> Reflection:
    """Args: ``card``: the latest; ``route``: the task's, None while nobody was ever routed."""
    aliases = []
    if route is not None:
        roles = {"champion": route.champion, "candidate": route.candidate}
        aliases = [role for role, name in roles.items() if name == adapter.name]
    tags = {
        "adapter": adapter.name,
        "task": adapter.task_id,
        "digest": adapter.digest,
        "dataset": adapter.dataset_digest,
        "spec": adapter.spec_digest,
        "location": adapter.location,
        "base_digest": str(adapter.manifest.get("base_digest") or ""),
        "state": adapter.state,
        "threshold": "" if adapter.threshold is None else repr(adapter.threshold),
        "verdict": card.verdict if card else "",
        "scorecard": card.digest if card else "",
        "on_route": ",".join(aliases),
    }
    safe = _NOT_IN_NAMES.sub("-", adapter.task_id)
    return Reflection(
        adapter=adapter.name,
        experiment=f"{PREFIX}.{safe}",
        model=f"{PREFIX}.{safe}",
        source=f"{PREFIX}:/{adapter.location}",
        created_ms=int(adapter.created.timestamp() * 1000),
        params=_params(adapter),
        metrics=_metrics(card),
        measured_ms=int((card or adapter).created.timestamp() * 1000),
        tags={f"{PREFIX}.{name}": value[:MAX_VALUE] for name, value in tags.items()},
        aliases=tuple(aliases),
    )


def _params(adapter: Adapter) -> dict[str, str]:
    """What the adapter was trained with: fixed from its first day, as MLflow wants parameters."""
    found = {"base_model": str(adapter.manifest.get("base_model") or "unknown")}
    spec = adapter.manifest.get("spec")
    if isinstance(spec, Mapping):
        found |= _flat(spec, "spec")
    kept = sorted(found.items())[:MAX_PARAMS]
    return {_NOT_IN_NAMES.sub("-", name)[:200]: value[:MAX_VALUE] for name, value in kept}


def _flat(value: Mapping[str, Any], name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, item in value.items():
        inner = f"{name}.{key}"
        if isinstance(item, Mapping):
            found |= _flat(item, inner)
        elif item is not None:
            found[inner] = item if isinstance(item, str) else json.dumps(item)
    return found


def _metrics(card: Scorecard | None) -> dict[str, float]:
    if card is None:
        return {}
    scores = card.body.get("scores")
    numbers = dict(scores) if isinstance(scores, Mapping) else {}
    numbers["coverage"] = card.body.get("coverage")
    return {
        _NOT_IN_NAMES.sub("-", str(name)): float(value)
        for name, value in sorted(numbers.items())
        if isinstance(value, int | float) and math.isfinite(value)
    }
