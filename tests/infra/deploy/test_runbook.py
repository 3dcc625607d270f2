"""Every command of the runbook and of the deployment page exists, with the options it is given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from flows.cli import main
from infra.settings.model import Settings
from tests.infra.deploy.reading import DEPLOY, compose
from tests.infra.deploy.rendering import identity, render

PAGES = [DEPLOY / "RUNBOOK.md", DEPLOY / "README.md"]
SERVICES = set(compose()["services"])
OURS = re.compile(
    r"^(?:ns|ns_files|nightschool|docker compose exec (?:-T )?gateway nightschool|"
    r"kubectl -n nightschool exec gateway-0 -- nightschool)\s+(.+)$"
)
VERBS = {"logs", "exec", "ps", "up", "build", "cp", "stop", "restart", "run"}


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, and whole commands within the text; comments left out."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`((?:ns|ns_files|nightschool|docker compose|kubectl) [^`]+)`", prose)
    return [line for line in (*lines, *inline) if line and not line.startswith("#")]


ALL = [line for page in PAGES for line in commands(page)]


def parse(words: list[str]) -> None:
    """Raises click.UsageError unless the command line would be taken."""
    command: click.Command = main
    context = click.Context(main, info_name="nightschool")
    while isinstance(command, click.Group):
        if not words and command.invoke_without_command:
            break
        assert words, f"{context.command_path} alone does nothing"
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r} in {context.command_path}"
        command, words = found, words[1:]
    command.make_context(context.command_path, list(words))


@pytest.mark.parametrize("line", [line for line in ALL if OURS.match(line)])
def test_our_commands_are_taken_as_they_stand(line: str) -> None:
    match = OURS.match(line)
    assert match is not None
    parse(shlex.split(match.group(1)))


def test_a_command_that_is_not_there_would_be_found_out() -> None:
    for wrong in (["keys", "rotate"], ["nothing"], ["db", "restore"], ["rollback", "t", "--now"]):
        with pytest.raises((AssertionError, click.UsageError)):
            parse(wrong)


def test_services_of_compose_and_objects_of_the_cluster_exist() -> None:
    objects = {f"{kind.lower()}/{name}" for kind, name in map(identity, overlay())}
    seen = set()
    for line in (re.sub(r"^alias \w+='(.*)'$", r"\1", line) for line in ALL):
        words = shlex.split(line)
        if words[:2] == ["docker", "compose"]:
            verb, *rest = words[2:]
            assert verb in VERBS, line
            # A value of an option, or a service; what follows exec's and run's service is its own.
            plain = [word for word in rest if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
            if verb in ("exec", "run"):
                assert plain and plain[0] in SERVICES, line
                plain = plain[:1]
            assert set(plain) <= SERVICES, line
            seen |= set(plain)
        elif words[0] == "kubectl":
            for kind, name in re.findall(r"(job|statefulset)/([a-z-]+)", line):
                assert f"{kind}/{name}" in objects, line
    assert {"gateway", "prefect-worker", "postgres"} <= seen


def overlay() -> list[dict]:
    return render(DEPLOY / "kubernetes/overlays/cpu")


def test_settings_alerts_and_topics_are_those_that_there_are() -> None:
    text = PAGES[0].read_text()
    for section, name in re.findall(r"`([a-z]+)\.([a-z_]+)(?: = [^`]+)?`", text):
        if section in Settings.model_fields and name != "yaml":
            kind = Settings.model_fields[section].annotation
            assert name in kind.model_fields, f"{section}.{name}"  # type: ignore[union-attr]
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    told = re.findall(r"^Alerts?: (.+?)\.", text, re.MULTILINE)
    assert told
    assert {name.strip() for line in told for name in line.split(",")} <= alerts
    for topic in ("Upgrade", "Backup", "Restore", "Rotate keys", "Lost bucket", "Stuck rollout"):
        assert f"\n## {topic}\n" in text
    assert "\n## Full disk\n" in text
