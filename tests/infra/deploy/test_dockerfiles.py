"""The Dockerfiles' rules: pinned, small in the end, without root and without building tools."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from flows.stack.services import _embedded_engine
from infra.settings.model import Settings
from tests.infra.deploy.reading import DEPLOY, OUR_IMAGES, ROOT, dockerfile

EXTRAS = {"nightschool-gateway": "[telemetry]", "nightschool-worker": "[train,judge,flows]"}
EXTRAS["nightschool-engine"] = "[engine]"
KNOWN = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "CMD"}


@pytest.mark.parametrize("image", OUR_IMAGES)
class TestEachImage:
    def test_is_built_from_a_pinned_base_and_the_pinned_packages(self, image: str) -> None:
        file = dockerfile(image)
        assert {word for word, _ in file.instructions} <= KNOWN
        bases = [rest.split()[0] for word, rest in file.instructions if word == "FROM"]
        arguments = dict(
            rest.split("=", 1) for word, rest in file.instructions if word == "ARG" and "=" in rest
        )
        assert bases == ["${PYTHON_IMAGE}"] * 2
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
        tag = arguments["PYTHON_IMAGE"]
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", tag), "a tag that never moves"
        assert version.startswith(">=3.11")
        constrained = [r for w, r in file.instructions if w == "ENV" and "PIP_CONSTRAINT" in r]
        assert "PIP_CONSTRAINT=/src/infra/constraints.txt" in constrained[0]
        runs = " ".join(rest for word, rest in file.instructions if word == "RUN")
        assert re.findall(r"--no-build-isolation '?\.(\[[a-z,]+\])?'?", runs) == [EXTRAS[image]]
        assert "apt-get" not in runs
        assert "curl" not in runs and "wget" not in runs

    def test_ends_without_root_and_without_building_tools(self, image: str) -> None:
        final = dockerfile(image).final_stage()
        words = [word for word, _ in final]
        assert dockerfile(image).last("USER") == "10001:10001"
        assert "RUN" not in words[words.index("USER") :]
        for word, rest in final:
            assert not (word == "RUN" and "pip" in rest)
            assert not (word == "COPY" and "--from=build /src" in rest)
        built = " ".join(r for w, r in dockerfile(image).instructions if w == "RUN")
        assert re.search(r"pip uninstall --yes hatchling pip", built)

    def test_can_be_asked_whether_it_is_well_and_stopped(self, image: str) -> None:
        file = dockerfile(image)
        # The exec form: a shell in between would keep SIGTERM to itself.
        assert file.command() and file.health_check()
        port = re.search(r"127\.0\.0\.1:(\d+)/", " ".join(file.health_check()))
        assert port is not None
        assert port.group(1) in file.last("EXPOSE").split()

    def test_holds_no_secret(self, image: str) -> None:
        text = " ".join(rest for _, rest in dockerfile(image).instructions)
        assert not re.search(r"(?i)(password|secret|token|api_key)=", text)


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    for allowed in (line[1:] for line in lines if line.startswith("!")):
        assert (ROOT / allowed).exists()
    for image in OUR_IMAGES:
        for word, rest in dockerfile(image).instructions:
            if word == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in packages["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"!{package}" in lines


def test_the_engine_s_command_is_that_of_nightschool_up() -> None:
    settings = Settings()
    known = _embedded_engine(settings, DEPLOY, "python").argv
    wanted = dict(zip(known[3::2], known[4::2], strict=True))
    command = dockerfile("nightschool-engine").command()
    assert command[:3] == ["python", *known[1:3]]
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert given.pop("--host") == "0.0.0.0"
    assert given.pop("--model") == "/opt/models/base"
    for option, value in given.items():
        assert value == wanted[option], option
    # What the command leaves out is the engine's own default.
    from serving.engines.embedded.__main__ import arguments

    defaults = vars(arguments(["--model", "x"]))
    for option in wanted.keys() - given.keys() - {"--host", "--model"}:
        assert str(defaults[option[2:].replace("-", "_")]) == wanted[option], option


def test_the_gateway_s_image_can_send_the_traces_that_the_settings_offer() -> None:
    """It is built with the extra that has what tracing imports."""
    text = (ROOT / "serving/gateway/tracing.py").read_text()
    assert re.search(r"from opentelemetry\.sdk", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = EXTRAS["nightschool-gateway"].strip("[]")
    assert "opentelemetry-sdk" in project["optional-dependencies"][extra]


def test_the_gateway_s_image_needs_none_of_the_heavy_packages() -> None:
    """Its commands are imported in a fresh process where torch, Prefect and Ray cannot be."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in HEAVY: raise ModuleNotFoundError(name, name=name)\n"
        "HEAVY = {'torch','transformers','prefect','ray','evidently','pandas','scipy','datasets'}\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import serving.gateway.__main__, flows.hooks.__main__, infra.database.backup\n"
        "from click.testing import CliRunner\n"
        "from flows.cli import main\n"
        "for words in (['db', 'upgrade'], ['keys', 'list'], ['status', '--json'], ['tasks']):\n"
        "    done = CliRunner().invoke(main, words, catch_exceptions=False)\n"
        "    assert done.exit_code == 0, (words, done.output)\n"
    )
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr[-2000:]
