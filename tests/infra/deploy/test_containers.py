"""Each container's command for real: it starts with its variables, says it is well, and stops."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import pytest

from flows.orchestrator import Orchestrator
from flows.serve import ZOMBIES, deployments
from infra.database.open import Database
from infra.settings.sources import load_settings
from tests.contracts.servers import PostgresServer, S3Server
from tests.infra.deploy.containers import Place
from tests.infra.deploy.reading import EXAMPLE_VALUES, compose
from tests.model_hub import model_hub
from tests.tiny_model import make_tiny_model


@pytest.fixture
def place(tmp_path: Path, postgres: PostgresServer, s3_server: S3Server) -> Place:
    login = "nightschool:postgres-password@postgres:5432"
    urls = {name: postgres.new_database() for name in ("nightschool", "prefect")}
    here = {f"{login}/{name}": url.partition("://")[2] for name, url in urls.items()}
    make_tiny_model(tmp_path / "tiny")
    return Place(
        tmp_path,
        {
            **here,
            "http://minio:9000": s3_server.endpoint_url,
            "s3://nightschool": f"s3://containers-{tmp_path.name.replace('_', '-')[-40:]}".lower(),
            "/opt/models/base": str(tmp_path / "tiny"),
        },
    )


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until_ready(port: str) -> None:
    """The gateway is well as soon as it listens, and ready once it has read its first routes."""
    deadline = time.monotonic() + 60
    while (answer := get(f"http://127.0.0.1:{port}/readyz"))[0] != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def test_the_day_tables_bucket_gateway_hooks_engine(place: Place, s3_server: S3Server) -> None:
    for _ in range(2):  # each start of the stack runs them again
        assert "revision" in place.once("migrate")
        place.once("bucket")
    settings = load_settings(None, place.environment("gateway"))
    Database(settings.database.url.get_secret_value()).check()
    buckets = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="y",
    ).list_buckets()["Buckets"]
    assert settings.storage.url.removeprefix("s3://") in [bucket["Name"] for bucket in buckets]
    with (
        place.running("engine"),
        place.running("hooks"),
        place.running("registry"),
        place.running("gateway"),
    ):
        port = place.ports["8300"]
        until_ready(port)
        # A key is wanted, as the file says, and the engine's own guards it.
        assert get(f"http://127.0.0.1:{port}/v1/models")[0] == 401
        assert get(f"http://127.0.0.1:{place.ports['8302']}/v1/models")[0] == 401
        assert (
            b"nightschool_engine_waiting"
            in get(f"http://127.0.0.1:{place.ports['8302']}/metrics")[1]
        )
        deadline = time.monotonic() + 60
        while b"nightschool_store_reached 1.0" not in get(f"http://127.0.0.1:{port}/metrics")[1]:
            assert time.monotonic() < deadline, "the gateway never reached the store"
            time.sleep(0.2)
    # Nothing outside the volumes: the root file system is read-only.
    assert place.written() <= {"spool", "shared", "prefect"}


def test_a_gateway_of_vllm_starts_with_the_base_model_that_was_fetched_for_it(
    place: Place, tmp_path: Path
) -> None:
    chosen = {**EXAMPLE_VALUES, "COMPOSE_PROFILES": "vllm", "VLLM_MODEL": "owner/model"}
    place.services = compose(chosen)["services"]
    with model_hub("owner/model", tmp_path / "tiny") as hub:
        for _ in range(2):  # each start of the stack runs it again
            place.once("base", HF_ENDPOINT=hub.url)
        assert len(hub.fetched) == len(set(hub.fetched)) > 3
    place.once("migrate")
    place.once("bucket")
    with place.running("gateway"):
        until_ready(place.ports["8300"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_night_server_deployments_and_worker_on_the_pool(place: Place) -> None:
    place.once("migrate")
    place.once("bucket")
    with place.running("prefect-server"):
        for _ in range(2):
            place.once("deployments")
        environment = place.environment("prefect-worker")
        settings = load_settings(None, environment)
        with pytest.MonkeyPatch.context() as patch, place.running("prefect-worker"):
            patch.setenv("PREFECT_API_AUTH_STRING", environment["PREFECT_API_AUTH_STRING"])
            orchestrator = Orchestrator(str(settings.prefect.api_url))
            for deployment in deployments(settings):
                found = orchestrator._ask(
                    "GET", f"/deployments/name/{deployment.flow_name}/{deployment.name}"
                )
                assert found["work_pool_name"] == "nightschool"
                schema = deployment._parameter_openapi_schema.model_dump(mode="json")
                assert found["parameter_openapi_schema"]["properties"] == schema["properties"]
            automations = orchestrator._ask("POST", "/automations/filter", {})
            watching = [one for one in automations if one["name"] == ZOMBIES]
            assert len(watching) == 1, "the watch for dead runs is made once"
            run = orchestrator.start("ingest", {})
            deadline = time.monotonic() + 180
            while not (now := orchestrator.run(run.id)).ended:
                assert time.monotonic() < deadline, now
                time.sleep(0.5)
            assert now.state == "COMPLETED", now.message
    assert place.written() <= {"spool", "shared", "prefect"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_takes_work_from_elsewhere_and_only_with_the_token(place: Place) -> None:
    code = (
        "import sys; from pathlib import Path; import ray\n"
        "from trainers.executors import on_ray\n"
        "from trainers.executors.on_ray import RayExecutor, _job_to_plain\n"
        "from trainers.executors.protocol import TrainJob\n"
        "on_ray._JOIN_SECONDS = float(sys.argv[2])\n"
        "executor = RayExecutor(sys.argv[1])\n"
        # By name, as the product's own task is sent: the worker must have the product.
        "job = TrainJob(Path('/run/of/a/test'), cpus=1)\n"
        "task = ray.remote(_job_to_plain).options(num_cpus=1)\n"
        "done = ray.get(task.remote(job), timeout=240)\n"
        # Only after it: a worker that says it is well may still be joining.
        "print(sorted(ray.cluster_resources().items()))\n"
        "print(done['run_dir'])\n"
    )

    def ask(environment: dict[str, str], patience: float = 600) -> subprocess.CompletedProcess[str]:
        address = load_settings(None, environment).training.ray_address
        return subprocess.run(
            [sys.executable, "-c", code, str(address), str(patience)],
            env=environment,
            cwd=place.state,
            capture_output=True,
            text=True,
            timeout=400,
        )

    with place.running("ray-head"), place.running("ray-worker"):
        done = ask(place.environment("prefect-worker"))
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == "/run/of/a/test"
        assert "('CPU', 2.0)" in done.stdout, "the head runs no training, the worker two"
        stranger = {**place.environment("prefect-worker"), "RAY_AUTH_TOKEN": "6" * 64}
        assert ask(stranger, patience=0).returncode != 0
