"""The command line as a person and a script meet it, on a real SQLite database."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import COMMANDS
from flows.cli.common import KNOWN_ERRORS
from infra.database.open import Database
from infra.objects.directory import DirectoryStore
from serving.registry.keys import find_key
from serving.registry.registry import Registry
from tests.flows.cli.conftest import Run, lines, parsed
from tests.trainers.recorded import home, put_log


class TestHelp:
    def test_help_is_instant_because_nothing_heavy_is_imported(self):
        heavy = {"torch", "prefect", "ray", "sqlalchemy", "numpy", "pydantic", "aiohttp", "boto3"}
        code = (
            "import sys\n"
            "from click.testing import CliRunner\n"
            "from flows.cli import COMMANDS, main\n"
            "for words in ([], *([name] for name in COMMANDS)):\n"
            "    assert CliRunner().invoke(main, [*words, '--help']).exit_code == 0, words\n"
            f"print(sorted({heavy!r} & set(sys.modules)))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_a_real_process_prints_every_command_and_the_exit_statuses(self):
        done = subprocess.run(
            [sys.executable, "-c", "from flows.cli import main; main()", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
        assert "0 done, 1 it failed, 2 wrong usage or settings, 3 not found" in done.stdout

    def test_an_unknown_command_or_option_is_wrong_usage(self, run: Run):
        assert "No such command 'nonsense'" in run("nonsense", status=2).stderr
        assert "No such option" in run("tasks", "--nonsense", status=2).stderr
        assert "is not in the range" in run("events", "--limit", "0", status=2).stderr

    def test_every_error_that_is_known_by_name_exists(self):
        for name in KNOWN_ERRORS:
            module, _, kind = name.rpartition(".")
            found = getattr(importlib.import_module(module), kind)
            assert issubclass(found, Exception)
            assert found.__module__ == module


class TestReading:
    def test_tasks(self, run: Run, registry: Registry):
        champion = registry.route("invoice-fields").champion
        assert parsed(run("tasks", "--json")) == [
            {
                "id": task,
                "name": f"Task {task}",
                "state": "candidate",
                "policy": "specialize",
                "calls": 100,
                "champion": who,
            }
            for task, who in (("invoice-fields", champion), ("small-talk", "teacher"))
        ]
        head, first, second = lines(run("tasks"))
        assert head.split() == ["id", "name", "state", "policy", "calls", "champion"]
        assert first.split()[0] == "invoice-fields"
        assert first.endswith(champion)
        assert second.endswith("teacher")

    def test_adapters(self, run: Run, registry: Registry):
        rows = parsed(run("adapters", "--json"))
        assert {row["adapter"] for row in rows} == {a.name for a in registry.adapters()}
        (failed,) = (row for row in rows if row["adapter"].startswith("small-talk@"))
        assert (failed["gate"], failed["state"], failed["score"]) == ("fail", "registered", None)
        of_task = parsed(run("adapters", "invoice-fields", "--json"))
        assert len(of_task) == 2
        newest = of_task[-1]
        assert (newest["base"], newest["score"], newest["coverage"]) == (0.25, 0.875, 0.75)
        assert "0.875" in run("adapters", "invoice-fields").stdout
        assert "no task 'nobody'" in run("adapters", "nobody", status=3).stderr

    def test_rollouts(self, run: Run, registry: Registry):
        (row,) = parsed(run("rollouts", "--json"))
        (rollout,) = registry.rollouts()
        assert (row["id"], row["adapter"]) == (rollout.id, rollout.adapter)
        assert (row["state"], row["reason"]) == ("pending", "the gate said pass")
        assert rollout.adapter in run("rollouts").stdout

    def test_events(self, run: Run, registry: Registry):
        everything = parsed(run("events", "--json", "--limit", "1000"))
        assert [row["what"] for row in everything] == [e.what for e in registry.events(limit=1000)]
        assert len(parsed(run("events", "--json", "--limit", "2"))) == 2
        by_hand = [row for row in everything if row["actor"] == "ann"]
        assert [(row["what"], row["why"]) for row in by_hand] == [("route.changed", "by hand")]
        (rollout,) = registry.rollouts()
        (opened,) = parsed(run("events", rollout.id, "--json"))
        assert (opened["what"], opened["subject"]) == ("rollout.opened", rollout.id)
        assert "Nothing has happened yet." in run("events", "nobody").stdout

    def test_status(self, run: Run, registry: Registry):
        found = parsed(run("status", "--json"))
        assert set(found["services"]) == {"prefect", "engine", "gateway", "hooks", "registry"}
        assert not any(service["up"] for service in found["services"].values())
        (rollout,) = registry.rollouts()
        assert found["open_rollouts"] == {rollout.adapter: "pending"}
        assert found["champions"] == {"invoice-fields": registry.route("invoice-fields").champion}
        said = run("status").stdout
        assert "down" in said
        assert f"{rollout.adapter}: pending" in said

    @pytest.mark.parametrize(
        ("command", "hint"),
        [
            ("tasks", "No tasks yet"),
            ("adapters", "No adapters yet"),
            ("rollouts", "No rollouts yet"),
            ("events", "Nothing has happened yet"),
        ],
    )
    def test_an_empty_registry_says_so_and_is_an_empty_list_for_a_script(
        self, run: Run, empty: Database, command: str, hint: str
    ):
        assert hint in run(command).stdout
        assert parsed(run(command, "--json")) == []


class TestActing:
    def test_a_rollback_takes_the_candidate_then_the_champion_then_nothing(
        self, run: Run, registry: Registry
    ):
        champion = registry.route("invoice-fields").champion
        (rollout,) = registry.rollouts()
        first = parsed(run("rollback", "invoice-fields", "--why", "odd answers", "--json"))
        assert (first["champion"], first["candidate"]) == (champion, None)
        assert registry.rollout(rollout.id).state == "rolled_back"
        assert "is answered by teacher" in run("rollback", "invoice-fields").stdout
        assert registry.route("invoice-fields").champion == "teacher"
        assert registry.adapter(champion).state == "rejected"
        assert "nightschool: " in run("rollback", "invoice-fields", status=3).stderr
        whys = {event.why for event in registry.history("invoice-fields")}
        assert "odd answers" in " ".join(whys)

    def test_a_rollback_to_the_teacher(self, run: Run, registry: Registry):
        run("rollback", "invoice-fields", "--to", "teacher")
        assert registry.route("invoice-fields").champion == "teacher"

    def test_a_rollback_that_cannot_be(self, run: Run, registry: Registry):
        before = registry.route("invoice-fields")
        assert "no task 'nobody'" in run("rollback", "nobody", status=3).stderr
        never = run("rollback", "invoice-fields", "--to", "somebody-else", status=1)
        assert "somebody-else" in never.stderr
        assert registry.route("invoice-fields") == before

    def test_keys_are_shown_once_and_revoked_by_the_start_of_their_hash(
        self, run: Run, empty: Database
    ):
        made = run("keys", "create", "--tenant", "shop", "--label", "till").stdout.strip()
        found = find_key(empty, made)
        assert found is not None
        assert (found.tenant, found.role, found.label) == ("shop", "call", "till")
        for listing in (run("keys", "list"), run("keys", "list", "--json"), run("events")):
            assert made not in listing.output
        (row,) = parsed(run("keys", "list", "--json"))
        assert (row["tenant"], row["label"], row["revoked"]) == ("shop", "till", None)
        assert found.hash.startswith(row["hash"])
        run("keys", "revoke", row["hash"])
        assert find_key(empty, made) is None
        assert parsed(run("keys", "list", "--json"))[0]["revoked"] is not None
        assert "no key begins with" in run("keys", "revoke", "0123456789ab", status=3).stderr

    def test_limits_of_a_key_are_set_changed_and_taken_away(self, run: Run, empty: Database):
        limits = ["--requests-per-minute", "60", "--expires", "2999-01-31T12:00:00Z"]
        made = run("keys", "create", "--role", "operate", *limits).stdout.strip()
        found = find_key(empty, made)
        assert found is not None and found.expires is not None
        assert (found.role, found.requests_per_minute, found.expires.year) == ("operate", 60, 2999)
        said = run("keys", "limit", found.id, "--tokens-per-minute", "9000", "--expires", "none")
        assert "tokens_per_minute 9000" in said.stdout and "expires none" in said.stdout
        (row,) = parsed(run("keys", "list", "--json"))
        assert (row["requests_per_minute"], row["tokens_per_minute"]) == (60, 9000)
        assert row["expires"] is None
        for wrong, why in (
            (("--tokens-per-minute", "many"), "neither a number nor none"),
            (("--tokens-per-minute", "0"), "from 1"),
            (("--expires", "tomorrow"), "is no time"),
            (("--expires", "2020-01-01T00:00:00Z"), "future"),
            (("--expires", "2999-01-01T00:00:00"), "time zone"),
            ((), "which limit"),
        ):
            assert why in run("keys", "limit", found.id, *wrong, status=2).stderr
        assert "no key" in run("keys", "limit", "0" * 12, *limits, status=3).stderr

    def test_a_key_that_cannot_be(self, run: Run, empty: Database):
        assert "tenant has 1 to 100" in run("keys", "create", "--tenant", " ", status=2).stderr
        assert "Invalid value for '--role'" in run("keys", "create", "--role", "x", status=2).stderr
        assert parsed(run("keys", "list", "--json")) == []

    def test_retraining_needs_a_task_that_exists_and_a_prefect_server(
        self, run: Run, registry: Registry
    ):
        assert "no task 'nobody'" in run("retrain", "nobody", status=3).stderr
        refused = run("retrain", "small-talk", status=1)
        assert "start one with nightschool up" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


class TestNight:
    @pytest.fixture
    def recorded(self, folder: Path, empty: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
        """A day's calls of one task, ingested."""
        from infra.settings.sources import load_settings
        from trainers.ingest.ingest import ingest

        monkeypatch.setenv("NIGHTSCHOOL_GATE__MIN_ROWS", "5")
        monkeypatch.setenv("NIGHTSCHOOL_TRAINING__MIN_EXAMPLES", "40")
        store = DirectoryStore(folder / "objects")
        put_log(store, [home(number) for number in range(96)])
        ingest(store, empty, load_settings(), holder="test")
        return empty

    def test_the_plan_says_what_would_be_trained_and_trains_nothing(
        self, run: Run, recorded: Database
    ):
        (row,) = parsed(run("night", "--plan", "--json"))
        registry = Registry(recorded)
        (task,) = registry.tasks()
        assert row["task"] == task.id
        assert row["steps"] > 0
        assert row["seconds"] > 0
        assert "training examples" in row["why"]
        assert registry.adapters() == []
        assert parsed(run("night", "--plan", "--task", task.id, "--json")) == [row]
        assert task.id in run("night", "--plan").stdout
        # The same for the configured night, whatever time it is now.
        assert parsed(run("night", "--plan", "--tonight", "--json"))[0]["task"] == task.id
        assert "no task 'nobody'" in run("night", "--plan", "--task", "nobody", status=3).stderr

    def test_what_is_not_trained_has_its_reason(
        self, run: Run, recorded: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("NIGHTSCHOOL_TRAINING__MIN_EXAMPLES", "5000")
        (row,) = parsed(run("night", "--plan", "--json"))
        assert row["steps"] == 0
        assert "at least 5000 are needed" in row["why"]

    def test_without_calls_there_is_nothing_to_plan(self, run: Run, empty: Database):
        assert "No tasks yet" in run("night", "--plan").stdout
        assert parsed(run("night", "--plan", "--json")) == []

    def test_a_night_needs_a_known_task_and_a_prefect_server(self, run: Run, registry: Registry):
        assert "no task 'nobody'" in run("night", "--task", "nobody", status=3).stderr
        refused = run("night", status=1)
        assert "start one with nightschool up" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_the_installed_command_prints_one_line_and_its_status(folder: Path):
    """Once through a real process: no traceback, and the status that a shell sees."""
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "tasks"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "run nightschool db upgrade" in done.stderr
