"""A storm of signed webhooks on a real receiver: each accepted once, no forgery, at what rate.

Five in a hundred calls are repeats of an earlier one, five are forged. The receiver is the product's own
process; the database SQLite, or PostgreSQL where ``--database`` names an empty one. With ``--prefect`` a
real Prefect server runs beside it and the kept messages are started in it, so that its flow runs are
counted too; without, every message is kept, as with Prefect away.

    .venv/bin/python bench/webhooks.py [--quick] [--json FILE] [--database URL] [--prefect N]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp
import psutil
from standardwebhooks import Webhook

from flows.hooks.receipts import Receipts
from flows.orchestrator import Orchestrator
from flows.stack.processes import Stack
from flows.stack.services import services
from infra.calls.record import new_id
from infra.database.open import open_database
from infra.settings.sources import load_settings
from tests.prefect_server import free_port, start_prefect

CALLS, QUICK = 10_000, 500
REPEATED, FORGED = 0.05, 0.05
CALLERS = 16
SECRET = "whsec_" + base64.b64encode(b"a storm over the night school...").decode()
DRAIN_SECONDS = 900.0


def plan(calls: int, seed: int) -> list[tuple[str, str]]:
    """Kind (new, repeat, forged) and message id of each call, shuffled."""
    drawn = random.Random(seed)
    repeats, forged = int(calls * REPEATED), int(calls * FORGED)
    ids = [new_id() for _ in range(calls - repeats - forged)]
    made = [("new", one) for one in ids]
    made += [("repeat", drawn.choice(ids)) for _ in range(repeats)]
    made += [("forged", new_id()) for _ in range(forged)]
    drawn.shuffle(made)
    return made


def headers(kind: str, message_id: str, body: bytes) -> dict[str, str]:
    other = "whsec_" + base64.b64encode(b"somebody else's secret, thirty-two").decode()
    now = datetime.now(UTC)
    signer = Webhook(other if kind == "forged" else SECRET)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signer.sign(message_id, now, body.decode()),
    }


async def storm(url: str, calls: list[tuple[str, str]]) -> tuple[Counter[str], float]:
    """What was answered, and the seconds it took."""
    answers: Counter[str] = Counter()
    waiting = iter(calls)

    async def caller(http: aiohttp.ClientSession) -> None:
        for kind, message_id in waiting:
            body = json.dumps({"reason": f"storm {message_id}"}).encode()
            async with http.post(url, data=body, headers=headers(kind, message_id, body)) as answer:
                said = await answer.json()
                told = "duplicate" if said.get("duplicate") else str(answer.status)
                answers[
                    "forged accepted" if kind == "forged" and answer.status == 202 else told
                ] += 1

    began = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CALLERS)) as http:
        await asyncio.gather(*(caller(http) for _ in range(CALLERS)))
    return answers, time.perf_counter() - began


def flow_runs(orchestrator: Orchestrator) -> int:
    body = {"deployments": {"name": {"any_": ["retrain"]}}}
    return int(orchestrator._ask("POST", "/flow_runs/count", body))


def run(calls: int, seed: int, database_url: str | None, prefect: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variables = {
            "NIGHTSCHOOL_DATABASE__URL": database_url or f"sqlite:///{folder}/storm.db",
            "NIGHTSCHOOL_STORAGE__URL": str(folder / "objects"),
            "NIGHTSCHOOL_HOOKS__PORT": str(free_port()),
            "NIGHTSCHOOL_HOOKS__SECRETS": json.dumps({"storm": SECRET}),
            "NIGHTSCHOOL_HOOKS__KEY_FILE": str(folder / "key"),
            "NIGHTSCHOOL_HOOKS__REQUESTS_PER_MINUTE": "1000000",
            "NIGHTSCHOOL_PREFECT__API_URL": f"http://127.0.0.1:{free_port()}/api",
        }
        os.environ.update(variables)
        if not prefect:
            return _measured(folder, calls, seed, None)
        with start_prefect(folder / "prefect") as server:
            os.environ.update({**server.settings, **server.variables})
            return _measured(folder, calls, seed, Orchestrator(server.variables["PREFECT_API_URL"]))


def _measured(
    folder: Path, calls: int, seed: int, orchestrator: Orchestrator | None
) -> dict[str, Any]:
    settings = load_settings()
    database = open_database(settings.database)
    database.upgrade()
    planned = plan(calls, seed)
    unique = {message_id for kind, message_id in planned if kind != "forged"}
    forged = {message_id for kind, message_id in planned if kind == "forged"}
    found: dict[str, Any] = {
        "calls": calls,
        "callers": CALLERS,
        "database": "sqlite" if database.is_sqlite else "postgresql",
    }
    if orchestrator is not None:
        _deploy()
    hooks = [one for one in services(settings, base_model=folder) if one.name == "hooks"]
    with Stack(folder / "log") as stack:
        stack.start(hooks)
        url = f"http://{settings.hooks.host}:{settings.hooks.port}/hooks/retrain"
        receiver = psutil.Process(stack.pids()["hooks"])
        before = sum(receiver.cpu_times()[:2])
        answers, seconds = asyncio.run(storm(url, planned))
        used = sum(receiver.cpu_times()[:2]) - before
        receipts = Receipts(database)
        with database.read() as connection:
            rows = (
                connection.exec_driver_sql("SELECT message_id FROM webhook_receipts")
                .scalars()
                .all()
            )
        kept = Counter(rows)
        found |= {
            "answers": dict(answers),
            "accepted_once": sum(kept[one] == 1 for one in unique),
            "accepted_more_than_once": sum(count > 1 for count in kept.values()),
            "missing": len(unique - kept.keys()),
            "forgeries_accepted": len(forged & kept.keys()) + answers["forged accepted"],
            "seconds": round(seconds, 2),
            "calls_per_second": round(calls / seconds, 1),
            # What another machine, or a busier one, is compared by.
            "processor_ms_per_call": round(1000 * used / calls, 2),
        }
        if orchestrator is not None:
            ends = time.monotonic() + DRAIN_SECONDS
            while receipts.count_kept() and time.monotonic() < ends:
                time.sleep(0.5)
            found |= {"flow_runs": flow_runs(orchestrator), "unique": len(unique)}
    database.close()
    return found


def _deploy() -> None:
    """The deployment ``retrain``, without a process that would run it."""
    from flows.upkeep import retrain

    retrain.to_deployment("retrain").apply()  # type: ignore[union-attr]


def good(found: dict[str, Any]) -> bool:
    return bool(
        found["missing"] == 0
        and found["accepted_more_than_once"] == 0
        and found["forgeries_accepted"] == 0
        and found.get("flow_runs") == found.get("unique")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} calls instead of {CALLS}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--database", metavar="URL", help="an empty PostgreSQL database")
    parser.add_argument(
        "--prefect", type=int, default=200, metavar="N", help="calls with Prefect; 0: none"
    )
    given = parser.parse_args()
    storms = [run(QUICK if given.quick else CALLS, given.seed, given.database, False)]
    if given.prefect:
        storms.append(run(given.prefect, given.seed + 1, None, True))
    for found in storms:
        print(json.dumps(found))
    if given.json:
        given.json.write_text(json.dumps({"storms": storms}, indent=1) + "\n")
    return 0 if all(map(good, storms)) else 1


if __name__ == "__main__":
    sys.exit(main())
