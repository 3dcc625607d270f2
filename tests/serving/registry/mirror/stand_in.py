"""A small server that speaks the part of MLflow's REST API that the mirror uses, with its rules.

What the real one does was written down from it: `MLFLOW_PYTHON=/path/to/python` (an environment with
mlflow) runs the same tests against a real server.
"""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from typing import Any


class Refusal(Exception):
    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code, self.status = code, status


class StandIn:
    """The state, and the server on a free port."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.fail_after: int | None = None
        """So many requests are done; the next ones are done too, but their answers get lost."""
        self.requests = 0
        self.authorization: set[str | None] = set()
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                stand_in.requests += 1
                stand_in.authorization.add(self.headers.get("Authorization"))
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                parts = urllib.parse.urlsplit(self.path)
                path = parts.path.removeprefix("/api/2.0/mlflow/")
                query = dict(urllib.parse.parse_qsl(parts.query))
                try:
                    status, said = 200, stand_in.act(self.command, path, {**query, **body})
                except Refusal as refusal:
                    status, said = refusal.status, {"error_code": refusal.code, "message": "no"}
                if stand_in.fail_after is not None and stand_in.requests > stand_in.fail_after:
                    self.close_connection = True
                    return
                data = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def act(self, method: str, path: str, given: dict[str, Any]) -> dict[str, Any]:
        name = path.replace("/", "_").replace("-", "_")
        if name == "registered_models_alias" and method == "DELETE":
            name = "drop_alias"
        return getattr(self, f"do_{name}")(given)

    def do_experiments_get_by_name(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["experiment_name"] not in self.experiments:
            raise Refusal("RESOURCE_DOES_NOT_EXIST", 404)
        found = self.experiments[given["experiment_name"]]
        return {"experiment": {"experiment_id": found, "name": given["experiment_name"]}}

    def do_experiments_create(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] in self.experiments:
            raise Refusal("RESOURCE_ALREADY_EXISTS")
        found = self.experiments[given["name"]] = str(len(self.experiments) + 1)
        return {"experiment_id": found}

    def do_runs_search(self, given: dict[str, Any]) -> dict[str, Any]:
        key, _, value = given["filter"].removeprefix("tags.`").partition("` = ")
        found = [
            run
            for run in self.runs.values()
            if run["experiment"] in given["experiment_ids"]
            and run["tags"].get(key) == value.strip("'")
        ]
        return {"runs": [self._run(run) for run in found[: given["max_results"]]]}

    def do_runs_create(self, given: dict[str, Any]) -> dict[str, Any]:
        run = {
            "id": f"run{len(self.runs)}",
            "name": given["run_name"],
            "experiment": given["experiment_id"],
            "tags": {tag["key"]: tag["value"] for tag in given["tags"]},
            "params": {},
            "metrics": {},
            "status": "RUNNING",
        }
        self.runs[run["id"]] = run
        return {"run": self._run(run)}

    def do_runs_log_batch(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[given["run_id"]]
        for param in given["params"]:
            if run["params"].setdefault(param["key"], param["value"]) != param["value"]:
                raise Refusal("INVALID_PARAMETER_VALUE")
        for metric in given["metrics"]:
            points = run["metrics"].setdefault(metric["key"], [])
            point = (metric["value"], metric["timestamp"])
            if point not in points:
                points.append(point)
        run["tags"] |= {tag["key"]: tag["value"] for tag in given["tags"]}
        return {}

    def do_runs_update(self, given: dict[str, Any]) -> dict[str, Any]:
        self.runs[given["run_id"]]["status"] = given["status"]
        return {}

    def do_registered_models_create(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] in self.models:
            raise Refusal("RESOURCE_ALREADY_EXISTS")
        self.models[given["name"]] = {"versions": [], "aliases": {}}
        return {}

    def do_registered_models_get(self, given: dict[str, Any]) -> dict[str, Any]:
        aliases = self.models[given["name"]]["aliases"]
        listed = [{"alias": alias, "version": version} for alias, version in aliases.items()]
        model = {"name": given["name"]}
        return {"registered_model": {**model, "aliases": listed} if listed else model}

    def do_registered_models_alias(self, given: dict[str, Any]) -> dict[str, Any]:
        self.models[given["name"]]["aliases"][given["alias"]] = given["version"]
        return {}

    def do_drop_alias(self, given: dict[str, Any]) -> dict[str, Any]:
        self.models[given["name"]]["aliases"].pop(given["alias"], None)
        return {}

    def do_model_versions_search(self, given: dict[str, Any]) -> dict[str, Any]:
        name, run = (part.split("= ")[1].strip("'") for part in given["filter"].split(" AND "))
        found = [one for one in self.models[name]["versions"] if one["run_id"] == run]
        return {"model_versions": found} if found else {}

    def do_model_versions_create(self, given: dict[str, Any]) -> dict[str, Any]:
        versions = self.models[given["name"]]["versions"]
        made = {
            "version": str(len(versions) + 1),
            "run_id": given["run_id"],
            "source": given["source"],
            "tags": {},
        }
        versions.append(made)
        return {"model_version": made}

    def do_model_versions_set_tag(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self.models[given["name"]]["versions"][int(given["version"]) - 1]
        version["tags"][given["key"]] = given["value"]
        return {}

    @staticmethod
    def _run(run: dict[str, Any]) -> dict[str, Any]:
        return {"info": {"run_id": run["id"], "status": run["status"]}}
