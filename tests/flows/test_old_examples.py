"""What an earlier data set still teaches beside a new one: nothing that the new adapter is judged by."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from flows.learning import _old_rows
from flows.wiring import Context
from serving.registry.registry import Registry
from tests.trainers.recorded import SETTINGS, START, call, opened, put_log
from trainers.data_sets.freeze import freeze
from trainers.data_sets.golden import make_case, pin
from trainers.data_sets.versions import read_split
from trainers.discover.discover import discover
from trainers.ingest.ingest import ingest

WORDS = " ".join(f"word{n}" for n in range(300))


def ask(number: int, text: str):
    return call(number, text, f"answer {text[-12:]}", session=f"s{number}")


def test_old_examples_near_to_what_is_judged_are_left_out(tmp_path: Path):
    store, database = opened(tmp_path)
    context = Context(SETTINGS, store, database, Registry(database), {}, "test")
    first = [
        ask(n, f"Sort the letter of writer {'abcdefghij'[n % 10] * 3} {n // 10 * 'x'}")
        for n in range(40)
    ]
    first[0] = ask(0, f"Sort the letter {WORDS}")
    first[1] = ask(1, f"Sort the letter {WORDS} now")
    put_log(store, first, 0)
    ingest(store, database, SETTINGS, holder="night", now=START)
    (task,) = discover(store, database, SETTINGS, START)
    old = freeze(store, database, SETTINGS, task.id, START)
    taught = {e.call_id: e.request for e in read_split(store, old, "train")}
    assert {"call-00000", "call-00001"} <= set(taught)

    # A later set of other calls: one of its test prompts nearly repeats what was taught before.
    later = [
        ask(n, f"Sort the letter of writer {'klmnopqrst'[n % 10] * 3} {n // 10 * 'y'}")
        for n in range(100, 139)
    ]
    later.append(ask(140, f"Sort the letter {WORDS} please"))
    put_log(store, later, 1)
    ingest(store, database, SETTINGS, holder="night", now=START)
    newest = SETTINGS.model_copy(
        update={"training": SETTINGS.training.model_copy(update={"max_examples": 40})}
    )
    discover(store, database, SETTINGS, START + timedelta(days=1))
    new = freeze(store, database, newest, task.id, START + timedelta(days=1))
    assert "call-00140" in {e.call_id for e in read_split(store, new, "test")}
    case = make_case(task.id, taught["call-00005"], {"content": "it"}, why="it is", by="ann")
    pin(store, database, case)
    asked = [row["request"] for row in _old_rows(context, old.digest, new)]
    assert taught["call-00002"] in asked
    for name in ("call-00000", "call-00001", "call-00005"):
        assert taught[name] not in asked
