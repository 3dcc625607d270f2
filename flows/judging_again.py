"""Judge a registered adapter now, as the night did or would. No Prefect here.

No route, threshold or rollout is changed by it; the large model as judge is paid from the looks' own
budget. Kept, it is one more decision of the gate beside those before, which stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from evaluators.replay import Outcome
from flows.holding import hold
from flows.judgement import Judgement, tell_mismatch
from flows.judging import ask_and_decide
from flows.learning import dataset_of
from flows.releasing import scorecard_body
from flows.scorecards import keep_scorecard
from flows.wiring import Context
from infra.artifacts.folder import pull
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.prompting.template import content_text, render_answer
from trainers.data_sets.versions import Example, read_split

MAX_CHARACTERS = 300
Say = Callable[[str], None]


@dataclass(frozen=True)
class Again:
    judgement: Judgement
    worst: Sequence[Mapping[str, Any]]
    """Of the scorecard's worst rows: what was asked last, the right answer and what was said instead,
    cut short; for a person's eyes, never kept."""
    page: str | None
    """Key of the page that was kept."""


def judge_again(
    context: Context,
    name: str,
    *,
    keep: bool = False,
    actor: str,
    why: str,
    say: Say = lambda _: None,
) -> Again:
    """Replay the adapter's held-out calls through the engine, score and decide.

    Args:
        keep: keep page and decision, with an event.

    Raises:
        UnknownAdapter, ArtifactError, EngineError; Busy: another judge is at the engine.
    """
    registered = context.registry.adapter(name)
    dataset = dataset_of(context, registered.dataset_digest)
    folder = pull(context.store, registered.location, context.settings.gateway.adapters)
    with hold(context.database, "judge", context.holder):
        judgement, rows = asyncio.run(ask_and_decide(context, folder, dataset, "", say, "look"))
    test = {example.call_id: example for example in read_split(context.store, dataset, "test")}
    page = _keep(context, judgement, actor, why) if keep else None
    return Again(judgement, _worst(judgement, rows, test), page)


def _keep(context: Context, judgement: Judgement, actor: str, why: str) -> str:
    # By when, too: the same evidence may come again, and the newest that a person kept decides.
    now = utc_now()
    digest = sha256(f"{judgement.gate['evidence_digest']}/{now.isoformat()}".encode()).hexdigest()
    key = (
        f"reports/{judgement.adapter}/judgement-{judgement.dataset_digest[:16]}-{digest[:16]}.json"
    )
    kept = replace(judgement, report=key)
    tell_mismatch(context, kept)
    context.store.put(key, kept.to_json())
    page = keep_scorecard(context, kept)
    context.registry.record_scorecard(
        digest=digest,
        adapter=kept.adapter,
        dataset_digest=kept.dataset_digest,
        body=scorecard_body(kept),
        gate=kept.gate,
        now=now,
    )
    with context.database.begin() as connection:
        record_event(
            connection,
            actor=actor,
            what="adapter.judged",
            subject=kept.adapter,
            why=why,
            evidence={"digest": digest, "verdict": kept.verdict, "report": key},
        )
    return page


def _worst(
    judgement: Judgement, rows: Sequence[Outcome], test: Mapping[str, Example]
) -> list[dict[str, Any]]:
    said = {row.example_id: row for row in rows}
    found = []
    for item in judgement.scorecards["adapter"]["worst"]:
        example, row = test[item["example_id"]], said[item["example_id"]]
        found.append(
            {
                "call": item["example_id"],
                "correct": item["correct"],
                "asked": _cut(content_text(example.request["messages"][-1].get("content"))),
                "right": _cut(render_answer(example.answer)),
                "said": None if row.message is None else _cut(render_answer(row.message)),
                "why": row.error or row.checks.reason or None,
            }
        )
    return found


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
