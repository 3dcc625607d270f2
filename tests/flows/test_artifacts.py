"""What a night shows of itself, read back from a real Prefect server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from evaluators.drift import DriftSummary
from flows import artifacts
from flows.artifacts import Progress, scores, show_facts
from flows.drift_artifacts import show_looks
from flows.drift_reports import DriftReport
from flows.judging import Judgement
from flows.planning import RunFact
from flows.serve import deployments
from flows.watching import Look
from flows.wiring import open_context
from infra.database.open import Database
from infra.settings.model import Settings
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
JUDGED = Judgement(
    *("mail@1f", "mail", "d" * 64, 0.9, 0.75, 0.25, 0.875, 1.0, 0.99, "pass"),
    reasons=("as good as the teacher",),
    scorecards={},
    gate={},
    report="reports/mail@1f/judgement-d.json",
)


@pytest.fixture
def server(prefect_server: PrefectServer) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: prefect_server.variables["PREFECT_API_URL"]}):
        yield


def shown(key: str) -> Any:
    async def read() -> Any:
        async with get_client() as client:
            return [one for one in await client.read_artifacts() if one.key == key][-1]

    return asyncio.run(read())


def test_progress_counts_the_steps_of_all_tasks(server: None):
    progress = Progress(2)
    for _ in range(3):
        progress.step()
    found = shown("progress")
    assert (found.type, found.data) == ("progress", 50.0)
    assert found.description == "3 of 6 steps of 2 tasks have ended"


def test_facts_are_a_table(server: None):
    show_facts([RunFact("mail", 12.0, 10.5, 30, "trained")])
    assert '"actual_seconds": 10.5' in shown("plan-and-outcome").data


def test_a_scorecard_leads_to_its_judgement_and_says_why():
    told = scores([JUDGED], lambda key: f"https://hooks/{key}?link=signed")
    link = "https://hooks/reports/mail@1f/judgement-d/scorecard.html?link=signed"
    assert f"| [mail@1f]({link}) | pass | 0.250 | 0.875 | 1.000 | 0.990 | 0.750 |" in told
    assert told.endswith("- mail@1f: as good as the teacher")
    assert scores([], str) == "No adapter was judged."


def test_what_cannot_be_shown_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def away(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(artifacts, "create_table_artifact", away)
    show_facts([])
    assert "show_facts: nothing is shown in Prefect: nobody there" in caplog.text


def test_a_deployment_is_described_without_the_arguments_that_its_form_shows():
    for deployment in deployments(Settings()):
        assert deployment.description
        assert "Args" not in deployment.description
        fields = deployment._parameter_openapi_schema.properties.values()
        assert all(field.get("description") for field in fields), deployment.name


def test_drift_leads_to_its_page_and_its_data(server: None, database: Database, settings: Settings):
    summary = DriftSummary(
        ("action", "valid"), ("action",), (), {}, {}, 90, 40, Path("h"), Path("j")
    )
    report = DriftReport(
        "mail", summary, "reports/drift/mail/drift.html", "reports/drift/mail/drift.json", b"{}"
    )
    with open_context(settings) as context:
        show_looks(context, [Look("mail", "mail@1f", "before", report)], getLogger("test"))
    page, data = shown("drift-mail-before"), shown("drift-mail-before-data")
    assert "Drift of mail, against before: action" in page.data and "drift.html?link=" in page.data
    assert "drift.json?link=" in data.data and page.description == "90 calls against 40, 2 columns"
    assert '"drifted": "action"' in shown("drift").data
