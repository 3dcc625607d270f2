"""Microseconds of processor time to find a call's task and arm, with ever more adapters registered."""

from __future__ import annotations

import random
import time
from typing import Any

HOT = 100
STRUCTURES = 10
"""Tasks that share one structure, so that only the prompt tells them apart."""
DIMENSIONS = 512
WORDS = "light music order refund kitchen jazz mail weather play invoice ticket route price".split()  # noqa: SIM905


def measure(counts: list[int], calls: int, rounds: int) -> dict[str, Any]:
    """Each round asks every registry the same number of calls to hot tasks, in turns."""
    registries = {count: _registry(count) for count in counts}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    missed = 0
    for number in range(rounds):
        for count in counts:
            took, wrong = _ask(*registries[count], calls, f"{count} {number}")
            seconds[count].append(took)
            missed += wrong
    # The least of the rounds: other work only ever adds.
    best = {count: min(values) / calls * 1e6 for count, values in seconds.items()}
    return {
        "hot": HOT,
        "calls": calls,
        "microseconds_per_call": {str(count): round(best[count], 1) for count in counts},
        "ratio_most_to_fewest": round(best[counts[-1]] / best[counts[0]], 2),
        "calls_of_no_task": missed,
    }


def _request(task: int, text: str) -> dict[str, Any]:
    system = f"You are the assistant of desk {task // STRUCTURES}. Answer in one line."
    return {
        "model": "nightschool",
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": text},
        ],
    }


def _topic(task: int) -> list[str]:
    return random.Random(task).sample(WORDS, 6)


def _registry(count: int) -> tuple[Any, frozenset[str], int]:
    from infra.prompting.template import FULL
    from infra.tasks.embedding import embed, prompt_text
    from infra.tasks.signature import signature
    from serving.gateway.routes import AdapterRoute, Snapshot, TaskRoute, frame_of
    from serving.gateway.routing import Router

    tasks = []
    for number in range(count):
        like = _request(number, " ".join(_topic(number)))
        name = f"task-{number}@{number:016x}"
        tasks.append(
            TaskRoute(
                id=f"task-{number}",
                signature=signature(like).digest,
                frame=frame_of([], "text", ""),
                centroid=tuple(map(float, embed([prompt_text(like)], DIMENSIONS)[0])),
                radius=0.9,
                champion=AdapterRoute(name, f"{number:064x}", "adapters/x", FULL.to_dict(), None),
                salt="salt",
            )
        )
    snapshot = Snapshot(tuple(tasks))
    hot = frozenset(list(snapshot.adapters())[:HOT])
    return Router(snapshot), hot, min(count, HOT)


def _ask(router: Any, ready: frozenset[str], hot: int, calls: int, seed: str) -> tuple[float, int]:
    from serving.gateway.arms import assign

    chosen = random.Random(seed)
    requests = []
    for number in range(calls):
        task = chosen.randrange(hot)
        # Never the same text twice: nothing of it is remembered.
        words = [*_topic(task), f"{seed} {number}"]
        chosen.shuffle(words)
        requests.append(_request(task, " ".join(words)))
    missed = 0
    started = time.process_time()
    for number, request in enumerate(requests):
        routed = router.route(request, None, "tenant")
        if routed is None:
            missed += 1
            continue
        assign(routed.task, f"session-{number}", ready=ready, killed=False, tended=True)
    return time.process_time() - started, missed
