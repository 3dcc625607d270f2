import random
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from infra.database.events import list_events
from infra.database.tables import tasks
from infra.settings.learning import Discovery
from infra.tasks.embedding import embed, nearest, prompt_text
from infra.tasks.signature import signature
from tests.trainers.recorded import (
    SETTINGS,
    START,
    call,
    home,
    opened,
    put_log,
    summary,
    ticket,
    tool_answer,
    translation,
)
from trainers.discover import assignments
from trainers.discover.assignments import AssignmentsCorrupt
from trainers.discover.discover import discover
from trainers.discover.grouping import KnownTask
from trainers.discover.purity import purity
from trainers.ingest.ingest import ingest

TASK_ID = r"^[a-z0-9][a-z0-9-]{0,40}$"


def night(store, database, records, sequence=0, settings=SETTINGS, now=START):
    put_log(store, records, sequence)
    ingest(store, database, settings, holder="night", now=now)
    return discover(store, database, settings, now)


def mixed(first=0, count=40):
    kinds = [home, ticket, translation, summary]
    return [kind(first + 4 * n + k) for n in range(count) for k, kind in enumerate(kinds)]


def kinds_of(records):
    names = ["home", "ticket", "translation", "summary"]
    return {record.id: names[int(record.id[-5:]) % 4] for record in records}


def events(database, what):
    with database.read() as connection:
        return list_events(connection, what=what)


def test_the_tasks_of_mixed_traffic_are_found_and_named(tmp_path):
    store, database = opened(tmp_path)
    records = mixed()
    found = night(store, database, records)
    assert [(task.size, task.state, task.policy) for task in found] == [
        (40, "candidate", "specialize")
    ] * 4
    by_call = {call_id: task.id for task in found for call_id in task.members}
    assert purity(by_call, kinds_of(records)) == {task.id: 1.0 for task in found}
    by_kind = {kinds_of(records)[task.members[0]]: task for task in found}
    assert by_kind["home"].id.startswith("turn-o")
    assert by_kind["home"].kind == "tool_call"
    assert by_kind["ticket"].id.startswith("triage-")
    assert by_kind["ticket"].kind == "structured"
    assert by_kind["translation"].id.startswith("translate-")
    assert by_kind["summary"].id.startswith("summarize-")
    assert all(__import__("re").match(TASK_ID, task.id) for task in found)
    assert len(events(database, "task.created")) == 4


def test_live_requests_are_routed_to_the_task_they_were_found_as(tmp_path):
    store, database = opened(tmp_path)
    night(store, database, mixed())
    with database.read() as connection:
        rows = connection.execute(select(tasks)).mappings().all()
    known = [
        KnownTask(r["id"], r["tag"], r["signature"], tuple(r["centroid"]), r["radius"])
        for r in rows
    ]
    right = abstained = 0
    fresh = mixed(first=4000)
    labels = kinds_of(fresh)
    prefix = {
        "home": "turn",
        "ticket": "triage",
        "translation": "translate",
        "summary": "summarize",
    }
    for record in fresh:
        same = [task for task in known if task.signature == signature(record.request).digest]
        vector = embed([prompt_text(record.request)], SETTINGS.discovery.dimensions)[0]
        task = nearest(vector, same)
        abstained += task is None
        right += task is not None and task.id.startswith(prefix[labels[record.id]])
    assert right + abstained == len(fresh)
    assert abstained <= 0.05 * len(fresh)


def test_ids_stay_from_night_to_night(tmp_path):
    store, database = opened(tmp_path)
    first = night(store, database, mixed())
    second = night(store, database, mixed(first=1000), 1, now=START + timedelta(days=1))
    assert {task.id for task in second} == {task.id for task in first}
    assert {task.name for task in second} == {task.name for task in first}
    assert all(task.size >= 76 for task in second)
    assert all(task.version == 2 for task in second)
    assert len(events(database, "task.created")) == 4


def test_the_same_input_again_changes_nothing(tmp_path):
    store, database = opened(tmp_path)
    first = night(store, database, mixed())
    assert discover(store, database, SETTINGS, START + timedelta(days=1)) == first
    assert len(events(database, "discovery.assigned")) == 1


def test_the_order_of_arrival_does_not_matter(tmp_path):
    records = mixed()
    shuffled = random.Random(1).sample(records, len(records))
    results = []
    for folder, order in (("a", records), ("b", shuffled)):
        (tmp_path / folder).mkdir()
        store, database = opened(tmp_path / folder)
        results.append({task.id: sorted(task.members) for task in night(store, database, order)})
    assert results[0] == results[1]


def test_an_explicit_tag_always_wins(tmp_path):
    store, database = opened(tmp_path)
    records = [home(n, task_tag="Climate Control!") for n in range(30)]
    records += [home(100 + n) for n in range(30)] + [
        ticket(200 + n, task_tag="Climate Control!") for n in range(5)
    ]
    found = night(store, database, records)
    assert [(task.tag, task.size) for task in found] == [("Climate Control!", 35), (None, 30)]
    assert found[0].id.startswith("climate-control-")
    later = [translation(300 + n, task_tag="Climate Control!") for n in range(5)]
    again = night(store, database, later, 1)
    assert again[0].id == found[0].id
    assert again[0].size == 40


def test_a_tasks_own_id_is_a_tag_too(tmp_path):
    store, database = opened(tmp_path)
    found = night(store, database, [home(n) for n in range(30)])
    again = night(store, database, [ticket(100 + n, task_tag=found[0].id) for n in range(4)], 1)
    assert [(task.id, task.size) for task in again] == [(found[0].id, 34)]


def test_too_few_calls_stay_with_the_teacher(tmp_path):
    store, database = opened(tmp_path)
    assert night(store, database, [home(n) for n in range(19)]) == []
    assert assignments.read(store, assignments.latest(database)) == {}
    grown = night(store, database, [home(19)], 1)
    assert [(task.size, task.state) for task in grown] == [(20, "candidate")]


def test_a_tagged_task_of_three_calls_is_observed_until_it_grows(tmp_path):
    store, database = opened(tmp_path)
    few = [home(n, task_tag="t") for n in range(3)] + [home(9, task_tag="once")]
    assert [(task.tag, task.state) for task in night(store, database, few)] == [("t", "observed")]
    more = night(store, database, [home(20 + n, task_tag="t") for n in range(17)], 1)
    assert [(task.size, task.state) for task in more] == [(20, "candidate")]
    assert [event.subject for event in events(database, "task.candidate")] == [more[0].id]


def test_an_empty_day(tmp_path):
    store, database = opened(tmp_path)
    assert discover(store, database, SETTINGS, START) == []


def test_a_new_kind_of_prompt_under_a_known_signature_becomes_a_new_task(tmp_path):
    store, database = opened(tmp_path)
    first = night(store, database, [translation(n) for n in range(60)])
    assert len(first) == 1
    assert len(night(store, database, [summary(1000 + n) for n in range(10)], 1)) == 1
    third = night(store, database, [summary(2000 + n) for n in range(60)], 2)
    assert first[0].id in {task.id for task in third}
    assert len(third) == 2
    new = next(task for task in third if task.id != first[0].id)
    assert new.size >= 60


def test_one_varied_signature_stays_one_task(tmp_path):
    store, database = opened(tmp_path)
    verbs = ["play", "stop", "dim", "open", "lock", "start", "find", "warm"]
    words = ["jazz", "blinds", "door", "timer", "keys", "oven", "news", "rain", "alarm", "vacuum"]
    dice = random.Random(3)
    records = []
    for number in range(200):
        user = f"{dice.choice(verbs)} the {dice.choice(words)} {dice.choice(words)}"
        answer = tool_answer(dice.choice(["turn_on", "turn_off"]), "{}")
        records.append(
            call(number, user, answer, "You control a home.", tools=home(1).request["tools"])
        )
    assert [task.size for task in night(store, database, records)] == [200]


def test_prompts_without_words_have_a_task_too(tmp_path):
    store, database = opened(tmp_path)
    found = night(store, database, [call(n, user=f"{n}") for n in range(30)])
    assert [task.size for task in found] == [30]


def test_an_operators_changes_are_kept(tmp_path):
    store, database = opened(tmp_path)
    first = night(store, database, [home(n) for n in range(30)])
    with database.begin() as connection:
        connection.execute(update(tasks).values(state="specialized", policy="shadow", version=7))
    second = night(store, database, [home(100 + n) for n in range(5)], 1)
    assert [(t.id, t.state, t.policy, t.version) for t in second] == [
        (first[0].id, "specialized", "shadow", 8)
    ]


def test_two_at_once_agree(tmp_path):
    store, database = opened(tmp_path)
    put_log(store, mixed())
    ingest(store, database, SETTINGS, holder="night", now=START)
    results = []
    barrier = threading.Barrier(2)

    def work():
        barrier.wait()
        results.append(discover(store, database, SETTINGS, START))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 2
    assert results[0] == results[1]
    assert len(events(database, "task.created")) == 4
    assert len(events(database, "discovery.assigned")) == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["store.put", "database.begin"])
def test_killed_before_or_after_an_effect_and_run_again_ends_the_same(tmp_path, name, monkeypatch):
    records = mixed()
    results = []
    for mode in ("whole", "before", "after"):
        (tmp_path / mode).mkdir()
        store, database = opened(tmp_path / mode)
        put_log(store, records)
        ingest(store, database, SETTINGS, holder="night", now=START)
        target = store if name == "store.put" else database
        method = name.split(".")[1]
        with monkeypatch.context() as patch:
            if mode != "whole":
                patch.setattr(target, method, _deadly(getattr(target, method), mode))
                with pytest.raises(Killed):
                    discover(store, database, SETTINGS, START)
        results.append(discover(store, database, SETTINGS, START))
    assert results[0] == results[1] == results[2]


def _deadly(method, mode):
    calls = []

    def effect(*args):
        calls.append(args)
        if method.__name__ == "begin" and len(calls) < 2:
            return method(*args)  # the snapshot; the second transaction is the commit
        if mode == "before":
            raise Killed
        return _then_die(method(*args))

    return effect


def _then_die(result):
    if not hasattr(result, "__enter__"):
        raise Killed

    class Context:
        def __enter__(self):
            return result.__enter__()

        def __exit__(self, *error):
            result.__exit__(*error)
            raise Killed

    return Context()


def test_a_damaged_assignment_file_is_noticed_and_healed(tmp_path):
    store, database = opened(tmp_path)
    first = night(store, database, [home(n) for n in range(30)])
    pointer = assignments.latest(database)
    store.put(pointer.key, store.get(pointer.key)[:-20])
    with pytest.raises(AssignmentsCorrupt, match="run discovery again"):
        assignments.read(store, pointer)
    healed = discover(store, database, SETTINGS, START)
    assert [(task.id, task.members) for task in healed] == [(first[0].id, first[0].members)]
    assert assignments.read(store, assignments.latest(database))


def test_only_the_newest_calls_are_looked_at(tmp_path):
    store, database = opened(tmp_path)
    settings = SETTINGS.model_copy(
        update={"discovery": Discovery(min_calls=20, max_calls=100, dimensions=64)}
    )
    found = night(store, database, [home(n) for n in range(130)], settings=settings)
    assert [task.size for task in found] == [100]
    assert "call-00029" not in found[0].members


def test_nothing_personal_in_what_is_stored_of_a_task(tmp_path):
    store, database = opened(tmp_path)
    records = [
        call(n, user=f"write to ann{n}@example.org about the offer", answer="done")
        for n in range(30)
    ]
    found = night(store, database, records)
    assert len(found) == 1
    assert "example.org" not in f"{found[0].name} {found[0].details}"
    assert "offer" in found[0].details["medoid"]


def test_no_task_is_made_of_two_tenants_calls(tmp_path):
    store, database = opened(tmp_path)
    theirs = [home(n, tenant="bank") for n in range(100, 140)]
    found = night(store, database, [*(home(n) for n in range(40)), *theirs])
    assert len({task.id for task in found}) == 2
    by_tenant = {task.details["tenant"]: task for task in found}
    assert set(by_tenant["bank"].members) == {record.id for record in theirs}
    later = [home(n, tenant="bank") for n in range(200, 240)]
    again = night(store, database, [*later, *(home(n) for n in range(300, 310))], 1)
    assert {(t.id, t.details["tenant"]) for t in again} == {
        (t.id, t.details["tenant"]) for t in found
    }


def test_tenants_share_a_task_where_the_settings_say_so(tmp_path):
    store, database = opened(tmp_path)
    shared = SETTINGS.model_copy(
        update={"discovery": SETTINGS.discovery.model_copy(update={"share_between_tenants": True})}
    )
    records = [home(n, tenant="bank" if n % 3 else "shop") for n in range(60)]
    (task,) = night(store, database, records, settings=shared)
    assert (task.size, task.details["tenant"]) == (60, None)
    # Once they may not any more, it is the bank's, which has most of it; its id stays.
    owned = {item.details["tenant"]: item for item in night(store, database, records[:1], 1)}
    assert (owned["bank"].id, owned["bank"].size) == (task.id, 40)
    assert owned["shop"].id != task.id
    assert owned["shop"].size == 20
