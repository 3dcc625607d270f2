"""Fixtures that every room's tests share, and the environment they run in."""
# ruff: noqa: E402

from __future__ import annotations

import os
import signal
import sys

# A shell's background job ignores it, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Compiled modules are kept whatever this shell says: a second of every process that a test starts.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Before any test module imports torch, ray or prefect, which read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    HF_HUB_OFFLINE="1",
    RAY_AUTH_MODE="disabled",
    AWS_EC2_METADATA_DISABLED="true",
    TOKENIZERS_PARALLELISM="false",
)
# Settings of this machine must not leak in; which Python has a real vLLM is no setting.
_KEPT = "NIGHTSCHOOL_VLLM_PYTHON"
for _name in [name for name in os.environ if name.startswith("NIGHTSCHOOL_") and name != _KEPT]:
    del os.environ[_name]
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from infra.database.open import Database, open_database
from infra.objects.open import open_store
from infra.objects.store import ObjectStore
from infra.settings.model import Settings
from tests.contracts.guarded_s3 import GuardedS3, start_guarded_s3
from tests.contracts.servers import PostgresServer, S3Server, start_postgres, start_s3
from tests.prefect_server import PrefectServer, start_prefect

# How long an example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("nightschool", deadline=None, max_examples=50)
hypothesis.settings.load_profile("nightschool")


# One Prefect server and one Ray for the whole run, in however many processes it goes on.
_SHARED = {"prefect_server": "prefect", "ray_executor": "ray", "executor": "ray"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together in one process, and the longest first, so that none is left at the end.

    Before xdist's own hook, which reads the groups.
    """
    slow: set[str] = set()
    groups: dict[Path, str] = {}
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in _SHARED:
                groups[item.path] = _SHARED[name]
    for item in items:
        group = groups.get(item.path, str(item.path))
        item.add_marker(pytest.mark.xdist_group(group))
        if item.get_closest_marker("slow"):
            slow.add(group)
    items.sort(key=lambda item: _group(item) not in slow)


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return str(marker.args[0])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with every path under the test's own folder."""
    return Settings.model_validate(
        {
            "storage": {"url": str(tmp_path / "objects")},
            "database": {"url": f"sqlite:///{tmp_path}/nightschool.db"},
            "gateway": {
                "spool": tmp_path / "spool",
                "snapshot": tmp_path / "routes.json",
                "adapters": tmp_path / "adapters",
            },
            "engine": {"models": tmp_path / "models"},
            "training": {"runs": tmp_path / "runs"},
            "prefect": {"home": tmp_path / "prefect"},
            "hooks": {"key_file": tmp_path / "hooks.key"},
        }
    )


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return open_store(settings.storage)


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with its tables, to be copied: migrating takes ten times as long."""
    made = tmp_path_factory.mktemp("tables") / "tables.db"
    _migrate(f"sqlite:///{made}")
    return made


@pytest.fixture(scope="session")
def postgres_tables(postgres: PostgresServer) -> str:
    """The name of a PostgreSQL database with its tables, to be copied."""
    url = postgres.new_database()
    _migrate(url)
    return url.rpartition("/")[2]


def _migrate(url: str) -> None:
    opened = Database(url)
    opened.upgrade()
    opened.close()


@pytest.fixture
def database(settings: Settings, sqlite_tables: Path) -> Iterator[Database]:
    """The test's own SQLite database, with its tables."""
    opened = open_database(settings.database)
    shutil.copyfile(sqlite_tables, str(opened.url.database))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL of this test session's own."""
    with start_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real server process that speaks the S3 protocol over HTTP."""
    with start_s3() as server:
        yield server


@pytest.fixture(scope="session")
def guarded_s3() -> Iterator[GuardedS3]:
    """Such a server that refuses keys which it does not know, or no longer."""
    with start_guarded_s3() as server:
        yield server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real Prefect server, shared by every test that needs one."""
    with start_prefect(tmp_path_factory.mktemp("prefect-server")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    """A database without tables, once of each kind."""
    if request.param == "sqlite":
        opened = open_database(settings.database)
    else:
        opened = Database(request.getfixturevalue("postgres").new_database())
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def each_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with its tables, once of each kind: SQLite and PostgreSQL."""
    if request.param == "sqlite":
        yield request.getfixturevalue("database")
        return
    tables = request.getfixturevalue("postgres_tables")
    opened = Database(request.getfixturevalue("postgres").new_database(tables))
    yield opened
    opened.close()
