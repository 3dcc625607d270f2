"""``nightschool config`` and ``db``: what is set, where it came from, and what a database needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from infra.database.open import Database
from tests.flows.cli.conftest import Run, parsed
from tests.prefect_server import free_port

SECRET = "hunter2-do-not-print"


class TestSettings:
    def test_config_names_every_setting_and_its_origin(
        self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (folder / "here.toml").write_text("[training]\nrank = 8\n")
        monkeypatch.setenv("NIGHTSCHOOL_TRAINING__SEED", "11")
        rows = {r["key"]: r for r in parsed(run("--config", "here.toml", "config", "--json"))}
        assert (rows["training.rank"]["value"], rows["training.rank"]["source"]) == (
            "8",
            "here.toml",
        )
        assert rows["training.seed"]["source"] == "NIGHTSCHOOL_TRAINING__SEED"
        assert rows["training.epochs"]["source"] == "default"
        assert "training.rank" in run("--config", "here.toml", "config").stdout

    def test_no_secret_is_ever_printed(
        self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        secret = {
            "TEACHER__API_KEY": SECRET,
            "ENGINE__API_KEY": SECRET,
            "STORAGE__SECRET_ACCESS_KEY": SECRET,
            "ANONYMIZER__HASH_KEY": SECRET,
            "HOOKS__SECRETS": json.dumps({"ci": SECRET}),
            "DATABASE__URL": f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{free_port()}/ns",
            "DATABASE__BUSY_TIMEOUT_SECONDS": "2",
        }
        for name, value in secret.items():
            monkeypatch.setenv(f"NIGHTSCHOOL_{name}", value)
        for arguments in (["config"], ["config", "--json"]):
            assert SECRET not in run(*arguments).output
        # Nothing listens there: what is said of it holds no password either.
        for arguments in (["tasks"], ["db", "upgrade"], ["status"]):
            refused = run(*arguments, status=1)
            assert SECRET not in refused.output
            assert "did not do what was asked" in refused.stderr

    @pytest.mark.parametrize(
        ("name", "value", "told"),
        [
            ("NIGHTSCHOOL_GATEWAY__PORT", SECRET, "NIGHTSCHOOL_GATEWAY__PORT: gateway.port"),
            ("NIGHTSCHOOL_GATEWAY__PROT", SECRET, "did you mean NIGHTSCHOOL_GATEWAY__PORT"),
            ("NIGHTSCHOOL_NIGHT__TIMEZONE", SECRET, "no time zone of that name"),
            ("NIGHTSCHOOL_ROLLOUT__STEPS", SECRET, "written as JSON"),
            ("NIGHTSCHOOL_DATABASE__URL", f"mysql://me:{SECRET}@x/y", "names 'mysql'"),
            ("NIGHTSCHOOL_DATABASE__URL", SECRET, "[database] url is not a URL"),
            ("NIGHTSCHOOL_CONFIG", "missing.toml", "missing.toml"),
        ],
    )
    def test_a_wrong_setting_is_one_clear_line_without_its_value(
        self,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        value: str,
        told: str,
    ):
        monkeypatch.setenv(name, value)
        refused = run("tasks", status=2)
        assert told in refused.stderr
        assert refused.stderr.startswith("nightschool: ")
        assert len(refused.stderr.splitlines()) == 1
        assert SECRET not in refused.output

    def test_a_wrong_file_is_named(self, run: Run, folder: Path):
        (folder / "bad.toml").write_text("[engine]\nbatch_size = 70000\n")
        assert (
            "bad.toml: engine.batch_size" in run("--config", "bad.toml", "tasks", status=2).stderr
        )
        (folder / "torn.toml").write_text("[gateway\n")
        assert "not valid TOML" in run("--config", "torn.toml", "tasks", status=2).stderr
        assert "missing.toml" in run("--config", "missing.toml", "tasks", status=2).stderr


class TestDatabase:
    def test_an_outdated_database_says_what_to_run_and_that_helps(self, run: Run, folder: Path):
        refused = run("tasks", status=1)
        assert "nightschool db upgrade" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        first = run("db", "upgrade").stdout
        assert "revision" in first
        assert run("db", "upgrade").stdout == first
        assert parsed(run("tasks", "--json")) == []

    def test_a_database_of_a_newer_release_is_left_alone(self, run: Run, empty: Database):
        with empty.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        for arguments in (["tasks"], ["db", "upgrade"]):
            assert "newer release" in run(*arguments, status=1).stderr

    def test_a_place_where_no_file_can_be(
        self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (folder / "file").write_text("not a folder")
        monkeypatch.setenv("NIGHTSCHOOL_DATABASE__URL", f"sqlite:///{folder}/file/ns.db")
        refused = run("db", "upgrade", status=1)
        assert "cannot be made" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1

    def test_a_file_that_is_no_database(self, run: Run, folder: Path):
        (folder / "ns.db").write_bytes(b"this is no database, whatever its name says" * 100)
        assert "not a database" in run("tasks", status=1).stderr
