"""What a judgement rests on beside the answers: earlier tests, golden cases, tries. No Prefect here."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import TypeVar

from evaluators.guards import slices_of
from evaluators.honesty import Honesty, check_honesty
from evaluators.languages import language_of
from evaluators.replay import Outcome
from evaluators.scoring import CallScore
from evaluators.served import Served
from flows.wiring import Context
from infra.objects.store import ObjectMissing
from infra.tasks.embedding import prompt_text
from trainers.data_sets.golden import GoldenCase
from trainers.data_sets.labels import answer_key, prompt_key
from trainers.data_sets.versions import (
    DatasetCorrupt,
    DatasetVersion,
    Example,
    find_dataset,
    read_split,
)

GOLDEN = "golden"
Say = Callable[[str], None]
R = TypeVar("R", Outcome, Served)


def teacher_score(examples: Sequence[Example]) -> float:
    """How often the teacher's own answer is the label: below 1 only where feedback corrected it."""
    return sum(example.source != "correction" for example in examples) / max(1, len(examples))


def earlier_tests(
    context: Context, dataset: DatasetVersion, test: Sequence[Example], say: Say = lambda _: None
) -> dict[str, list[Example]]:
    """Test examples of the task's data sets before this one, by digest: what must not be unlearned.

    Those that this test has already are left out. They may be in this training: nothing that was
    right once must get lost, learned again or not. A set that was cleared away is not asked.
    """
    gate = context.settings.gate
    known = {example.call_id for example in test}
    versions = context.registry.datasets(dataset.task_id)
    digests = [version.digest for version in versions]
    if dataset.digest in digests:
        versions = versions[: digests.index(dataset.digest)]
    found: dict[str, list[Example]] = {}
    for version in reversed(versions):
        if len(found) >= gate.earlier_sets:
            break
        try:
            rows = read_split(context.store, find_dataset(context.store, version.location), "test")
        except (ObjectMissing, DatasetCorrupt) as error:
            say(f"the earlier test {version.digest[:12]} is not asked: {error}")
            continue
        fresh = [row for row in rows if row.call_id not in known][: gate.max_earlier_rows]
        known |= {row.call_id for row in fresh}
        if fresh:
            found[version.digest] = fresh
    return found


def tries_before(context: Context, task_id: str, candidate: str, incumbent: str) -> int:
    """How many other adapters of the task were judged against this incumbent. Drills do not count."""
    return sum(
        adapter.name != candidate
        and not (adapter.manifest.get("spec") or {}).get("shuffle_answers")
        and any(
            (card.gate.get("evidence") or {}).get("incumbent") == incumbent
            for card in context.registry.scorecards(adapter.name)
        )
        for adapter in context.registry.adapters(task_id)
    )


def slices_by_example(examples: Sequence[Example]) -> dict[str, dict[str, str]]:
    """Which slices each belongs to, by call id; a data set's sessions begin with their tenant."""
    return {
        row.call_id: {
            **slices_of(row.request, row.answer, row.session.partition("/")[0]),
            "language": language_of(prompt_text(row.request)),
        }
        for row in examples
    }


def golden_seen(trained: Set[str], cases: Sequence[GoldenCase]) -> int:
    """How many of the cases ask what is trained on: those pinned after the data set was frozen."""
    return sum(prompt_key(case.request) in trained for case in cases)


def honesty_of(trained: Set[str], test: Sequence[Example]) -> Honesty:
    """What the test has in common with the prompts that are trained on, and with itself."""
    return check_honesty(
        [prompt_key(row.request) for row in test],
        [answer_key(row.answer) for row in test],
        [row.source == "correction" for row in test],
        trained,
    )


def trained_prompts(context: Context, dataset: DatasetVersion) -> set[str]:
    """The keys of the prompts in the data set's training split."""
    return {prompt_key(row.request) for row in read_split(context.store, dataset, "train")}


def right_or_wrong(rows: Sequence[R], cases: Sequence[GoldenCase]) -> list[R]:
    """Scores of golden cases as 1 (at least what the case asks for) or 0."""
    least = {case.id: case.least for case in cases}
    found: list[R] = []
    for row in rows:
        right = float(row.correct >= least[row.example_id])
        if isinstance(row, Outcome):
            score = CallScore(row.score.kind, right, row.score.stages)
            found.append(replace(row, score=score))
        else:
            found.append(replace(row, correct=right))
    return found


def progress_of(say: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """Say how far a replay is, about every quarter of it."""

    def report(done: int, total: int) -> None:
        if done == total or done % max(1, total // 4) == 0:
            say(f"judging {what}: {done} of {total}")

    return report
