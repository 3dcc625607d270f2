"""The commands about logs, as a person and a script meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.taking_in import ingest_logs
from flows.wiring import open_context
from infra.calls.codec import LOG_PREFIX, parse_line
from infra.objects.directory import DirectoryStore
from tests.flows.cli.conftest import Run
from tests.trainers.readers.samples import SAMPLES

MAIL = "ann.lee@example.com"
pytestmark = pytest.mark.usefixtures("empty")


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text)
    return path


def row(content: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(SAMPLES["flywheel"].rows[1]))
    changed["request"]["messages"][1]["content"] = content
    changed["request"]["messages"][3]["content"] = json.dumps({"owner": content})
    return changed


def test_import_says_what_it_did_and_again_that_there_is_nothing(run: Run, tmp_path: Path):
    write(tmp_path / "exports" / "a.jsonl", [*SAMPLES["litellm"].rows, "rubbish"])
    dry = json.loads(run("import", "auto", "exports", "--dry-run", "--json").stdout)
    assert (dry["stored"], dry["keys"]) == (3, [])
    said = json.loads(run("import", "auto", "exports", "--tenant", "shop", "--json").stdout)
    assert (said["read"], said["stored"], said["failures"], said["lost"]) == (4, 3, 1, 0)
    assert said["quarantined"] == {"not valid JSON": 1}
    assert said["formats"] == {"litellm": 3}
    again = run("import", "auto", "exports", "--tenant", "shop").stdout
    assert "0 objects read (1 were known)" in again
    store = DirectoryStore(tmp_path / "objects")
    assert [item.key for item in store.list(LOG_PREFIX)] == said["keys"]


def test_import_of_nothing_and_of_no_format(run: Run):
    assert "no file or folder" in run("import", "auto", "nowhere", status=1).stderr
    assert "Invalid value" in run("import", "csv", "nowhere", status=2).stderr
    assert "begins with ftp" in run("import", "auto", "ftp://x/y", status=1).stderr


def test_quarantine_lists_explains_and_reads_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "Nothing is in quarantine" in run("quarantine", "list").stdout
    secret = f"{MAIL} " * 200
    write(tmp_path / "exports" / "a.jsonl", [row("hello"), row(secret)])
    monkeypatch.setenv("NIGHTSCHOOL_INGEST__MAX_LINE_BYTES", "4096")
    run("import", "flywheel", "exports")
    said = run("quarantine", "list")
    assert "line 2" in said.stdout and MAIL not in said.stdout
    assert "1  longer than 4096 bytes" in said.stdout
    listed = json.loads(run("quarantine", "list", "--json").stdout)
    (entry,) = listed["entries"]
    assert listed["reasons"] == {"longer than 4096 bytes": 1}
    assert (entry["object"], entry["reader"]) == ("a.jsonl", "flywheel")
    assert entry["location"] == str(tmp_path / "exports")
    explained = run("quarantine", "explain", entry["id"]).stdout
    assert "raise ingest.max_line_bytes" in explained
    assert "no entry" in run("quarantine", "explain", "000000000000", status=3).stderr
    run("quarantine", "rerun", "000000000000", status=3)
    still = json.loads(run("quarantine", "rerun", "--json").stdout)
    assert (still["settled"], still["left"]) == (0, {"longer than 4096 bytes": 1})
    monkeypatch.delenv("NIGHTSCHOOL_INGEST__MAX_LINE_BYTES")
    done = json.loads(run("quarantine", "rerun", entry["id"], "--json").stdout)
    assert (done["tried"], done["settled"], done["stored"]) == (1, 1, 1)
    assert "Nothing is in quarantine" in run("quarantine", "list").stdout


def test_rerun_says_when_the_source_is_gone(run: Run, tmp_path: Path):
    path = write(tmp_path / "exports" / "a.jsonl", ["rubbish"])
    run("import", "flywheel", "exports")
    path.unlink()
    assert "the source is not there any more" in run("quarantine", "rerun").stdout


def test_anonymize_explains_without_ever_showing_a_value(run: Run, tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [row(f"Dear {MAIL}, call +1 415 555 0132 or {MAIL}"), "x"])
    said = run("anonymize", str(file), "--explain")
    for output in (said.stdout, run("anonymize", str(file), "--explain", "--json").stdout):
        assert "ann.lee" not in output and "415 555" not in output
    assert "request.messages.1.content: 2 x EMAIL -> <EMAIL_1>" in said.stdout
    assert "Dear <EMAIL_1>, call <PHONE_1> or <EMAIL_1>" in said.stdout
    assert "request.messages.3.content: 2 x EMAIL" in said.stdout
    assert "line 2: not valid JSON" in said.stdout
    told = json.loads(run("anonymize", str(file), "--explain", "--json").stdout)
    assert told["kinds"] == {"EMAIL": 4, "PHONE": 2}
    assert (told["read"], told["problems"]) == (2, 1)
    assert not (tmp_path / "objects").exists()


def test_explain_shows_the_policy_of_each_kind_and_what_is_not_stored(run: Run, tmp_path: Path):
    (tmp_path / "nightschool.toml").write_text(
        '[anonymizer]\nhash_key = "k"\nkinds = { EMAIL = "hash", PHONE = "drop_record" }\n'
    )
    file = write(tmp_path / "a.jsonl", [row(f"Dear {MAIL}"), row("call +1 415 555 0132")])
    said = run("anonymize", str(file), "--explain").stdout
    assert "hash:        EMAIL" in said and "drop_record: PHONE" in said
    assert "-> <EMAIL_h" in said and "not stored, it holds PHONE" in said
    assert "1 not to be stored" in said
    told = json.loads(run("anonymize", str(file), "--explain", "--json").stdout)
    assert (told["policy"]["EMAIL"], told["policy"]["CARD"]) == ("hash", "replace")
    assert told["left_out"] == {"PHONE": 1}
    assert "PHONE" in run("anonymize", str(file)).stderr
    card = write(tmp_path / "b.jsonl", [row("call +1 415 555 0132")])
    imported = json.loads(run("import", "flywheel", str(card), "--json").stdout)
    assert (imported["read"], imported["stored"], imported["lost"]) == (1, 0, 0)
    assert imported["left_out"] == {"PHONE": 1}


def test_to_hash_without_a_key_is_refused_before_anything_is_read(run: Run, tmp_path: Path):
    (tmp_path / "nightschool.toml").write_text('[anonymizer]\nkinds = { EMAIL = "hash" }\n')
    file = write(tmp_path / "a.jsonl", [row(f"Dear {MAIL}")])
    for command in (("anonymize", str(file)), ("import", "flywheel", str(file))):
        assert "NIGHTSCHOOL_ANONYMIZER__HASH_KEY" in run(*command, status=2).stderr


def test_anonymize_writes_the_records(run: Run, tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [row(f"Dear {MAIL}"), "x", row("hello")])
    said = run("anonymize", str(file))
    lines = said.stdout.splitlines()
    assert [parse_line(line.encode()).type for line in lines] == ["call", "call"]
    assert "Dear <EMAIL_1>" in lines[0] and "line 2: not valid JSON" in said.stderr
    run("anonymize", str(file), "--format", "flywheel", "--output", "clean.jsonl")
    assert (tmp_path / "clean.jsonl").read_text().splitlines() == lines
    bad = write(tmp_path / "bad.jsonl", ["x"])
    assert "no row of" in run("anonymize", str(bad), status=1).stderr
    run("anonymize", str(file), "--explain", "--output", "x", status=2)


def test_any_text_is_anonymized_by_its_lines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "notes.txt"
    file.write_bytes(f"Dear {MAIL}\nnothing\nagain {MAIL} \xff".encode("latin-1"))
    assert "--format text" in run("anonymize", str(file), status=1).stderr
    said = run("anonymize", str(file), "--format", "text").stdout
    assert said == "Dear <EMAIL_1>\nnothing\nagain <EMAIL_1> \ufffd"
    told = run("anonymize", str(file), "--format", "text", "--explain").stdout
    assert "line 3  text: 1 x EMAIL -> <EMAIL_1>" in told and MAIL not in told
    assert "3 records read, 0 unreadable" in told
    monkeypatch.setenv("NIGHTSCHOOL_ANONYMIZER__KINDS", '{"EMAIL": "drop_record"}')
    assert run("anonymize", str(file), "--format", "text").stdout == "nothing\n"


def test_a_text_line_of_the_limit_is_read_and_a_longer_one_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NIGHTSCHOOL_INGEST__MAX_LINE_BYTES", "4096")
    file = tmp_path / "long.txt"
    file.write_bytes(b"a" * 4096 + b"\n" + b"b" * 9000 + b"\nshort\n" + b"c" * 4096)
    done = run("anonymize", str(file), "--format", "text")
    assert done.stdout == "a" * 4096 + "\nshort\n" + "c" * 4096
    assert (
        "longer than 4096 bytes"
        in run("anonymize", str(file), "--format", "text", "--explain").output
    )


def test_sources_of_the_settings_are_taken_in_once_by_ingest(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "exports" / "a.jsonl", SAMPLES["langfuse"].rows)
    sources = [
        {"format": "otel", "location": str(tmp_path / "nowhere")},
        {"format": "langfuse", "location": str(tmp_path / "exports"), "tenant": "shop"},
    ]
    monkeypatch.setenv("NIGHTSCHOOL_INGEST__SOURCES", json.dumps(sources))
    said: list[str] = []
    with open_context() as context:
        first = ingest_logs(context, said.append)
        second = ingest_logs(context)
    assert (first.calls, second.calls) == (3, 0)
    assert any("nowhere could not be read" in line for line in said)
    write(tmp_path / "exports" / "b.jsonl", SAMPLES["otel"].rows)
    with open_context() as context:
        assert ingest_logs(context).calls == 0
    listed = json.loads(run("quarantine", "list", "--json").stdout)
    assert {entry["object"] for entry in listed["entries"]} == {"b.jsonl"}
