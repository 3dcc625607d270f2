"""What people change in Prefect's UI, and a new start of the flows, in a real Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.runner import Runner
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.orchestrator import Orchestrator, OrchestratorDown
from flows.schedules import edited
from flows.serve import STILLBORN, ZOMBIES, register, watch_for_zombies
from infra.settings.learning import Night
from infra.settings.model import Settings
from tests.prefect_server import eventually, start_prefect
from trainers.plan import night_window


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    """A server of this module's own: what is changed here must not meet other tests."""
    with start_prefect(tmp_path_factory.mktemp("schedules")) as server:
        url = server.variables["PREFECT_API_URL"]
        with temporary_settings({PREFECT_API_URL: url}):
            yield Orchestrator(url)


def start(cron: str) -> None:
    """What a start of the flows registers, with this night in the settings."""
    register(Runner(pause_on_shutdown=False), Settings(night=Night(cron=cron)))


def deployment(api: Orchestrator, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api._ask("GET", f"/deployments/name/{name}/{name}")
    return found


def crons(api: Orchestrator) -> list[str]:
    return [entry["schedule"]["cron"] for entry in deployment(api, "night")["schedules"]]


def change(name: str, **changes: Any) -> None:
    """As the UI does it."""
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name(f"{name}/{name}")
        path = f"/deployments/{there.id}"
        if "paused" in changes:
            client.request("PATCH", path, json=changes)
            return
        schedule = there.schedules[0].id
        client.request("PATCH", f"{path}/schedules/{schedule}", json=changes)


def test_what_nobody_changed_follows_the_settings_and_what_somebody_changed_stays(
    api: Orchestrator,
) -> None:
    start("0 22 * * *")
    start("30 21 * * *")
    assert crons(api) == ["30 21 * * *"], "nobody had touched it"
    assert not deployment(api, "night")["paused"]

    change("night", schedule={"cron": "5 1 * * *", "timezone": "Europe/Paris"})
    change("ingest", paused=True)
    change("watch", active=False)
    change("rollout", schedule={"interval": 120.0, "anchor_date": "2026-01-01T00:00:00Z"})
    for cron in ("30 21 * * *", "0 20 * * *"):
        start(cron)
        night = deployment(api, "night")["schedules"]
        assert [entry["schedule"]["cron"] for entry in night] == ["5 1 * * *"]
        assert night[0]["schedule"]["timezone"] == "Europe/Paris"
        assert deployment(api, "ingest")["paused"]
        assert [entry["active"] for entry in deployment(api, "watch")["schedules"]] == [False]
        rollout = deployment(api, "rollout")["schedules"]
        assert [entry["schedule"]["interval"] for entry in rollout] == [120.0]
        assert not deployment(api, "housekeeping")["paused"]

    change("ingest", paused=False)
    start("0 20 * * *")
    assert not deployment(api, "ingest")["paused"]


def test_a_schedule_that_was_taken_away_stays_away_until_its_deployment_goes(
    api: Orchestrator,
) -> None:
    start("0 20 * * *")
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name("housekeeping/housekeeping")
        client.request("DELETE", f"/deployments/{there.id}/schedules/{there.schedules[0].id}")
        start("0 20 * * *")
        assert deployment(api, "housekeeping")["schedules"] == []
        client.request("DELETE", f"/deployments/{there.id}")
    start("0 20 * * *")
    daily = deployment(api, "housekeeping")["schedules"]
    assert [entry["schedule"]["interval"] for entry in daily] == [86400.0]


def test_what_we_registered_and_could_not_remember_is_nobodys_change() -> None:
    last, default = [{"schedule": {"cron": "a"}}], [{"schedule": {"cron": "b"}}]
    assert not edited(last, last, default)
    assert not edited(default, last, default)
    assert edited([], last, default)


def test_every_form_in_the_ui_says_what_its_fields_mean(api: Orchestrator) -> None:
    start("0 20 * * *")
    found = api._ask("POST", "/deployments/filter", {})
    assert len(found) >= 7
    for one in found:
        fields = one["parameter_openapi_schema"].get("properties", {})
        assert all(field.get("description") for field in fields.values()), one["name"]
        assert one["description"], one["name"]
        assert "nightschool" in one["tags"], one["name"]


def test_an_older_automation_is_mended_and_one_turned_off_stays_off(api: Orchestrator) -> None:
    watch_for_zombies()
    there = Automation.read(name=ZOMBIES)
    assert isinstance(there, Automation)
    there.trigger.expect = {"prefect.flow-run.heartbeat"}  # type: ignore[union-attr]
    there.enabled = False
    there.update()
    watch_for_zombies()
    mended = api._ask("POST", "/automations/filter", {})
    mine = [one for one in mended if one["name"] == ZOMBIES]
    assert len(mine) == 1
    expect = set(mine[0]["trigger"]["expect"])
    assert {"prefect.flow-run.Suspended", "prefect.flow-run.Paused"} <= expect
    assert mine[0]["enabled"] is False
    assert mine[0]["trigger"]["within"] == timedelta(seconds=180).total_seconds()
    there = Automation.read(name=ZOMBIES)
    assert isinstance(there, Automation)
    ours = there.actions
    there.actions = [ours[0].model_copy(update={"message": "an older release's words"})]
    there.update()
    watch_for_zombies()
    again = Automation.read(name=ZOMBIES)
    assert isinstance(again, Automation) and again.actions == ours and not again.enabled


def test_a_new_start_keeps_the_automations_that_watch_over_runs(api: Orchestrator) -> None:
    # Prefect forgets whom it watches with every change, and a start follows on the death of a server.
    watch_for_zombies()
    before = {one["name"]: one["updated"] for one in api._ask("POST", "/automations/filter", {})}
    assert {ZOMBIES, STILLBORN} <= before.keys()
    watch_for_zombies()
    assert before == {
        one["name"]: one["updated"] for one in api._ask("POST", "/automations/filter", {})
    }


def test_a_run_that_dies_before_its_first_heartbeat_is_noticed(api: Orchestrator) -> None:
    # Its place in the deployment would be taken for good, and every later night turned away.
    start("0 20 * * *")
    watch_for_zombies(begin_seconds=10)
    run = api.start("retrain", {"reason": "a test"})
    pending = {"state": {"type": "PENDING", "name": "Pending"}, "force": True}
    api._ask("POST", f"/flow_runs/{run.id}/set_state", pending)

    def noticed() -> bool:
        with suppress(OrchestratorDown):  # a busy machine's server, for a moment
            return api.run(run.id).state == "CRASHED"
        return False

    eventually(noticed, "nobody noticed")
    assert api.run(run.id).message == "it never gave a sign of life"


@pytest.mark.parametrize(
    ("zone", "clock", "day"),
    [
        ("Europe/Berlin", "22:00", "2026-03-28"),
        ("Europe/Berlin", "02:30", "2026-03-29"),
        ("Europe/Berlin", "02:30", "2026-10-25"),
        ("Africa/Cairo", "00:00", "2026-04-24"),
        ("America/Santiago", "00:30", "2026-09-06"),
        ("America/Havana", "00:30", "2026-11-01"),
        ("Australia/Lord_Howe", "02:15", "2026-10-04"),
    ],
)
async def test_a_night_that_prefect_begins_as_the_clock_changes_is_inside_its_window(
    zone: str, clock: str, day: str
) -> None:
    """Else that night would train nothing."""
    night = Night(timezone=zone, start=clock, end="06:00")
    cron = f"{int(clock[3:])} {int(clock[:2])} * * *"
    first = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) - timedelta(days=2)
    for begins in await CronSchedule(cron=cron, timezone=zone).get_dates(5, start=first):
        opens, closes = night_window(night, datetime.fromtimestamp(begins.timestamp(), UTC))
        assert opens <= begins, begins
        assert closes - begins > timedelta(hours=3)
