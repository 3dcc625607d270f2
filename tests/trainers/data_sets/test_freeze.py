import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from infra.calls.record import AnsweredBy, FeedbackRecord
from infra.database.events import list_events
from infra.database.tables import dataset_versions
from infra.settings.learning import Training
from tests.trainers.recorded import SETTINGS, START, home, opened, put_log
from trainers.data_sets.freeze import EmptyDataset, freeze
from trainers.data_sets.versions import DatasetCorrupt, find_dataset, read_split
from trainers.discover.discover import discover
from trainers.ingest.ingest import ingest
from trainers.plan import plan

SMALL = AnsweredBy(model="small", adapter="task@0123456789abcdef")


def night(store, database, records, sequence=0):
    put_log(store, records, sequence)
    ingest(store, database, SETTINGS, holder="night", now=START)
    return discover(store, database, SETTINGS, START)


def frozen(tmp_path, records, settings=SETTINGS):
    store, database = opened(tmp_path)
    task = night(store, database, records)[0]
    return store, database, task, freeze(store, database, settings, task.id, START)


def every(store, version):
    return [e for name in ("train", "validation", "test") for e in read_split(store, version, name)]


def test_a_version_holds_the_teachers_answers(tmp_path):
    records = [home(n) for n in range(60)]
    store, database, task, version = frozen(tmp_path, records)
    assert version.location == f"datasets/{task.id}/{version.digest}"
    counts, copies = version.manifest["counts"], version.manifest["dropped"]["near-copy"]
    assert sum(counts.values()) == 60 - copies
    assert all(counts[name] > 5 for name in counts)
    assert version.manifest["test_prompts_in_train"] == 0
    found = {e.call_id: e for e in every(store, version)}
    said = {r.id: (r.request, r.answer) for r in records}
    assert {id: (e.request, e.answer) for id, e in found.items()}.items() <= said.items()
    assert version.manifest["kind"] == "tool_call"
    assert version.manifest["format"]["drop_tools"] is True
    assert version.manifest["parents"]["log_objects"] == [next(store.list("logs/")).key]
    assert version.manifest["signatures"] == [task.signature]
    assert version.manifest["agreement"]["prompts"] > 0
    newest = max(e.time for e in read_split(store, version, "train"))
    assert all(e.time > newest for e in read_split(store, version, "test"))
    assert any(e.weight < 1 for e in found.values())
    with database.read() as connection:
        row = connection.execute(select(dataset_versions)).mappings().one()
        assert len(list_events(connection, what="dataset.frozen")) == 1
    assert (row["digest"], row["manifest"]) == (version.digest, version.manifest)
    assert find_dataset(store, version.location) == version


def test_the_same_calls_give_the_same_version(tmp_path):
    records = [home(n) for n in range(40)]
    store, database, task, version = frozen(tmp_path, records)
    before = {item.key: item.etag for item in store.list("datasets/")}
    again = freeze(store, database, SETTINGS, task.id, START + timedelta(days=1))
    assert again == version
    assert {item.key: item.etag for item in store.list("datasets/")} == before
    with database.read() as connection:
        assert len(list_events(connection, what="dataset.frozen")) == 1
    (tmp_path / "other").mkdir()
    elsewhere = frozen(tmp_path / "other", list(reversed(records)))[3]
    assert elsewhere.digest == version.digest


def test_another_answer_is_another_version(tmp_path):
    records = [home(n) for n in range(40)]
    (tmp_path / "other").mkdir()
    changed = [*records[:-1], home(39, response=records[0].response)]
    assert frozen(tmp_path, records)[3].digest != frozen(tmp_path / "other", changed)[3].digest


def test_small_models_do_not_teach_themselves_and_people_correct(tmp_path):
    right = {"role": "assistant", "content": "Which room?"}
    records = [home(n) for n in range(30)]
    records += [home(100 + n, answered_by=SMALL) for n in range(10)]
    feedback = [
        FeedbackRecord(call_id="call-00000", score=0.0, time=START),
        FeedbackRecord(call_id="call-00001", correction=right, time=START),
        FeedbackRecord(call_id="call-00105", correction=right, time=START),
        FeedbackRecord(call_id="call-00002", correction=right, time=START, tenant="another"),
    ]
    store, _, _, version = frozen(tmp_path, [*records, *feedback])
    found = {e.call_id: e for e in every(store, version)}
    assert len(found) == 30
    assert "call-00000" not in found
    assert found["call-00001"].answer == found["call-00105"].answer == right
    assert found["call-00002"].answer != right  # nobody teaches another tenant's tasks
    assert version.manifest["sources"] == {"correction": 2, "teacher": 28}
    assert version.manifest["dropped"] == {"rejected": 1, "small-model": 9}


def test_errors_of_the_teacher_and_of_its_tools_teach_nothing(tmp_path):
    def result(number: int, content: str, **more):
        """The next call of the session, with what the tool said."""
        before = home(number)
        messages = [
            *before.request["messages"],
            before.answer,
            {"role": "tool", "tool_call_id": "call_x", "content": content},
        ]
        request = {**before.request, "messages": messages}
        return home(1000 + number, session=before.session, request=request, **more)

    records = [home(n, session=f"s{n}") for n in range(30)]
    records[3] = home(3, session="s3", response={"error": {"code": "429"}})
    records[4] = home(
        4,
        session="s4",
        response={"choices": [{"message": home(4).answer, "finish_reason": "length"}]},
    )
    records += [
        result(0, '{"status": "error", "why": "no such room"}').model_copy(
            update={"session": "s0"}
        ),
        result(1, "all the errors are listed here").model_copy(update={"session": "s1"}),
        FeedbackRecord(call_id="call-00002", label="tool_error", time=START),
    ]
    store, _, _, version = frozen(tmp_path, records)
    dropped = version.manifest["dropped"]
    assert (dropped["tool-error"], dropped["unanswered"], dropped["invalid"]) == (2, 1, 1)
    found = {e.call_id for e in every(store, version)}
    assert not found & {f"call-0000{n}" for n in (0, 2, 3, 4)}


def test_a_prompt_is_in_one_split_however_it_was_answered(tmp_path):
    records = [
        home(n % 12, id=f"c{n:03d}", time=START + timedelta(minutes=n), session=f"s{n}")
        for n in range(60)
    ]
    for number in range(0, 60, 7):
        records[number] = records[number].model_copy(update={"response": home(99).response})
    store, _, _, version = frozen(tmp_path, records)
    prompts = [
        {json.dumps(e.request, sort_keys=True) for e in read_split(store, version, name)}
        for name in ("train", "validation", "test")
    ]
    assert all(prompts)
    assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_the_newest_examples_are_kept(tmp_path):
    settings = SETTINGS.model_copy(update={"training": Training(max_examples=10)})
    store, _, _, version = frozen(tmp_path, [home(n) for n in range(30)], settings)
    assert sorted(e.call_id for e in every(store, version)) == [
        f"call-{n:05d}" for n in range(20, 30)
    ]
    assert version.manifest["dropped"] == {"older": 20}


def test_a_task_with_three_examples_is_frozen_and_then_not_trained(tmp_path):
    records = [home(2 * n, task_tag="rare") for n in range(3)]
    store, _, task, version = frozen(tmp_path, records)
    assert version.manifest["counts"] == {"train": 1, "validation": 1, "test": 1}
    assert len(every(store, version)) == 3
    night_time = START.replace(hour=23)
    found = plan([replace(task, state="candidate")], {task.id: version}, SETTINGS, night_time)
    assert found.skipped == ((task.id, "1 training examples, at least 10 are needed"),)
    assert (
        plan([task], {task.id: version}, SETTINGS, night_time)
        .skipped[0][1]
        .startswith("fewer than 20")
    )


def test_a_task_without_a_usable_answer_says_why(tmp_path):
    store, database = opened(tmp_path)
    task = night(store, database, [home(n, answered_by=SMALL) for n in range(30)])[0]
    with pytest.raises(EmptyDataset, match="30 small-model"):
        freeze(store, database, SETTINGS, task.id, START)
    with pytest.raises(EmptyDataset, match="run discovery first"):
        freeze(store, database, SETTINGS, "no-such-task", START)
    assert list(store.list("datasets/")) == []


def test_what_was_changed_after_freezing_is_refused(tmp_path):
    store, database, task, version = frozen(tmp_path, [home(n) for n in range(30)])
    key = f"{version.location}/train.parquet"
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DatasetCorrupt, match=r"train\.parquet has another sha256"):
        read_split(store, version, "train")
    store.delete(key)
    with pytest.raises(DatasetCorrupt, match="missing"):
        read_split(store, version, "train")
    manifest = json.loads(store.get(f"{version.location}/manifest.json"))
    store.put(
        f"{version.location}/manifest.json", json.dumps({**manifest, "task_id": "x"}).encode()
    )
    with pytest.raises(DatasetCorrupt, match="belongs to another"):
        find_dataset(store, version.location)
    store.put(f"{version.location}/manifest.json", b"{")
    with pytest.raises(DatasetCorrupt, match="no data set manifest"):
        find_dataset(store, version.location)
    assert freeze(store, database, SETTINGS, task.id, START) == version
    assert len(every(store, find_dataset(store, version.location))) == 30


class Killed(BaseException):
    pass


def test_killed_before_any_write_and_run_again_ends_the_same(tmp_path, monkeypatch):
    records = [home(n) for n in range(30)]
    (tmp_path / "whole").mkdir()
    expected = frozen(tmp_path / "whole", records)[3]
    store, database = opened(tmp_path)
    task = night(store, database, records)[0]
    died = 0
    for limit in range(1, 9):
        left = [limit]

        def deadly(method, left=left):
            def effect(*args):
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return method(*args)

            return effect

        with monkeypatch.context() as patch:
            for target, name in ((store, "put"), (store, "create"), (database, "begin")):
                patch.setattr(target, name, deadly(getattr(target, name)))
            try:
                freeze(store, database, SETTINGS, task.id, START)
                break
            except Killed:
                died += 1
    assert died >= 2
    again = freeze(store, database, SETTINGS, task.id, START)
    assert again == expected
    assert len(every(store, again)) == 30
