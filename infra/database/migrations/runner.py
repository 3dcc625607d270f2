"""Run the migrations over a connection that the caller opened (and locked)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def upgrade(connection: Connection) -> str:
    """Apply what is missing, inside the caller's transaction; the head revision."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return head_revision()


def current_revision(connection: Connection) -> str | None:
    """The revision the database is at; None for one without tables."""
    return MigrationContext.configure(connection).get_current_revision()


@cache
def head_revision() -> str:
    head = _scripts().get_current_head()
    assert head is not None
    return head


def is_known(revision: str) -> bool:
    """Whether this release has a migration of that name."""
    return any(script.revision == revision for script in _scripts().walk_revisions())


def _config() -> Config:
    config = Config()
    # Doubled: the option goes through percent interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
