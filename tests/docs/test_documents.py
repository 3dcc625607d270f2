"""What the documents and the tree promise each other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import COMMANDS, SUMMARIES, main
from infra.settings.model import Settings

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "trainers", "evaluators", "serving", "infra")
MAX_LINES = 400


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_answers_help_with_an_example_and_stands_in_the_readme(command: str):
    said = CliRunner().invoke(main, [command, "--help"])
    assert said.exit_code == 0
    assert "Example" in said.output
    assert f"nightschool {command}" in (ROOT / "README.md").read_text()


def test_commands_and_their_summaries_agree():
    assert list(COMMANDS) == list(SUMMARIES)
    assert all(
        summary in CliRunner().invoke(main, ["--help"]).output for summary in SUMMARIES.values()
    )


def test_the_readmes_tree_names_what_is_there():
    tree = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    named = re.findall(r"^\s*([\w./-]+/)\s{2,}\S", tree.group(1), re.MULTILINE)
    assert set(ROOMS) <= {name.strip("/") for name in named}
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_links_between_documents_lead_somewhere():
    broken = []
    for document in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http") and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_setting_is_bounded_or_chosen_and_every_section_is_in_the_settings_page():
    page = (ROOT / "infra/settings/README.md").read_text()
    missing = [
        f"{section}.{name}"
        for section, known in Settings.model_fields.items()
        for name in known.annotation.model_fields  # type: ignore[union-attr]
        if f"`{section}.{name}`" not in page
    ]
    assert missing == [], "run python -m infra.settings.page > infra/settings/README.md"


def test_constraints_are_exact_and_hold_no_address():
    for name in ("constraints.txt", "without-dependencies.txt"):
        for line in (ROOT / "infra" / name).read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.!+_-]+", line), line


def test_modules_are_one_room_each():
    modules = [path for room in ROOMS for path in tracked(f"{room}/*.py")]
    dependencies = {
        re.split(r"[\[<>= ]", item)[0].replace("-", "_").lower()
        for item in _dependencies(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    }
    names = {path.stem for path in modules} | {path.parent.name for path in modules}
    assert names & (dependencies | {"utils"}) == set()
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_nothing_is_left_open_and_nothing_speaks_of_registries():
    # Spelled so that this file does not find itself.
    marks = re.compile("TO" + "DO|FIX" + "ME|X" + "XX|pypi" + r"\.org|files\.python" + "hosted")
    found = [
        str(path.relative_to(ROOT))
        for path in (*tracked("*.py"), *tracked("*.md"), *tracked("*.toml"), *tracked("*.sh"))
        if marks.search(path.read_text())
    ]
    assert found == []


def _dependencies(project: dict) -> list[str]:
    extras = project["project"]["optional-dependencies"].values()
    return [*project["project"]["dependencies"], *(item for extra in extras for item in extra)]
