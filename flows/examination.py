"""What this installation stands on, checked: each thing in bounded time, with how to mend it."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import SecretStr
from sqlalchemy import text

from flows.hooks.secrets import SenderSecrets
from flows.hooks.senders import usable_secret
from flows.orchestrator import Orchestrator
from flows.stack.processes import answers
from flows.stack.services import addresses, prefect_api_url
from infra.calls.record import new_id
from infra.database.open import DatabaseError, open_database
from infra.database.patience import answers_within
from infra.objects.open import open_store
from infra.settings.bounds import ray_place
from infra.settings.model import Settings
from infra.signing_keys import signing_keys
from trainers.base_model import is_prepared

CHECK_SECONDS = 10.0
MAX_SKEW_SECONDS = 5.0
FREE_SHARE = 0.05
FREE_BYTES = 1 << 30
DEPLOYED = (
    "night",
    "ingest",
    "rollout",
    "watch",
    "housekeeping",
    "retrain",
    "rollback",
    "approval",
    "takeover",
)
Outcome = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    name: str
    outcome: Outcome
    told: str
    mend: str = ""


class Broken(Exception):
    """What is wrong, and how to mend it."""

    def __init__(self, told: str, mend: str, outcome: Outcome = "broken") -> None:
        super().__init__(told)
        self.mend, self.outcome = mend, outcome


def examine(settings: Settings, seconds: float = CHECK_SECONDS) -> list[Check]:
    """Every check at once, none waited for longer than ``seconds``."""
    # Not awaited at the end: one that hangs is told of as such, and dies with the process.
    pool = ThreadPoolExecutor(len(CHECKS), thread_name_prefix="doctor")
    futures = {name: pool.submit(_checked, name, settings) for name in CHECKS}
    wait(futures.values(), timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return [_result(name, future, seconds) for name, future in futures.items()]


def _result(name: str, future: Future[Check], seconds: float) -> Check:
    if not future.done():
        told = f"no answer within {seconds:g} seconds"
        return Check(name, "broken", told, "see whether it runs and can be reached from here")
    return future.result()


def _checked(name: str, settings: Settings) -> Check:
    check, mend = CHECKS[name]
    try:
        return Check(name, "ok", check(settings))
    except Broken as broken:
        return Check(name, broken.outcome, str(broken), broken.mend)
    except Exception as error:  # noqa: BLE001  a doctor tells of whatever is wrong
        first = (str(error).splitlines() or [""])[0][:300]
        return Check(name, "broken", first or type(error).__name__, mend)


def _database(settings: Settings) -> str:
    database = open_database(settings.database)
    try:
        with answers_within(CHECK_SECONDS / 2):
            database.check()
            if not database.is_sqlite:
                before = time.time()
                with database.read() as connection:
                    theirs = connection.execute(
                        text("SELECT extract(epoch FROM clock_timestamp())")
                    ).scalar_one()
                _same_clock("the database's", float(theirs), before, time.time())
        return f"{database}: reached, its tables are this release's"
    finally:
        database.close()


def _objects(settings: Settings) -> str:
    store = open_store(settings.storage)
    key, said = f"checks/{new_id()}", b"nightschool doctor"
    store.create(key, said)
    try:
        if store.get(key) != said:
            raise Broken("the store gave back something else", "check [storage] url")
    finally:
        store.delete(key)
    return f"{settings.storage.url}: written, read and deleted"


def _store_clock(settings: Settings) -> str:
    """S3 refuses what is signed over 15 minutes off; its answers carry its time."""
    storage = settings.storage
    if not storage.url.startswith("s3://"):
        return "the object store is this machine's"
    url = storage.endpoint_url or f"https://s3.{storage.region or 'us-east-1'}.amazonaws.com"
    before = time.time()
    try:
        with urlopen(Request(url, method="GET"), timeout=5) as answer:
            date = answer.headers.get("Date")
    except HTTPError as error:
        date = error.headers.get("Date")
    if not date:
        return "the object store does not tell its time"
    _same_clock(
        "the object store's", parsedate_to_datetime(date).timestamp(), before - 1, time.time()
    )
    return "agrees with the object store's"


def _same_clock(whose: str, theirs: float, before: float, after: float) -> None:
    skew = max(before - theirs, theirs - after, 0.0)
    if skew > MAX_SKEW_SECONDS:
        raise Broken(
            f"this machine's clock is {skew:.0f} seconds from {whose}",
            "let a time service (chrony, systemd-timesyncd) set both clocks",
        )


def _clock(settings: Settings) -> str:
    if datetime.now(UTC).year < 2025:
        raise Broken("this machine's clock is years behind", "let a time service set it")
    return _store_clock(settings)


def _disk(settings: Settings) -> str:
    gateway = settings.gateway
    places = [gateway.spool, gateway.adapters, settings.engine.models, settings.training.runs]
    if not settings.storage.url.startswith("s3://"):
        places.append(Path(settings.storage.url))
    full, least = [], float("inf")
    for place in places:
        there = next(
            path for path in (place.absolute(), *place.absolute().parents) if path.exists()
        )
        usage = shutil.disk_usage(there)
        least = min(least, usage.free)
        if usage.free < max(FREE_BYTES, FREE_SHARE * usage.total):
            full.append(f"{place} ({usage.free / 1e9:.1f} GB free)")
    if full:
        raise Broken(
            f"nearly full: {', '.join(full)}",
            "make room: nightschool gc --dry-run says what may go",
        )
    return f"at least {least / 1e9:.1f} GB free where things are kept"


def _versions(_: Settings) -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise Broken(f"Python {python}", "run it with Python 3.11 or 3.12")
    known = []
    for name in ("nightschool", "prefect", "ray", "torch"):
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            known.append(f"{name} not installed here")
    return f"Python {python}, {', '.join(known)}"


def _prefect(settings: Settings) -> str:
    orchestrator = Orchestrator(prefect_api_url(settings))
    orchestrator.check()
    theirs = orchestrator.version()
    missing = [flow for flow in DEPLOYED if not orchestrator.has_deployment(flow)]
    if missing:
        raise Broken(
            f"without the deployments {', '.join(missing)}",
            "nightschool up serves them; on a work pool infra/deploy/register-deployments.sh does",
        )
    try:
        ours = version("prefect")
    except PackageNotFoundError:
        ours = theirs
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        raise Broken(f"the server is {theirs}, this client {ours}", "install the same", "warning")
    return f"version {theirs}, with every deployment"


def _ray(settings: Settings) -> str:
    training = settings.training
    if training.executor != "ray":
        return "not used: training.executor is local"
    if training.ray_address is None:
        return "a local Ray is started by each night"
    place = ray_place(training.ray_address)
    if place is None:
        return "the cluster that this machine is part of"
    try:
        with socket.create_connection(place, timeout=5):
            return f"{training.ray_address} takes connections"
    except OSError as error:
        raise Broken(
            f"no Ray at {training.ray_address} ({error})",
            "check [training] ray_address, and that the head runs",
        ) from None


def _processes(settings: Settings) -> str:
    down = [name for name, url in addresses(settings).items() if not answers(url)]
    if down:
        raise Broken(f"not answering: {', '.join(down)}", "nightschool up starts them", "warning")
    return "engine, gateway, hooks, registry and Prefect answer"


def _ports(settings: Settings) -> str:
    """Whether what listens where the gateway should is the gateway."""
    gateway, hooks, registry = settings.gateway, settings.hooks, settings.registry
    places = {
        "gateway": (gateway.host, gateway.port),
        "hooks": (hooks.host, hooks.port),
        "registry": (registry.host, registry.port),
    }
    ports = {name: port for name, (_, port) in places.items()}
    if len(set(ports.values())) < len(ports):
        raise Broken(f"the same port twice: {ports}", "give each a port of its own")
    for name, (host, port) in places.items():
        with socket.socket() as probe:
            probe.settimeout(2)
            taken = probe.connect_ex((host, port)) == 0
        if taken and not answers(f"http://{host}:{port}/healthz"):
            raise Broken(
                f"port {port} is taken by something that is not the {name}",
                f"stop it, or set another [{name}] port",
            )
    return ", ".join(f"{name} {port}" for name, port in ports.items())


def _base_model(settings: Settings) -> str:
    if is_prepared(settings.engine):
        return f"{settings.engine.base_model} is here"
    raise Broken(
        f"{settings.engine.base_model} is not converted yet",
        "nightschool up or the first night does it",
        "warning",
    )


def _teacher(settings: Settings) -> str:
    return _endpoint("teacher", settings.teacher.url, settings.teacher.api_key)


def _judge(settings: Settings) -> str:
    if settings.judge.model is None:
        return "not used: judge.model is not set"
    return _endpoint("judge", settings.judge.url, settings.judge.api_key)


def _endpoint(section: str, url: str, key: SecretStr | None) -> str:
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        with urlopen(Request(f"{url.rstrip('/')}/models", headers=headers), timeout=5):
            return f"{url} answers"
    except HTTPError as error:
        if error.code in (401, 403):
            raise Broken(f"{url} refuses the key", f"set [{section}] api_key") from None
        return f"{url} answers"
    except URLError as error:
        raise Broken(
            f"{url} does not answer: {error.reason}",
            f"set [{section}] url and api_key; see that it runs and can be reached from here",
        ) from None


def _slack(settings: Settings) -> str:
    notify = settings.notify
    if notify.slack_webhook_url is not None:
        address = notify.slack_webhook_url.get_secret_value()
    elif notify.slack_token is not None:
        address = str(notify.slack_api_url)
    else:
        return "not set up"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Broken("the address is none", "set [notify] slack_webhook_url or slack_api_url anew")
    with socket.create_connection((parts.hostname, parts.port or 443), timeout=5):
        return "can be reached; nightschool notify test sends a message"


def _hooks(settings: Settings) -> str:
    hooks = settings.hooks
    keys = signing_keys(hooks)
    for name, several in hooks.secrets.items():
        how = hooks.sender(name)
        if not all(usable_secret(how, secret.get_secret_value()) for secret in several):
            raise Broken(
                f"the secret of {name} cannot sign", "whsec_ and base64: set [hooks] secrets"
            )
    database = open_database(settings.database)
    try:
        database.check()
        stored = SenderSecrets(database, keys).live()
    except DatabaseError:
        raise Broken("their secrets are in the database", "mend that first", "warning") from None
    finally:
        database.close()
    unknown = [name for name in hooks.senders if name not in hooks.secrets and name not in stored]
    if unknown:
        mend = f"nightschool hooks secrets add {unknown[0]}"
        raise Broken(f"senders without a secret: {', '.join(unknown)}", mend, "warning")
    return f"{len({*hooks.secrets, *stored})} senders, {len(keys)} signing keys"


CHECKS: dict[str, tuple[Callable[[Settings], str], str]] = {
    "database": (_database, "check [database] url and that it runs; nightschool db upgrade"),
    "object store": (_objects, "check [storage] url, endpoint and credentials"),
    "clock": (_clock, "let a time service set the clock"),
    "disk": (_disk, "make room"),
    "versions": (_versions, "make venv installs what is pinned"),
    "ports": (_ports, "see nightschool config for the ports"),
    "processes": (_processes, "nightschool up starts them"),
    "base model": (_base_model, "check [engine] base_model"),
    "teacher": (_teacher, "check [teacher] url, and that it runs"),
    "judge": (_judge, "check [judge] url, and that it runs"),
    "Prefect": (_prefect, "nightschool up starts it; or check [prefect] api_url and credentials"),
    "Ray": (_ray, "check [training] ray_address"),
    "Slack": (
        _slack,
        "check [notify] slack_webhook_url or slack_token, and this machine's way out",
    ),
    "webhooks": (_hooks, "check [hooks]; nightschool hooks secrets list"),
}
