"""Reads the deployment files as their tools do: Compose's interpolation, Dockerfile instructions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "infra/deploy"
OUR_IMAGES = ("nightschool-gateway", "nightschool-worker", "nightschool-engine")
EXAMPLE_VALUES = {
    "COMPOSE_PROFILES": "embedded",
    "POSTGRES_PASSWORD": "postgres-password",
    "S3_ACCESS_KEY": "s3-access",
    "S3_SECRET_KEY": "s3-secret-key",
    "PREFECT_AUTH": "nightschool:prefect-password",
    "RAY_TOKEN": "5" * 64,
    "ENGINE_KEY": "engine-key",
    "GRAFANA_PASSWORD": "grafana-password",
    "TEACHER_URL": "http://teacher:8301/v1",
    "HOOKS_URL": "http://127.0.0.1:8303",
    "PREFECT_URL": "http://127.0.0.1:4200",
    "TEACHER_MODEL": "teacher",
    "TEACHER_KEY": "teacher-key",
    "HOOK_SECRETS": '{"ci": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}',
    "HOOK_KEY": "7" * 64,
    "SLACK_WEBHOOK_URL": "",
    "VLLM_MODEL": "",
    "HF_TOKEN": "",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?+])([^}]*))?\}")


class NotSet(Exception):
    """A variable that the Compose file insists on."""


def compose(variables: Mapping[str, str] = EXAMPLE_VALUES) -> dict[str, Any]:
    """compose.yaml with its variables filled in. Raises NotSet."""
    return _filled(yaml.safe_load((DEPLOY / "compose.yaml").read_text()), variables)


def variables_of_compose() -> set[str]:
    return {match[0] for match in _VARIABLE.findall((DEPLOY / "compose.yaml").read_text())}


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(below, variables) for key, below in value.items()}
    if isinstance(value, list):
        return [_filled(below, variables) for below in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, operator, default = match.groups()
        given = variables.get(name, "")
        if not given and operator == ":?":
            raise NotSet(name)
        if operator == ":+":
            return str(default) if given else ""
        return given or (default if operator == ":-" else "")

    return _VARIABLE.sub(fill, value)


@dataclass(frozen=True)
class Dockerfile:
    instructions: list[tuple[str, str]]
    """Keyword and the rest, lines joined, comments left out."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the final stage."""

    def final_stage(self) -> list[tuple[str, str]]:
        start = max(i for i, (word, _) in enumerate(self.instructions) if word == "FROM")
        return self.instructions[start:]

    def last(self, keyword: str) -> str:
        return [rest for word, rest in self.final_stage() if word == keyword][-1]

    def command(self) -> list[str]:
        return list(json.loads(self.last("CMD")))

    def health_check(self) -> list[str]:
        return list(json.loads(self.last("HEALTHCHECK").partition(" CMD ")[2]))


def dockerfile(image: str) -> Dockerfile:
    """The Dockerfile of ``nightschool-<role>``."""
    name = image.partition(":")[0].removeprefix("nightschool-")
    text = (DEPLOY / f"docker/{name}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    instructions = [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]
    made = Dockerfile(instructions)
    for word, rest in made.final_stage():
        if word == "ENV":
            made.environment.update(re.findall(r"(\w+)=(\S+)", rest))
    return made


def is_ours(service: Mapping[str, Any]) -> bool:
    return str(service["image"]).startswith(OUR_IMAGES)


def command_of(service: Mapping[str, Any]) -> list[str]:
    """What the container runs: the service's command, else the image's."""
    if "command" in service:
        return [str(word) for word in service["command"]]
    return dockerfile(service["image"]).command()


def health_check_of(service: Mapping[str, Any]) -> list[str]:
    if "healthcheck" in service:
        kind, *words = service["healthcheck"]["test"]
        assert kind == "CMD"
        return words
    return dockerfile(service["image"]).health_check()


def environment_of(service: Mapping[str, Any]) -> dict[str, str]:
    """The image's variables under the service's own."""
    own = {name: str(value) for name, value in service.get("environment", {}).items()}
    return {**dockerfile(service["image"]).environment, **own}
