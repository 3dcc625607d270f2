"""psycopg's connection, with a bound on its waits. Imported where PostgreSQL is used only."""

from __future__ import annotations

from typing import Any

import psycopg

from infra.database.patience import seconds_left


class PatientConnection(psycopg.Connection[Any]):
    """Knows of ``answers_within``."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        left = seconds_left()
        if left is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, left)
        except psycopg.OperationalError:
            if not seconds_left():
                self.close()
            raise
