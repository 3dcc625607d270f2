"""What the demo found out: gathered from database, log and agents; shown and kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.demo.player import Tally
from flows.wiring import Context
from trainers.discover import assignments
from trainers.discover.purity import purity
from trainers.ingest.ingest import totals


def summarize(
    context: Context,
    captured: Tally,
    day_two: Tally,
    stage_seconds: Mapping[str, float],
    links: Mapping[str, str],
) -> dict[str, Any]:
    """The summary by the keys of ``summary.json``.

    Args:
        captured: what the agents sent over both days.
        day_two: the part of it sent while adapters were being brought in.
    """
    ingested = totals(context.database)
    return {
        "calls": {
            "captured": captured.calls,
            "ingested": ingested.calls,
            "quarantined": ingested.quarantined,
            "lost": captured.calls - ingested.calls,
        },
        "personal_data": dict(sorted(ingested.personal_data.items())),
        "tasks": _tasks(context, captured),
        "adapters": _adapters(context),
        "rollouts": [
            {
                "adapter": rollout.adapter,
                "state": rollout.state,
                "sessions": rollout.sessions,
                "reason": rollout.reason,
            }
            for rollout in context.registry.rollouts()
        ],
        "small_model_share": day_two.small_share,
        "small_model_agreement": day_two.small_agreement,
        "served_agreement": day_two.agreement,
        "stage_seconds": {name: round(seconds, 1) for name, seconds in stage_seconds.items()},
        "links": dict(links),
    }


def succeeded(summary: Mapping[str, Any], bad_adapter: str | None) -> bool:
    """An adapter was promoted, and the deliberately bad one was rolled back from its canary."""
    good = [item for item in summary["rollouts"] if item["adapter"] != bad_adapter]
    bad = [item for item in summary["rollouts"] if item["adapter"] == bad_adapter]
    # In canary, not in the shadow: callers were exposed to it, and then no longer.
    taken_back = any(item["state"] == "rolled_back" and item["sessions"] > 0 for item in bad)
    return taken_back and any(item["state"] == "promoted" for item in good)


def write(summary: Mapping[str, Any], file: Path) -> None:
    scratch = file.with_suffix(".partial")
    scratch.write_text(json.dumps(summary, indent=1) + "\n")
    scratch.replace(file)


def rendered(summary: Mapping[str, Any]) -> list[str]:
    """The summary as lines for the screen."""
    calls = summary["calls"]
    found = ", ".join(f"{count} {kind}" for kind, count in summary["personal_data"].items())
    lines = [
        f"Calls      {calls['captured']} captured, {calls['ingested']} ingested, "
        f"{calls['quarantined']} quarantined, {calls['lost']} lost",
        f"Redacted   {found or 'nothing'}",
    ]
    for task in summary["tasks"]:
        lines.append(
            f"Task       {task['id']}: {task['size']} calls, purity {_share(task['purity'])}"
        )
    for item in summary["adapters"]:
        lines.append(
            f"Adapter    {item['adapter']}: gate {item['gate']}; right on held-out calls: base "
            f"{_share(item['base_score'])}, adapter {_share(item['adapter_score'])}, teacher "
            f"{_share(item['teacher_score'])}, served {_share(item['served_score'])} at coverage "
            f"{_share(item['coverage'])}"
        )
    for item in summary["rollouts"]:
        lines.append(
            f"Rollout    {item['adapter']}: {item['state']} after {item['sessions']} canary "
            f"sessions; {item['reason']}"
        )
    lines.append(
        f"Day two    the small model answered {_share(summary['small_model_share'])} of the calls, "
        f"{_share(summary['small_model_agreement'])} of them as the teacher would; all served "
        f"answers: {_share(summary['served_agreement'])}"
    )
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in summary["stage_seconds"].items())
    lines.append(f"Took       {stages}")
    lines += [f"{name.capitalize():<10} {url}" for name, url in summary["links"].items()]
    return lines


def _tasks(context: Context, captured: Tally) -> list[dict[str, Any]]:
    pointer = assignments.latest(context.database)
    by_call = assignments.read(context.store, pointer) if pointer else {}
    shares = purity(by_call, captured.call_kinds)
    return [
        {"id": task.id, "name": task.name, "size": task.size, "purity": shares.get(task.id)}
        for task in context.registry.tasks()
    ]


def _adapters(context: Context) -> list[dict[str, Any]]:
    rows = []
    for adapter in context.registry.adapters():
        for card in context.registry.scorecards(adapter.name)[:1]:
            scores = card.body["scores"]
            rows.append(
                {
                    "adapter": adapter.name,
                    "task": adapter.task_id,
                    "base_score": scores["base"],
                    "adapter_score": scores["adapter"],
                    "teacher_score": scores["teacher"],
                    "coverage": card.body["coverage"],
                    "served_score": scores["served"],
                    "gate": card.verdict,
                }
            )
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
