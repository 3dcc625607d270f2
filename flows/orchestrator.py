"""Talk to the Prefect server over its HTTP API: start a deployment's run, ask how it went.

Plain HTTP, so that a webhook or the command line answers without importing the whole of Prefect.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from infra.calls.record import new_id

REQUEST_SECONDS = 10.0
ATTEMPTS = 5
RETRY_SECONDS = 0.5
"""Before the second attempt; the later ones wait longer, five seconds in all."""
MAX_RUNS_READ = 200
TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})


class OrchestratorDown(Exception):
    """Prefect could not be reached; what was asked for can be asked again later."""


class OrchestratorBusy(OrchestratorDown):
    """It answers, but failed: its database was locked, for instance. Asked again a few times."""


class OrchestratorRefused(Exception):
    """Prefect answered with an error: unknown deployment, wrong parameters, wrong credentials."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def final(self) -> bool:
        """Whether asking again in the same words can never help: the parameters are wrong."""
        return self.status in (400, 409, 422)


@dataclass(frozen=True)
class FlowRun:
    id: str
    name: str
    state: str
    """Prefect's state type in capitals, e.g. RUNNING, COMPLETED."""
    message: str

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True)
class PastRun:
    """A deployment's run with what is needed to start it again."""

    id: str
    name: str
    flow: str
    """Name of its deployment, which is that of its flow."""
    state: str
    parameters: dict[str, Any]
    idempotency_key: str
    """Empty for a run of the schedule's."""


class Orchestrator:
    """The Prefect server at ``api_url`` (ending in /api)."""

    def __init__(self, api_url: str) -> None:
        self._api = api_url.rstrip("/")

    def start(
        self, flow: str, parameters: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> FlowRun:
        """Start the deployment named like its flow. The same key twice is the same run.

        Raises:
            OrchestratorDown, OrchestratorRefused.
        """
        name = quote(flow, safe="")
        deployment = self._ask("GET", f"/deployments/name/{name}/{name}")
        body: dict[str, Any] = {
            "parameters": dict(parameters),
            "state": {"type": "SCHEDULED", "message": "asked for through Night School"},
        }
        # Always one, so that asking a busy server again never starts a second run.
        body["idempotency_key"] = idempotency_key or new_id()
        return _flow_run(
            self._ask("POST", f"/deployments/{deployment['id']}/create_flow_run", body)
        )

    def check(self) -> None:
        """Raises OrchestratorDown unless the server is well."""
        self._ask("GET", "/health")

    def run(self, run_id: str) -> FlowRun:
        """Raises OrchestratorDown, OrchestratorRefused (no such run)."""
        return _flow_run(self._ask("GET", f"/flow_runs/{quote(run_id, safe='')}"))

    def has_deployment(self, flow: str) -> bool:
        name = quote(flow, safe="")
        try:
            self._ask("GET", f"/deployments/name/{name}/{name}")
        except OrchestratorRefused:
            return False
        return True

    def under_way(self, flow: str) -> bool:
        """Whether a run of this deployment is about to start or running. Raises as ``start``."""
        body = {
            "deployments": {"name": {"any_": [flow]}},
            "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
            "limit": 1,
        }
        return bool(self._ask("POST", "/flow_runs/filter", body))

    def last_run(self, flow: str) -> dict[str, Any] | None:
        """The deployment's newest run that began: id, name, state, words, start, end. Raises as ``start``."""
        body = {
            "deployments": {"name": {"any_": [flow]}},
            "flow_runs": {"start_time": {"is_null_": False}},
            "sort": "START_TIME_DESC",
            "limit": 1,
        }
        found = self._ask("POST", "/flow_runs/filter", body)
        if not found:
            return None
        names = {"id": "id", "name": "name", "state": "state_type"}
        return {ours: found[0].get(theirs) for ours, theirs in names.items()} | {
            "started": found[0].get("start_time"),
            "ended": found[0].get("end_time"),
            "told": (found[0].get("state") or {}).get("message"),
        }

    def crashed(self, flows: Sequence[str], since: datetime) -> list[PastRun]:
        """Runs of these deployments that crashed since then, newest first. Raises as ``start``."""
        state = {"type": {"any_": ["CRASHED"]}}
        ended = {"end_time": {"after_": since.isoformat()}}
        return [
            run
            for flow in flows
            for run in self._runs(flow, {"state": state, **ended}, "END_TIME_DESC")
        ]

    def going(self, flow: str) -> list[PastRun]:
        """Runs of this deployment that have not ended, suspended ones too. Raises as ``start``."""
        state = {"type": {"not_any_": sorted(TERMINAL)}}
        return self._runs(flow, {"state": state}, "START_TIME_ASC")

    def finish(self, run_id: str, message: str) -> None:
        """Say that a suspended run's work is done, without running it. Raises as ``start``."""
        body = {
            "state": {"type": "COMPLETED", "name": "Completed", "message": message[:500]},
            "force": True,
        }
        self._ask("POST", f"/flow_runs/{quote(run_id, safe='')}/set_state", body)

    def _runs(self, flow: str, which: Mapping[str, Any], order: str) -> list[PastRun]:
        body = {
            "deployments": {"name": {"any_": [flow]}},
            "flow_runs": dict(which),
            "sort": order,
            "limit": MAX_RUNS_READ,
        }
        return [
            PastRun(
                str(found["id"]),
                str(found["name"]),
                flow,
                str(found["state_type"]),
                dict(found.get("parameters") or {}),
                str(found.get("idempotency_key") or ""),
            )
            for found in self._ask("POST", "/flow_runs/filter", body)
        ]

    def version(self) -> str:
        """Of the server. Raises OrchestratorDown, OrchestratorRefused."""
        return str(self._ask("GET", "/admin/version"))

    def task_runs(self, run_id: str) -> list[dict[str, Any]]:
        """The task runs of a flow run: name, state_type, total_run_time (seconds)."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        answer = self._ask("POST", "/task_runs/filter", body)
        return list(answer)

    def logs(self, run_id: str, offset: int) -> list[str]:
        """Log lines of a flow run and its tasks, oldest first, from the given offset on."""
        body = {
            "logs": {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": 20}},
            "sort": "TIMESTAMP_ASC",
            "offset": offset,
            "limit": 200,
        }
        return [str(line["message"]) for line in self._ask("POST", "/logs/filter", body)]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask_once(method, path, body)
            except OrchestratorBusy:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(RETRY_SECONDS * attempt)
        raise AssertionError("unreachable")

    def _ask_once(self, method: str, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self._api + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", **_credentials()},
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            if error.code >= 500:
                raise OrchestratorBusy(f"Prefect failed ({error.code}) on {path}: {said}") from None
            raise OrchestratorRefused(
                f"Prefect refused {path} ({error.code}): {said}", error.code
            ) from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise OrchestratorDown(
                f"no Prefect server answers at {self._api} ({error}): start one with nightschool up"
            ) from None


def _flow_run(value: Mapping[str, Any]) -> FlowRun:
    state = value.get("state") or {}
    return FlowRun(
        str(value["id"]),
        str(value.get("name") or ""),
        str(value.get("state_type") or state.get("type") or "PENDING"),
        str(state.get("message") or ""),
    )


def _credentials() -> dict[str, str]:
    """Prefect's own variable for basic authentication, ``user:password``."""
    pair = os.environ.get("PREFECT_API_AUTH_STRING")
    if not pair:
        return {}
    return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
