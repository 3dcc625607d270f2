"""``python -m flows.stack.orchestrator_server server start ...``: Prefect's server, kept from locking
itself out of its SQLite database (decision 42).

A transaction that reads and then writes is refused at once, however long the time-out, when another
has written since it began. Events are dropped so, and answers to a waiting run. Here a transaction
takes the write lock when it begins, and waits for it; and garbage does not stop who holds it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

from flows.stack.garbage import collect_garbage_aside


class WriteLockFirst(AioSqliteConfiguration):
    """Prefect's SQLite database, no transaction of which is refused for what it has read."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = True
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


if __name__ == "__main__":
    collect_garbage_aside()
    if (url := PREFECT_API_DATABASE_CONNECTION_URL.value()).startswith("sqlite"):
        MODELS_DEPENDENCIES["database_config"] = WriteLockFirst(connection_url=url)
    app()
