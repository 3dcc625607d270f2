"""``status``, ``doctor``, ``audit`` and ``hooks`` as an operator meets them."""

from __future__ import annotations

import json
import shutil
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from flows.cli.watch_over import _night
from flows.examination import CHECKS, examine
from flows.hooks.receipts import Receipts
from flows.overview import traffic_of
from infra.calls.record import utc_now
from infra.database.events import record_event
from infra.database.open import Database
from infra.database.tables import ingested_objects
from infra.notify.message import Message
from infra.notify.outbox import enqueue
from infra.objects.directory import DirectoryStore
from infra.settings.model import Settings
from serving.gateway.metrics import Metrics
from serving.registry.registry import Registry
from tests.flows.cli.conftest import Run, parsed
from tests.prefect_server import free_port


def test_status_shows_what_runs_even_where_the_store_is_away(
    run: Run, registry: Registry, folder: Path
):
    shutil.rmtree(folder / "objects", ignore_errors=True)
    (folder / "objects").touch()
    result = run("status", status=1)
    assert "gateway   down" in result.stdout
    assert "object store" in result.stderr


def test_status_tells_what_waits_and_what_is_not_known(run: Run, registry: Registry, folder: Path):
    store = DirectoryStore(folder / "objects")
    store.put(f"logs/v1/dt={utc_now():%Y-%m-%d}/hh=00/a-0000000000.jsonl.zst", b"x")
    Receipts(registry.database).take("ci", "m1", "retrain", {"task": None, "reason": "x"})
    with registry.database.begin() as connection:
        message = Message(key="k", topic="t", title="T", what="w")
        enqueue(connection, message, ["console"])
        record_event(
            connection,
            actor="watch",
            what="task.drifted",
            subject="small-talk",
            why="it did",
            evidence={
                "drift_share": 0.75,
                "columns": {"action, training": [0.4, 0.1], "action, before": [0.3, 0.1]},
                "retraining": "asked for",
            },
        )
    found = parsed(run("status", "--json"))
    backlog = found["backlog"]
    assert (backlog["log_objects"], backlog["webhooks_kept"]) == (1, {"retrain": 1})
    # Opening the rollout has told of itself already.
    assert backlog["messages_waiting"] >= 1
    drifted = found["drift"]["tasks"]["small-talk"]
    assert (drifted["share"], drifted["columns"]) == (0.75, ["action"])
    assert "error" in found["traffic"] and "nightschool up" in found["last_night"]["error"]
    said = run("status").stdout
    for words in (
        "traffic: not known",
        "drift: small-talk (action; retraining asked for)",
        "1 log objects to ingest",
        "1 retrain",
    ):
        assert words in said
    assert len(said.splitlines()) < 25


def test_status_tells_times_to_the_second_and_their_zone(run: Run, empty: Database):
    taken = datetime(2030, 1, 31, 2, 0, 5, 123456, tzinfo=UTC)
    with empty.begin() as connection:
        connection.execute(
            insert(ingested_objects).values(
                key="logs/v1/a",
                etag="e",
                state="done",
                holder="h",
                claimed_until=taken,
                counts={},
                finished=taken,
            )
        )
    assert "(last ingest 2030-01-31 02:00:05 UTC)" in run("status").stdout
    night = {
        "name": "calm-owl",
        "state": "COMPLETED",
        "started": "2030-01-31T03:00:00.512345+01:00",
    }
    assert _night({**night, "ended": None}) == (
        "calm-owl, completed, began 2030-01-31 02:00:00 UTC, ended -"
    )


def test_the_share_and_the_money_are_read_off_a_real_gateways_page():
    metrics = Metrics()
    for answerer, count in (("teacher", 1), ("champion", 2), ("canary", 1)):
        for _ in range(count):
            metrics.answered("mail", answerer, None, 0.1)
    metrics.saved("mail", 1000, 0.5)
    metrics.lost.labels("disk").inc(2)
    found = traffic_of(metrics.page().decode())
    assert (found["calls"], found["small_model_share"]) == (4, 0.75)
    assert (found["cost_saved"], found["tokens_saved"], found["records_lost"]) == (0.5, 1000, 2)
    with pytest.raises(ValueError, match=r"."):
        traffic_of("<html>{not for prometheus</html>")


class TestDoctor:
    def test_it_says_what_is_broken_and_how_to_mend_it(self, run: Run, empty: Database):
        found = {check["name"]: check for check in parsed(run("doctor", "--json", status=1))}
        assert set(found) == set(CHECKS)
        assert found["database"]["outcome"] == found["object store"]["outcome"] == "ok"
        assert found["Prefect"]["outcome"] == "broken"
        assert "nightschool up" in found["Prefect"]["mend"]
        assert found["processes"]["outcome"] == "warning"
        said = run("doctor", status=1).stdout
        assert "broken  Prefect" in said and "-> nightschool up" in said

    def test_a_database_without_tables_and_a_store_that_cannot_be_written(self, settings: Settings):
        Path(settings.storage.url).write_text("a file where the folder should be")
        found = {check.name: check for check in examine(settings)}
        assert found["database"].outcome == found["object store"].outcome == "broken"
        assert "nightschool db upgrade" in found["database"].told

    def test_what_hangs_is_told_of_in_time(self, settings: Settings):
        """A server that takes connections and never answers."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
            prefect = settings.prefect.model_copy(update={"api_url": address})
            began = time.monotonic()
            found = examine(settings.model_copy(update={"prefect": prefect}), seconds=2)
            assert time.monotonic() - began < 60
        told = {check.name: check for check in found}
        assert (told["Prefect"].outcome, told["Prefect"].told) == (
            "broken",
            "no answer within 2 seconds",
        )

    def test_a_ray_that_does_not_listen_and_one_that_this_machine_is_part_of(
        self, settings: Settings
    ):
        told = {}
        for address in (f"ray://127.0.0.1:{free_port()}", "auto"):
            training = settings.training.model_copy(update={"ray_address": address})
            changed = settings.model_copy(update={"training": training})
            (told[address],) = [one for one in examine(changed) if one.name == "Ray"]
        here, there = told.pop("auto"), told.popitem()[1]
        assert here.outcome == "ok"
        assert there.outcome == "broken" and "no Ray at ray://127.0.0.1:" in there.told
        assert "[training] ray_address" in there.mend

    def test_a_port_that_another_took_a_secret_that_cannot_sign_and_a_sender_without_one(
        self, settings: Settings, database: Database
    ):
        with socket.create_server(("127.0.0.1", 0)) as other:
            changed = settings.model_dump() | {
                "registry": {"port": other.getsockname()[1]},
                "hooks": {"secrets": {"ci": "whsec_!"}, "keys": ["k" * 40], "port": free_port()},
                "gateway": {**settings.gateway.model_dump(), "port": free_port()},
            }
            found = {c.name: c for c in examine(Settings.model_validate(changed))}
        assert found["ports"].outcome == "broken" and "[registry] port" in found["ports"].mend
        assert (found["webhooks"].outcome, "secret of ci" in found["webhooks"].told) == (
            "broken",
            True,
        )
        changed["hooks"] = {"senders": {"gh": {"scheme": "github"}}, "keys": ["k" * 40]}
        found = {c.name: c for c in examine(Settings.model_validate(changed))}
        assert found["webhooks"].outcome == "warning"
        assert found["webhooks"].mend == "nightschool hooks secrets add gh"


class TestAudit:
    def test_it_is_filtered_and_paged(self, run: Run, registry: Registry):
        with registry.database.begin() as connection:
            record_event(
                connection,
                actor="ben@desk",
                what="key.revoked",
                subject="3fa9",
                why="it leaked",
                time=utc_now() - timedelta(days=3),
            )
        everything = parsed(run("audit", "--json"))["items"]
        assert [row["id"] for row in everything] == sorted(
            (r["id"] for r in everything), reverse=True
        )
        assert {row["why"] for row in everything if row["actor"] == "ben@desk"} == {"it leaked"}

        def ids(*options: str) -> list[int]:
            return [row["id"] for row in parsed(run("audit", "--json", *options))["items"]]

        ben = [row["id"] for row in everything if row["actor"] == "ben@desk"]
        assert (
            ids("--actor", "ben@desk")
            == ids("--what", "key.")
            == ids("--what", "key.revoked")
            == ben
        )
        assert ids("--what", "key") == []
        assert ben[0] not in ids("--since", "2d") and ben[0] in ids("--since", "4d")
        own = parsed(run("audit", "--json", "--task", "invoice-fields"))["items"]
        adapters = {adapter.name for adapter in registry.adapters("invoice-fields")}
        assert adapters & {row["subject"] for row in own}
        assert not any(row["subject"] == "small-talk" for row in own)
        paged: list[int] = []
        before: int | None = None
        while True:
            page = parsed(
                run(
                    "audit",
                    "--json",
                    "--limit",
                    "2",
                    *(["--before", str(before)] if before else []),
                )
            )
            paged += [row["id"] for row in page["items"]]
            before = page["before"]
            if before is None:
                break
        assert paged == [row["id"] for row in everything]
        assert "more: --before" in run("audit", "--limit", "1").stderr

    def test_what_it_does_not_understand(self, run: Run, registry: Registry):
        for wrong in ("yesterday", "2030-01-31T12:00:00", "5w"):
            assert "time" in run("audit", "--since", wrong, status=2).stderr
        assert "no task 'nobody'" in run("audit", "--task", "nobody", status=3).stderr

    def test_who_acted_is_kept(self, run: Run, registry: Registry):
        run("keys", "create", "--as", "ann", "--label", "one")
        run("keys", "create", "--label", "two")
        actors = [
            row["actor"] for row in parsed(run("audit", "--what", "key.created", "--json"))["items"]
        ]
        assert actors[1] == "ann" and actors[0].endswith(f"@{socket.gethostname()}")
        assert "1 to 100" in run("keys", "create", "--as", "x" * 101, status=2).stderr


class TestHookSecrets:
    def test_their_life(self, run: Run, empty: Database):
        first = run("hooks", "secrets", "add", "ci", "--as", "ann").stdout.strip()
        assert first.startswith("whsec_")
        assert "already" in run("hooks", "secrets", "add", "ci", status=1).stderr
        second = run("hooks", "secrets", "rotate", "ci", "--overlap-hours", "2").stdout.strip()
        listed = run("hooks", "secrets", "list", "--json").stdout
        assert first not in listed and second not in listed
        old, new = json.loads(listed)
        assert old["expires"] is not None and new["expires"] is None
        assert "revoked" in run("hooks", "secrets", "revoke", "ci", old["id"]).stdout
        assert len(parsed(run("hooks", "secrets", "list", "--json"))) == 1
        assert "no secret" in run("hooks", "secrets", "revoke", "ci", old["id"], status=1).stderr
        assert "sender's name" in run("hooks", "secrets", "add", "a b", status=2).stderr

    def test_what_waits_is_shown(self, run: Run, empty: Database):
        assert "Nothing waits" in run("hooks", "waiting").stdout
        Receipts(empty).take("ci", "m1", "rollback", {"task": "x", "reason": "y"})
        (row,) = parsed(run("hooks", "waiting", "--json"))
        assert (row["sender"], row["hook"], row["id"]) == ("ci", "rollback", "m1")
