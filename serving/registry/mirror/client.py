"""MLflow's REST API, as much of it as the mirror uses. The client library is not needed for that.

Every call can be repeated: what is there is found again by its tag or its name, so a mirror that was
killed anywhere, or told twice, makes nothing twice.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from serving.registry.mirror.reflection import PREFIX, Reflection

ADAPTER_TAG = f"{PREFIX}.adapter"
TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 8 << 20


class MirrorDown(Exception):
    """The server does not answer, or fails: all of it can be tried again later."""


class MirrorRefused(Exception):
    """The server does not take what it was told; the message is its error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}"[:500])
        self.code = code


class MlflowClient:
    """A tracking server with a model registry, at ``uri``."""

    def __init__(self, uri: str, token: str | None = None) -> None:
        self._uri = uri.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def tell(self, told: Reflection) -> None:
        """Make the server say what ``told`` says. Raises MirrorDown, MirrorRefused."""
        run = self._run(told)
        self._post(
            "runs/log-batch",
            run_id=run,
            params=_pairs(told.params),
            metrics=[
                {"key": key, "value": value, "timestamp": told.measured_ms, "step": 0}
                for key, value in told.metrics.items()
            ],
            tags=_pairs(told.tags),
        )
        self._post("runs/update", run_id=run, status="FINISHED", end_time=told.measured_ms)
        version = self._version(told, run)
        for key, value in told.tags.items():
            self._post(
                "model-versions/set-tag", name=told.model, version=version, key=key, value=value
            )
        self._set_aliases(told, version)

    def _experiment(self, name: str) -> str:
        for _ in range(2):
            try:
                found = self._get("experiments/get-by-name", experiment_name=name)
                return str(found["experiment"]["experiment_id"])
            except MirrorRefused as refused:
                if refused.code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            try:
                return str(self._post("experiments/create", name=name)["experiment_id"])
            except MirrorRefused as refused:
                if refused.code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise MirrorDown(f"the experiment {name} comes and goes")

    def _run(self, told: Reflection) -> str:
        experiment = self._experiment(told.experiment)
        found = self._post(
            "runs/search",
            experiment_ids=[experiment],
            filter=f"tags.`{ADAPTER_TAG}` = '{told.adapter}'",
            max_results=1,
        )
        for run in found.get("runs", []):
            return str(run["info"]["run_id"])
        made = self._post(
            "runs/create",
            experiment_id=experiment,
            run_name=told.adapter,
            start_time=told.created_ms,
            tags=_pairs({ADAPTER_TAG: told.adapter}),
        )
        return str(made["run"]["info"]["run_id"])

    def _version(self, told: Reflection, run: str) -> str:
        try:
            self._post("registered-models/create", name=told.model)
        except MirrorRefused as refused:
            if refused.code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._get(
            "model-versions/search",
            filter=f"name = '{told.model}' AND run_id = '{run}'",
            max_results="1",
        )
        for version in found.get("model_versions", []):
            return str(version["version"])
        made = self._post("model-versions/create", name=told.model, source=told.source, run_id=run)
        return str(made["model_version"]["version"])

    def _set_aliases(self, told: Reflection, version: str) -> None:
        model = self._get("registered-models/get", name=told.model)["registered_model"]
        present = {entry["alias"]: str(entry["version"]) for entry in model.get("aliases", [])}
        for alias in ("champion", "candidate"):
            wanted, held = alias in told.aliases, present.get(alias) == version
            if wanted and not held:
                self._post("registered-models/alias", name=told.model, alias=alias, version=version)
            elif held and not wanted:
                self._ask("DELETE", "registered-models/alias", {"name": told.model, "alias": alias})

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        return self._ask("GET", f"{path}?{urllib.parse.urlencode(query)}")

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._uri}/api/2.0/mlflow/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers=self._headers,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return _parsed(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(64 << 10)
            raise _refusal(error.code, said) from None
        except (OSError, http.client.HTTPException) as error:
            raise MirrorDown(f"MLflow does not answer ({type(error).__name__})") from None


def _refusal(status: int, said: bytes) -> MirrorDown | MirrorRefused:
    if status >= 500 or status in (401, 403, 408, 429):
        # A token that is wrong is wrong for everything: nothing is given up for it.
        return MirrorDown(f"MLflow answers {status}")
    try:
        parsed = json.loads(said)
        return MirrorRefused(str(parsed["error_code"]), str(parsed.get("message", "")))
    except (ValueError, KeyError, TypeError):
        return MirrorDown(f"MLflow answers {status}, and not as MLflow does")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise MirrorDown("what answers is not MLflow")
    return found


def _pairs(values: Any) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]
