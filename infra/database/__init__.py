"""The database: tables, migrations, transactions. SQLite embedded, PostgreSQL shared."""
