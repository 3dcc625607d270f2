"""What gateways serve by announces its changes, whoever makes them. PostgreSQL only.

The notice goes out when the writer's transaction commits, and not when it is rolled back. One per
transaction: equal notices of one transaction are one. SQLite has no such thing; there is polling.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

CHANNEL = "nightschool_routes"
ANNOUNCED = ("routes", "tasks", "adapters", "api_keys")


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(
        "CREATE FUNCTION announce_change() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN NOTIFY {CHANNEL}; RETURN NULL; END $$"
    )
    for table in ANNOUNCED:
        # Per statement, so that a thousand rows are announced once. The statement may have found
        # no row to change, and the reader then finds nothing new.
        op.execute(
            f"CREATE TRIGGER {table}_announce AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE "
            f"ON {table} FOR EACH STATEMENT EXECUTE FUNCTION announce_change()"
        )
