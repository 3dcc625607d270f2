"""The demo's journey on two machines, once undisturbed and once with every process killed (-9) once.

The first machine has PostgreSQL, the object store, the Prefect server, Ray's head, a gateway, webhooks
and the registry; the second Ray's worker, the engine, a gateway and the flows. Each has an address,
processes and a disk of its own (``bench/support/machines.py``); agents, the large model and Slack are
outside of both. Run folders and base model lie on a shared disk. A process that dies is started again.

    python bench/two_machines.py [--quick] [--only undisturbed|killed] [--json FILE] [--logs FOLDER]

``--quick``: undisturbed only. Prints progress, and one JSON object: for each journey whether an adapter
was promoted and the bad one rolled back, calls lost and recorded twice, and how often the night had to be
asked for again. Needs root on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.machines import Machine, NoMachines, machines
from bench.support.programs import Postgres, Program, scratch, serves
from flows.demo.script import Demo, Pace
from flows.demo.settings import demo_variables
from flows.demo.site import EDGES
from flows.demo.stages import DemoFailed, Stages
from flows.orchestrator import OrchestratorDown
from flows.stack.processes import StackError
from flows.stack.services import Service, services
from infra.calls.codec import parse_line, read_lines
from infra.calls.record import CallRecord
from infra.database.open import open_database
from infra.objects.open import open_store
from infra.settings.model import Settings
from infra.settings.sources import load_settings
from tests.contracts.servers import S3Server
from trainers.base_model import prepare_base

BUCKET = "night"
KEYS = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
PORT_BASE = 8300
OBJECTS, RELAY, RAY = 9001, 9000, 6379
ON_SECOND = ("engine", "flows")
PACE = Pace(
    day_one_sessions=230,
    batch_sessions=24,
    max_batches=100,
    kinds=("triage",),
    night_tries=4,
)
TUNED: dict[str, object] = {
    "training.max_steps": 45,
    "training.checkpoint_steps": 10,
    "gate.max_test_rows": 48,
    "gate.max_base_rows": 4,
}
DOWN_SECONDS = 0.5
RUN_FOLDERS = Path("/tmp/ray")


@dataclass(frozen=True)
class Kill:
    """Kill ``program`` so long after the screen first says ``when`` (again)."""

    program: str
    when: str
    after_seconds: float = 0.0


PLAN = (
    Kill("first", "== day one", 0.5),
    Kill("postgres", "== day one", 2),
    Kill("store", "== day one", 3),
    Kill("prefect", "ingested"),
    Kill("ray-worker", ": step ", 1),
    Kill("flows", "test:"),
    Kill("second", "== day two", 1),
    Kill("engine", "== day two", 6),
    Kill("hooks", "== day two", 8),
    Kill("registry", "== day two", 10),
    Kill("ray-head", "== drill", 25),
)


class TwoMachines:
    """The demo's ``Site``: every process on the machine where it belongs."""

    def __init__(
        self, folder: Path, host: str, first: Machine, second: Machine, settings: Settings
    ) -> None:
        self._folder = folder
        self._host = host
        self._first, self._second = first, second
        self._settings = settings
        self._lock = threading.Lock()
        self.programs: dict[str, Program] = {}
        self._started = False
        port = settings.gateway.port
        self.gateways: Sequence[str] = [
            f"http://{machine.address}:{port}/v1" for machine in (first, second)
        ]

    def start(self, answers: Mapping[str, object]) -> None:
        (self._folder / "teacher.json").write_text(json.dumps(answers))
        for program in self.programs.values():
            program.start(wait=False)
        for program in self.programs.values():
            program.await_answer()
        self._started = True

    def check(self) -> None:
        with self._lock:
            if not self._started:
                return
            for program in self.programs.values():
                if not program.running:
                    program.start(wait=False)

    def kill(self, name: str) -> None:
        with self._lock:
            self.programs[name].kill()
            time.sleep(DOWN_SECONDS)
            self.programs[name].start()

    def close(self) -> None:
        with self._lock:
            for program in reversed(self.programs.values()):
                program.kill()

    # How it is made

    def make(self, postgres: Postgres, base: Path) -> None:
        """Everything but PostgreSQL and the object store, which run already."""
        python = sys.executable
        for name, (module, _) in EDGES.items():
            file = self._folder / ("teacher.json" if name == "teacher" else "slack.jsonl")
            option = "--answers" if name == "teacher" else "--file"
            port = PORT_BASE + {"teacher": 1, "slack": 5}[name]
            argv = [python, "-m", module, option, str(file), "--host", self._host]
            argv += ["--port", str(port)]
            self._add(name, argv, _serving(f"http://{self._host}:{port}/health"))
        ray = [str(Path(python).with_name("ray")), "start", "--block", "--num-cpus=1"]
        ray += ["--object-store-memory=100000000", "--disable-usage-stats"]
        head = [*ray, "--head", f"--port={RAY}", "--include-dashboard=false"]
        self.place(self._first, "ray-head", head, None)
        join = [*ray, f"--address={self._first.address}:{RAY}"]
        self.place(self._second, "ray-worker", join, None)
        for service in services(self._settings, base_model=base):
            if service.name == "gateway":
                continue
            machine = self._second if service.name in ON_SECOND else self._first
            self.place(machine, service.name, list(service.argv), service)
        for name, machine in (("first", self._first), ("second", self._second)):
            url = f"http://{machine.address}:{self._settings.gateway.port}/healthz"
            service = Service(name, "", (), ready_url=url)
            self.place(machine, name, [python, "-m", "serving.gateway"], service)
        self.programs["postgres"] = postgres

    def place(self, machine: Machine, name: str, argv: list[str], service: Service | None) -> None:
        if name.startswith("ray"):
            argv.append(f"--node-ip-address={machine.address}")
        environment = dict(service.environment) if service else {}
        environment["NIGHTSCHOOL_GATEWAY__HOST"] = machine.address
        answers = _serving(service.ready_url if service else None)
        self._add(name, machine.command(argv), answers, environment)

    def _add(
        self,
        name: str,
        argv: list[str],
        answers: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.programs[name] = Program(
            name, argv, logs=self._folder / "log", answers=answers, environment=environment
        )


def _serving(url: str | None) -> Callable[[], bool]:
    return lambda: url is None or serves(url)


class Killer(threading.Thread):
    """Listens to the screen and carries out the plan. Lives to the end: what it starts ends with it."""

    def __init__(self, site: TwoMachines, plan: tuple[Kill, ...]) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._left = list(plan)
        self._due: list[tuple[float, str]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.done: list[str] = []

    def hear(self, line: str) -> None:
        with self._lock:
            for kill in [kill for kill in self._left if kill.when in line]:
                self._left.remove(kill)
                self._due.append((time.monotonic() + kill.after_seconds, kill.program))

    def run(self) -> None:
        while not self._over.wait(0.2):
            with self._lock:
                now = time.monotonic()
                ready = [item for item in self._due if item[0] <= now]
                self._due = [item for item in self._due if item[0] > now]
            for _, name in ready:
                print(f"   kill -9 {name}", flush=True)
                try:
                    self._site.kill(name)
                except RuntimeError as error:
                    # Started it is; it may answer yet, and the journey shows whether it did.
                    print(f"   {error}", file=sys.stderr, flush=True)
                self.done.append(name)
            self._site.check()

    def end(self) -> None:
        self._over.set()
        self.join()


def journey(plan: tuple[Kill, ...], logs: Path | None) -> dict[str, Any]:
    """Play it once, with ``plan``'s kills; what became of it. The processes' logs go to ``logs``."""
    with scratch("two-machines") as folder, ExitStack() as ends:
        if logs:
            ends.callback(shutil.copytree, folder / "log", logs, dirs_exist_ok=True)
        disk, shared = folder / "disk", folder / "shared"
        for made in (disk, shared, folder / "log", RUN_FOLDERS):
            made.mkdir(exist_ok=True)
        host, (first, second) = ends.enter_context(machines(2, folder, [disk, RUN_FOLDERS]))
        postgres = Postgres(folder, first)
        ends.callback(postgres.kill)
        postgres.start()
        url = postgres.new_database("registry")
        changes = variables(disk, shared, host, first, second, url)
        os.environ.update(changes)
        settings = load_settings()
        site = TwoMachines(folder, host, first, second, settings)
        ends.callback(site.close)
        start_store(site, first)
        open_database(settings.database).upgrade()
        base = prepare_base(settings.engine, print)
        site.make(postgres, base.folder)
        killer = Killer(site, plan)

        def say(line: str) -> None:
            print(line, flush=True)
            killer.hear(line)

        killer.start()
        ends.callback(killer.end)
        stages = Stages(say)
        demo = Demo(folder, 3, PACE, stages, site, settings)
        try:
            status, error = demo.play(), None
        except (DemoFailed, StackError, OrchestratorDown, RuntimeError) as failure:
            status, error = 1, str(failure)
            for program in site.programs.values():
                print(f"--- {program.name}\n{program.tail(1500)}", file=sys.stderr)
        captured = set(demo.captured.call_kinds)
        recorded = records(settings)
        return {
            "passed": status == 0,
            "error": error,
            "calls": len(captured),
            "lost": len(captured - recorded.keys()),
            "recorded_twice": sum(count > 1 for count in recorded.values()),
            "killed": killer.done,
            "not_killed": [kill.program for kill in plan if kill.program not in killer.done],
            "nights_asked_again": demo.asked_again,
            "stage_seconds": {name: round(value) for name, value in stages.seconds.items()},
        }


def variables(
    disk: Path, shared: Path, host: str, first: Machine, second: Machine, database: str
) -> dict[str, str]:
    changes: dict[str, object] = {
        "storage.url": f"s3://{BUCKET}/school",
        "storage.endpoint_url": f"http://{first.address}:{RELAY}",
        **{f"storage.{name}": value for name, value in KEYS.items()},
        "database.url": database,
        "teacher.url": f"http://{host}:{PORT_BASE + 1}/v1",
        "engine.url": f"http://{second.address}:{PORT_BASE + 2}",
        "engine.models": Path("var/models").absolute(),
        "hooks.host": first.address,
        # What signs links on one machine must be known on the other, where they lead.
        "hooks.keys": f'["{"7" * 64}"]',
        "notify.slack_webhook_url": f"http://{host}:{PORT_BASE + 5}/services/demo",
        "registry.host": first.address,
        "prefect.host": first.address,
        "training.runs": shared / "runs",
        "training.executor": "ray",
        "training.ray_address": f"{first.address}:{RAY}",
        **TUNED,
    }
    away = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in [*away, *(name for name in os.environ if name.startswith("NIGHTSCHOOL_"))]:
        os.environ.pop(name, None)
    return {
        **demo_variables(disk, PORT_BASE, 3, changes),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def start_store(site: TwoMachines, machine: Machine) -> None:
    """The object store behind a relay: killed itself it would lose what it keeps in memory."""
    python = sys.executable
    relay = [python, "-m", "bench.support.relay", str(RELAY), str(OBJECTS), machine.address]
    url = f"http://{machine.address}:{RELAY}"
    inside = [python, "-m", "tests.contracts.s3_process", str(OBJECTS)]
    site.place(machine, "objects", inside, None)
    site.place(machine, "store", relay, Service("store", "", (), ready_url=url))
    site.programs["objects"].start()
    site.programs["store"].start()
    S3Server(url).make_bucket(BUCKET)


def records(settings: Settings) -> Counter[str]:
    """How often each call's record lies in the log."""
    store = open_store(settings.storage)
    found: Counter[str] = Counter()
    for info in store.list("logs/v1/"):
        for line in read_lines(BytesIO(store.get(info.key))):
            record = parse_line(line.content) if isinstance(line.content, bytes) else None
            if isinstance(record, CallRecord):
                found[record.id] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="undisturbed only, of some minutes")
    parser.add_argument("--only", choices=["undisturbed", "killed"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, help="keep what the processes wrote here")
    options = parser.parse_args()
    plans = {"undisturbed": (), "killed": PLAN}
    wanted = ["undisturbed"] if options.quick else [options.only] if options.only else list(plans)
    try:
        found = {name: journey(plans[name], options.logs) for name in wanted}
    except NoMachines as error:
        print(f"left out: {error}", file=sys.stderr)
        return 0
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    good = all(
        item["passed"] and not (item["lost"] or item["recorded_twice"] or item["not_killed"])
        for item in found.values()
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
