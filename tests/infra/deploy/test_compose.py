"""compose.yaml: valid, complete, hardened, and with settings that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from compose_spec.compose_spec import PyCompose

from infra.settings.sources import load_settings
from serving.engines.embedded.__main__ import arguments
from serving.gateway.__main__ import AFTER_CALLS_SECONDS
from tests.infra.deploy.reading import (
    DEPLOY,
    EXAMPLE_VALUES,
    NotSet,
    command_of,
    compose,
    dockerfile,
    environment_of,
    health_check_of,
    is_ours,
    variables_of_compose,
)

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = [name for name, service in SERVICES.items() if is_ours(service)]
ONCE = {"bucket", "migrate", "deployments", "base"}


def test_it_is_valid_by_the_compose_specification() -> None:
    for variables in (EXAMPLE_VALUES, {**EXAMPLE_VALUES, "VLLM_MODEL": "owner/model"}):
        PyCompose.from_json(json.dumps(compose(variables))).validate()


@pytest.mark.parametrize("chosen", [{}, {"COMPOSE_PROFILES": "vllm", "VLLM_MODEL": "owner/model"}])
def test_the_real_compose_reads_the_same(chosen: dict[str, str]) -> None:
    tool = shutil.which("docker-compose")
    if tool is None:
        pytest.skip("no docker-compose (version 2) here: our own reading stands alone")
    variables = {**EXAMPLE_VALUES, **chosen}
    command = [tool, "--file", str(DEPLOY / "compose.yaml"), "--env-file", os.devnull]
    done = subprocess.run(
        [*command, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ours = compose(variables)["services"]
    theirs = json.loads(done.stdout)["services"]
    assert theirs.keys() == {
        name
        for name, service in ours.items()
        if service.get("profiles", [variables["COMPOSE_PROFILES"]])
        == [variables["COMPOSE_PROFILES"]]
    }
    for name, service in theirs.items():
        environment = ours[name].get("environment", {})
        assert service.get("environment", {}) == environment, name
        assert service.get("command") == ours[name].get("command"), name


def test_every_secret_is_asked_for_and_explained() -> None:
    example = (DEPLOY / "compose.env.example").read_text()
    explained = set(re.findall(r"^([A-Z0-9_]+)=", example, re.MULTILINE))
    asked = variables_of_compose()
    assert asked == explained == set(EXAMPLE_VALUES)
    text = (DEPLOY / "compose.yaml").read_text()
    for name in ("POSTGRES_PASSWORD", "S3_SECRET_KEY", "PREFECT_AUTH", "RAY_TOKEN", "ENGINE_KEY"):
        with pytest.raises(NotSet, match=name):
            compose({**EXAMPLE_VALUES, name: ""})
        assert f"${{{name}:-" not in text, "a secret has no default"


def test_what_is_named_is_there() -> None:
    whole = compose()
    for name, service in SERVICES.items():
        for needed in service.get("depends_on", {}):
            assert needed in SERVICES, (name, needed)
            condition = service["depends_on"][needed]["condition"]
            wanted = "service_completed_successfully" if needed in ONCE else "service_healthy"
            assert condition == wanted, (name, needed)
        for network in service["networks"]:
            assert network in whole["networks"], (name, network)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (DEPLOY / source).exists() if source[0] == "." else source in whole["volumes"]
            assert known, (name, source)
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("name", OURS)
def test_our_settings_exist_and_are_within_bounds(name: str) -> None:
    environment = environment_of(SERVICES[name])
    settings = load_settings(None, environment)
    if "NIGHTSCHOOL_DATABASE__URL" in environment:
        assert settings.training.ray_address == "ray://ray-head:10001"
        assert settings.engine.url == "http://engine:8302"


def test_vllm_is_chosen_with_its_model() -> None:
    chosen = {**EXAMPLE_VALUES, "COMPOSE_PROFILES": "vllm", "VLLM_MODEL": "owner/model"}
    services = compose(chosen)["services"]
    for name in ("gateway", "prefect-worker"):
        engine = load_settings(None, environment_of(services[name])).engine
        assert engine.kind == "vllm"
        assert engine.base_model == "/var/lib/nightschool/shared/models/owner/model"
        # It needs the base model's files to start, and nobody else brings them.
        assert services[name]["depends_on"]["base"]["required"] is False
    assert command_of(services["base"])[-2:] == ["owner/model", engine.base_model]
    assert services["vllm"]["depends_on"].keys() == {"base"}
    command = services["vllm"]["command"]
    assert f"--model={engine.base_model}" in command
    assert f"--served-model-name={engine.base_model}" in command
    assert f"--max-loras={engine.slots}" in command
    assert f"--max-lora-rank={engine.max_rank}" in command
    assert services["vllm"]["profiles"] == services["base"]["profiles"] == ["vllm"]
    assert services["engine"]["profiles"] == ["embedded"]


def test_only_gateway_and_judge_reach_an_engine() -> None:
    reach = {name for name, service in SERVICES.items() if "engine" in service["networks"]}
    assert reach == {"gateway", "prefect-worker", "engine", "vllm"}
    assert set(SERVICES["vllm"]["networks"]) == {"engine"}
    for name in ("vllm", "engine", "postgres", "minio", "ray-head", "ray-worker"):
        assert "ports" not in SERVICES[name]
    internal = {
        name for name, given in compose()["networks"].items() if (given or {}).get("internal")
    }
    assert internal == {"data", "engine", "ray", "watch"}


def test_what_is_published_is_published_on_loopback() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)


@pytest.mark.parametrize("name", list(SERVICES))
def test_every_service_is_bounded_watched_and_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["logging"]["options"]["max-size"]
    assert "no-new-privileges:true" in service["security_opt"]
    tag = service["image"].partition(":")[2]
    assert tag and tag != "latest"
    if name in ONCE:
        assert service["restart"] == "on-failure"
    else:
        assert service["restart"] == "unless-stopped"
        assert is_ours(service) or service["healthcheck"]["test"]
    if is_ours(service):
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert name in ONCE or health_check_of(service)
    # What a read-only root leaves to write to: memory and named volumes.
    for volume in service.get("volumes", []):
        assert not volume.startswith("/"), "no folder of the host, least of all the engine's socket"


def test_the_gateway_has_time_to_drain() -> None:
    grace = int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    gateway = load_settings(None, environment_of(SERVICES["gateway"])).gateway
    notice, calls = gateway.drain_notice_seconds, gateway.drain_seconds
    assert grace > notice + calls + AFTER_CALLS_SECONDS


def test_the_engine_has_time_to_answer_what_it_began() -> None:
    drain = arguments(["--model", "x"]).drain_seconds
    assert int(SERVICES["engine"]["stop_grace_period"].removesuffix("s")) > drain


def test_who_shares_adapters_shares_their_place() -> None:
    for name in ("gateway", "prefect-worker", "ray-head", "ray-worker", "base"):
        assert "shared:/var/lib/nightschool/shared" in SERVICES[name]["volumes"], name
    for name in ("engine", "vllm"):
        assert "shared:/var/lib/nightschool/shared:ro" in SERVICES[name]["volumes"], name
    settings = load_settings(None, environment_of(SERVICES["gateway"]))
    for folder in (settings.gateway.adapters, settings.training.runs, settings.engine.models):
        assert str(folder).startswith("/var/lib/nightschool/shared/")


@pytest.mark.parametrize("name", OURS)
def test_a_new_volume_belongs_to_who_writes_it(name: str) -> None:
    """A named volume takes its owner from the folder in the image; without one it is root's."""
    (made,) = (
        rest
        for word, rest in dockerfile(SERVICES[name]["image"]).final_stage()
        if word == "RUN" and "install -d -o 10001 -g 10001" in rest
    )
    for volume in SERVICES[name].get("volumes", []):
        assert volume.split(":")[1] in made.split(), volume


def test_prometheus_and_grafana_find_what_they_watch() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    for job in scraped:
        (place,) = job["dns_sd_configs"]
        for name in place["names"]:
            assert "watch" in SERVICES[name]["networks"]
            assert str(place["port"]) in " ".join(health_check_of(SERVICES[name]))
    provisioned = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioned / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["uid"] == "prometheus"
    (provider,) = yaml.safe_load((provisioned / "dashboards/nightschool.yaml").read_text())[
        "providers"
    ]
    folder = provider["options"]["path"]
    assert (
        f"./grafana/dashboard.json:{folder}/nightschool.json:ro" in SERVICES["grafana"]["volumes"]
    )
