"""``nightschool db``: a machine's database into a file and back into an empty machine."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from flows.cli import main
from infra.database.open import Database
from serving.registry.registry import Registry
from tests.serving.registry.world import add_adapter, add_task


def run(database: Path, *words: str) -> Result:
    variables = {"NIGHTSCHOOL_DATABASE__URL": f"sqlite:///{database}"}
    return CliRunner(env=variables).invoke(main, list(words), catch_exceptions=False)


def test_an_empty_machine_gets_the_same_routes(tmp_path: Path) -> None:
    old, new, file = tmp_path / "old.db", tmp_path / "new.db", tmp_path / "copy.jsonl.zst"
    assert run(old, "db", "backup", str(file)).exit_code == 1, "there is no schema yet"
    assert run(old, "db", "upgrade").exit_code == 0
    database = Database(f"sqlite:///{old}")
    registry = Registry(database)
    add_task(database, "invoice-fields")
    champion = add_adapter(registry, "invoice-fields", 1)
    registry.set_route("invoice-fields", 0, None, champion=champion.name, actor="ann", why="x")
    database.close()
    said = run(old, "db", "backup", str(file))
    assert said.exit_code == 0
    assert "1 routes" in said.output
    restored = run(new, "db", "restore", str(file))
    assert restored.exit_code == 0
    champions = [
        json.loads(run(where, "status", "--json").stdout)["champions"] for where in (old, new)
    ]
    assert champions == [{"invoice-fields": champion.name}] * 2


def test_what_must_not_be_done_is_refused_with_one_line(tmp_path: Path) -> None:
    here, file = tmp_path / "here.db", tmp_path / "copy.jsonl.zst"
    run(here, "db", "upgrade")
    add_task(Database(f"sqlite:///{here}"), "invoice-fields")
    assert run(here, "db", "backup", str(file)).exit_code == 0
    for words, told in (
        (("restore", str(file)), "not empty"),
        (("backup", str(file)), "never overwritten"),
        (("backup", str(tmp_path / "nowhere" / "x")), "cannot be written"),
        (("restore", str(tmp_path / "nothing")), "cannot be read"),
        (("restore", str(here)), "no backup"),
    ):
        said = run(here, "db", *words)
        assert said.exit_code == 1
        assert told in said.output
        assert len(said.output.strip().splitlines()) == 1
