"""`nightschool lineage` and `nightschool history`, as a person and a script meet them."""

from __future__ import annotations

import re
from pathlib import Path

from infra.calls.codec import encode_lines, log_key
from infra.calls.record import AnsweredBy, CallRecord
from infra.objects.directory import DirectoryStore
from serving.registry.registry import Registry
from tests.flows.cli.conftest import Run, lines, parsed


def logged(folder: Path, adapter: str) -> tuple[str, str]:
    """A call in the log; its id and its object's key."""
    record = CallRecord(
        session="s",
        task="invoice-fields",
        request={"messages": []},
        response={},
        answered_by=AnsweredBy(model="small", adapter=adapter, route_version=1),
    )
    key = log_key(record.time, "gateway", 1)
    DirectoryStore(folder / "objects").create(key, encode_lines([record]))
    return record.id, key


def test_from_a_call_to_the_log_objects(run: Run, registry: Registry, folder: Path):
    champion = registry.route("invoice-fields").champion
    call, key = logged(folder, champion)
    found = parsed(run("lineage", call, "--json"))
    assert found["kind"] == "call"
    assert found["call"]["object"] == key
    assert found["adapter"]["adapter"]["name"] == champion
    assert found["adapter"]["source_objects"] == ["logs/v1/a", "logs/v1/b"]
    said = run("lineage", call).stdout
    assert said.startswith("Taken for a call.")
    for part in (champion, key, "logs/v1/b", "route       version 1", "made of 2 log objects"):
        assert part in said


def test_from_a_log_object_and_from_a_data_set_to_the_adapters(run: Run, registry: Registry):
    adapters = {a.name for a in registry.adapters("invoice-fields")}
    found = parsed(run("lineage", "logs/v1/a", "--json"))
    assert {a["name"] for a in found["adapters"]} == {a.name for a in registry.adapters()}
    dataset = registry.adapters("invoice-fields")[0].dataset_digest
    found = parsed(run("lineage", dataset[:10], "--json"))
    assert (found["kind"], found["dataset"]["digest"]) == ("dataset", dataset)
    assert {a["name"] for a in found["adapters"]} == adapters
    assert run("lineage", "logs/v1/a").stdout.startswith("Taken for a log object.")
    assert "learned from by:" in run("lineage", dataset).stdout


def test_of_an_adapter_it_says_how_it_was_judged_and_brought_in(run: Run, registry: Registry):
    (rollout,) = registry.rollouts()
    said = run("lineage", rollout.adapter).stdout
    assert said.startswith("Taken for an adapter.")
    assert f"{rollout.id} pending" in said
    assert re.search(r"pass at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", said)


def test_what_is_unknown_or_unclear_is_one_line_and_status_3(run: Run, registry: Registry):
    for what, told in (
        ("mail@0000000000000000", "no adapter"),
        ("logs/v1/never", "nothing was learned from"),
        ("0" * 64, "no data set version"),
        ("0199b7a5-3f51-7c2e-9d0c-8a4f5b6c7d8e", "no call 0199b7a5"),
        ("zzz", "neither an adapter"),
    ):
        refused = run("lineage", what, status=3)
        assert told in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert "Invalid value" in run("lineage", "x", "--kind", "song", status=2).stderr
    assert (
        "no adapter 'logs/v1/a'"
        in run("lineage", "logs/v1/a", "--kind", "adapter", status=3).stderr
    )


def test_history_is_of_the_task_and_all_that_is_its_own(run: Run, registry: Registry):
    (rollout,) = registry.rollouts()
    whole = parsed(run("history", "invoice-fields", "--json"))
    assert {event["subject"] for event in whole} == {
        "invoice-fields",
        rollout.id,
        *(adapter.name for adapter in registry.adapters("invoice-fields")),
    }
    assert [event["id"] for event in whole] == sorted((e["id"] for e in whole), reverse=True)
    (changed,) = (event for event in whole if event["what"] == "route.changed")
    assert changed["previous"]["champion"] == "teacher"
    assert len(parsed(run("history", "invoice-fields", "--limit", "2", "--json"))) == 2
    assert len(lines(run("history", "invoice-fields"))) == len(whole) + 1
    assert "no task 'nobody'" in run("history", "nobody", status=3).stderr
