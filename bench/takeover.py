"""A served night whose process is killed (-9): how soon another one does its work, by nobody's hand.

A real Prefect server with the flows as deployments, once served by ``flows.serve`` (as ``nightschool up``
does) and once on a work pool with Prefect's process worker (as ``infra/deploy/prefect.yaml`` does). A night
is started and its process is killed, alone or with the one that serves it, which is then started again.
A death that nobody saw shows by its missing heartbeats, six of thirty seconds each.

    python bench/takeover.py [--quick] [--only "both killed"] [--json FILE]

``--quick``: only what takes less than a minute. Prints one JSON object: for each way the seconds from the
kill until the run is known to have crashed, until another one took over, and until that one was done;
exit status 0 when every night was done by exactly one other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.programs import ROOT, Program, scratch
from flows.holding import NIGHT, hold
from flows.orchestrator import Orchestrator
from flows.stack.services import prefect_api_url
from flows.takeover import PREFIX
from infra.database.open import Database, open_database
from infra.settings.sources import load_settings
from tests.prefect_server import eventually, process_of, start_prefect

PARAMETERS = {"reason": "the bench", "by_hand": True, "within_hours": 0.5}
START_SECONDS, END_SECONDS = 300.0, 600.0
until = partial(eventually, seconds=START_SECONDS, every=0.2)
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Way:
    """How nights are served, and whether who serves dies with the night."""

    name: str
    pool: bool
    both: bool


WAYS = (
    Way("served, the night killed", pool=False, both=False),
    Way("work pool, the night killed", pool=True, both=False),
    Way("served, both killed", pool=False, both=True),
    Way("work pool, both killed", pool=True, both=True),
)


def measure(way: Way, server: Program, api: Orchestrator, database: Database) -> dict[str, Any]:
    """Kill one night; what became of it."""
    # Another night holds the lease, so that this one is under way for as long as it is needed.
    with hold(database, NIGHT, "the bench"):
        first = api.start("night", PARAMETERS).id
        until(lambda: api.run(first).state == "RUNNING", "the night does not begin")
        process = until(lambda: process_of(first), "the night has no process")
        # One that dies before its first heartbeat is noticed only after ``BEGIN_SECONDS``.
        until(lambda: heartbeats(api, first), "the night's heart does not beat")
        if way.both:
            server.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        killed = time.monotonic()
        server.start()
        until(
            lambda: api.run(first).state == "CRASHED",
            "nobody noticed the death",
            seconds=END_SECONDS,
        )
        known = time.monotonic()
        key = f"{PREFIX}:1:{first}"
        second = until(lambda: ids(api, key), "nobody took it over", seconds=END_SECONDS)
        taken = time.monotonic()
    until(lambda: api.run(second[0]).ended, "the second night does not end", seconds=END_SECONDS)
    return {
        "noticed_seconds": round(known - killed, 1),
        "taken_over_seconds": round(taken - killed, 1),
        "done_seconds": round(time.monotonic() - killed, 1),
        "ended": api.run(second[0]).state,
        "nights": len(ids(api, None)),
    }


def heartbeats(api: Orchestrator, run_id: str) -> list[Any]:
    which = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run_id}"]},
    }
    found: list[Any] = api._ask("POST", "/events/filter", {"filter": which, "limit": 1})["events"]
    return found


def ids(api: Orchestrator, key: str | None) -> list[str]:
    """Ids of the bench's nights, or of the one with this idempotency key."""
    body = {"deployments": {"name": {"any_": ["night"]}}, "limit": 200}
    return [
        str(run["id"])
        for run in api._ask("POST", "/flow_runs/filter", body)
        if run["parameters"].get("reason") == PARAMETERS["reason"]
        and key in (None, run.get("idempotency_key"))
    ]


@contextlib.contextmanager
def serving(folder: Path, pool: bool) -> Iterator[tuple[Program, Orchestrator, Database]]:
    """A Prefect server, the flows deployed in it, and the process that runs them."""
    with start_prefect(folder) as prefect, contextlib.ExitStack() as ends:
        variables = {
            **{name: value for name, value in os.environ.items() if "NIGHTSCHOOL" not in name},
            **prefect.settings,
            **prefect.variables,
            "NIGHTSCHOOL_STORAGE__URL": str(folder / "objects"),
            "NIGHTSCHOOL_DATABASE__URL": f"sqlite:///{folder}/nightschool.db",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        os.environ.update(variables)
        settings = load_settings()
        database = open_database(settings.database)
        ends.callback(database.close)
        database.upgrade()
        command = [sys.executable, "-m", "flows.serve"]
        if pool:
            register = ["sh", "infra/deploy/register-deployments.sh"]
            subprocess.run(register, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            command = [str(BIN / "prefect"), "worker", "start"]
            command += ["--pool", "nightschool", "--type", "process"]
        program = Program("worker" if pool else "flows", command, logs=folder, answers=lambda: True)
        ends.callback(program.kill)
        program.start()
        api = Orchestrator(prefect_api_url(settings))
        until(lambda: api.has_deployment("takeover"), "the flows are not deployed")
        yield program, api, database


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="only the deaths that are seen at once"
    )
    parser.add_argument("--only", default="", help="only the ways whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        if (options.quick and way.both) or options.only not in way.name:
            continue
        with (
            scratch("takeover") as folder,
            serving(folder, way.pool) as (server, api, database),
        ):
            found[way.name] = measure(way, server, api, database)
        print(f"{way.name}: {found[way.name]}", file=sys.stderr, flush=True)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    good = all(one["ended"] == "COMPLETED" and one["nights"] == 2 for one in found.values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
