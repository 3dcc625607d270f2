"""What the contract suites of the registry share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from serving.registry.registry import Registry
from serving.rollout.policy import RolloutPolicy

POLICY = RolloutPolicy(cooldown_seconds=600)
BY = {"actor": "test", "why": "because"}


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Run each action in its own thread, all starting together; results or exceptions."""
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def run(position: int, action: Callable[[], Any]) -> None:
        barrier.wait(timeout=30)
        try:
            results[position] = action()
        except Exception as error:  # noqa: BLE001 - the test looks at what was raised
            results[position] = error

    threads = [
        threading.Thread(target=run, args=(position, action))
        for position, action in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def whats(registry: Registry, subject: str) -> list[str]:
    return [event.what for event in reversed(registry.events(subject, limit=1000))]
