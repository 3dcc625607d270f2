"""Fixtures of the contract suites."""

from __future__ import annotations

import pytest

from infra.database.open import Database
from serving.registry.registry import Registry
from tests.serving.registry.world import add_task


@pytest.fixture
def registry(each_database: Database) -> Registry:
    add_task(each_database, "mail")
    return Registry(each_database)
