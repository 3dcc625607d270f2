"""A registry with one task, on SQLite or on each database."""

from __future__ import annotations

import pytest

from infra.database.open import Database
from serving.registry.registry import Registry
from tests.serving.registry.world import add_task


@pytest.fixture
def registry(database: Database) -> Registry:
    add_task(database, "mail")
    return Registry(database)


@pytest.fixture
def each_registry(each_database: Database) -> Registry:
    add_task(each_database, "mail")
    return Registry(each_database)
