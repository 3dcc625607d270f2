"""Alembic's entry: migrates over the connection that ``runner.upgrade`` hands in.

To add a migration: change ``tables.py``, add ``versions/NNNN_what.py`` with the next revision, and
run ``tests/infra/database``, which compares the two on SQLite and on PostgreSQL.
"""

from alembic import context

from infra.database.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("run migrations by `nightschool db upgrade`, which takes the lock first")

context.configure(
    connection=connection,
    target_metadata=metadata,
    # The caller's transaction holds all of it, on SQLite too.
    transactional_ddl=True,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
