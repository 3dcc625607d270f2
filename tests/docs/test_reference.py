"""The reference is what the code says, and every command and setting that a document names is there."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from flows.cli import main
from flows.reference.commands import every_command
from flows.reference.pages import FOLDER, pages
from infra.settings.model import Settings
from infra.settings.page import page as settings_page
from infra.settings.sources import load_settings
from tests.docs.command_lines import commands_in, problem
from tests.docs.markdown import broken_links, fences, inline_code
from tests.docs.test_documents import ROOMS, ROOT, tracked

SHELLS = ("sh", "bash", "console")
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in tracked("*.md")
    # What was so once stays as it was.
    if path.name != "CHANGELOG.md" and "decisions" not in path.parts
]
MADE = {
    **{f"{FOLDER}/{name}": text for name, text in pages().items()},
    "infra/settings/README.md": settings_page(),
}


@pytest.mark.parametrize("name", MADE)
def test_a_page_of_the_reference_is_as_the_code_is(name: str):
    made_by = "infra.settings.page > " + name if "settings" in name else "flows.reference"
    assert (ROOT / name).read_text() == MADE[name], f"run python -m {made_by}"


def test_every_command_and_every_option_of_it_is_in_the_page():
    page = MADE[f"{FOLDER}/commands.md"]
    for found in every_command(main):
        heading = f"# nightschool {' '.join(found.words)}\n"
        assert page.count(heading) == 1, heading
        section = re.split(r"\n#+ nightschool", page.partition(heading)[2])[0]
        for option in found.command.params:
            if option.param_type_name == "option":
                assert f"- `{option.opts[0]}" in section, (found.words, option.opts)


def test_every_command_has_examples_that_would_be_understood():
    wrong = []
    for found in every_command(main):
        examples = list(commands_in((found.command.epilog or "").replace("   ", " # ")))
        # Options of the whole may stand before it.
        name = " ".join(found.words)
        if not any(name in " ".join(words) for words in examples):
            wrong.append(f"{name}: no example")
        for words in examples:
            if said := problem(words):
                wrong.append(f"{name}: {' '.join(words)}: {said}")
    assert wrong == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_command_lines_of_a_document_would_be_understood(name: str):
    text = (ROOT / name).read_text()
    wrong = []
    for fence in fences(text):
        if fence.language in SHELLS:
            wrong += [
                f"line {fence.line}: nightschool {' '.join(words)}: {said}"
                for words in commands_in(fence.text)
                if (said := problem(words))
            ]
    for code in inline_code(text):
        if code.startswith("nightschool "):
            wrong += [
                f"`{code}`: {said}"
                for words in commands_in(code)
                if (said := problem(words, whole=False))
            ]
    assert wrong == []


def test_commands_that_a_message_of_the_product_names_would_be_understood():
    wrong, seen = [], 0
    for path in (path for room in ROOMS for path in tracked(f"{room}/*.py")):
        for hint in _HINT.findall(path.read_text()):
            # A string goes on in the next line, and what is filled in is somebody's name.
            code = re.sub(r"\{[^}]*\}", "NAME", re.sub(r'"\s*\n\s*f?"', "", hint))
            for words in commands_in(" ".join(code.split())):
                seen += 1
                if said := problem(words, whole=False):
                    wrong.append(f"{path.relative_to(ROOT)}: {code}: {said}")
    assert wrong == []
    assert seen > 40


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_and_snippets_of_a_document_are_valid(name: str, tmp_path: Path):
    text = (ROOT / name).read_text()
    for fence in fences(text):
        if fence.language == "toml":
            tomllib.loads(fence.text)
            file = tmp_path / "nightschool.toml"
            file.write_text(fence.text)
            load_settings(file, environ={})
        elif fence.language == "json":
            json.loads(fence.text)
        elif fence.language == "python":
            compile(fence.text, f"{name}:{fence.line}", "exec")
    unknown = [
        f"{section}.{field}"
        for section, field in [
            *re.findall(r"`([a-z]+)\.([a-z_]+)(?: = [^`]*)?`", text),
            *(
                (s.lower(), f.lower())
                for s, f in re.findall(r"NIGHTSCHOOL_([A-Z]+)__([A-Z_]+)", text)
            ),
        ]
        if section in Settings.model_fields
        and field not in _FILES
        and field not in _fields(section)
    ]
    assert unknown == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_a_document_lead_to_files_and_headings(name: str):
    assert broken_links(ROOT / name) == []


def test_a_wrong_line_is_found():
    assert problem(["rollouts", "picture", "ID"]) is None
    for words, said in (
        (["nights"], "has no 'nights'"),
        (["night", "--tomorrow"], "No such option"),
        (["keys", "create", "--role", "king"], "is not one of"),
        (["rollouts", "show"], "Missing argument"),
        (["hooks"], "only a group"),
        (["status", "now"], "nothing takes"),
    ):
        assert said in (problem(words) or ""), words
    [words] = commands_in("docker compose exec -T gateway nightschool status --json | jq .  # all")
    assert words == ["status", "--json"]


_HINT = re.compile(r"(?:`|undo ?= ?f?\")(nightschool [^`\"]+(?:\"\s*\n\s*f?\"[^`\"]*)*)")
_FILES = ("toml", "py", "md", "yaml", "json", "db", "html")


def _fields(section: str) -> set[str]:
    return set(type(getattr(Settings(), section)).model_fields)
