"""One Ray with two workers for the tests beside this file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trainers.executors.on_ray import RayExecutor


@pytest.fixture(scope="package")
def ray_executor() -> Iterator[RayExecutor]:
    executor = RayExecutor(workers=2)
    yield executor
    executor.close()
