import itertools
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.learning import Gate, Night, Training
from infra.settings.model import Settings
from trainers.packing import lower_bound, makespan
from trainers.plan import BaseScore, Measured, night_window, plan, step_examples

NOW = datetime(2026, 3, 2, 23, 0, tzinfo=UTC)
SETTINGS = Settings(
    training=Training(workers=1, batch_size=10, epochs=1, max_steps=100, min_examples=60),
    night=Night(seconds_per_step=1.0),
    gate=Gate(min_rows=30),
)
FREE = Measured(overhead_seconds=0)


@dataclass(frozen=True)
class Task:
    id: str
    tokens: float = 1e6
    state: str = "candidate"
    policy: str = "specialize"
    into: str | None = None

    @property
    def details(self):
        return {"volume": {"tokens_per_day": self.tokens}, "merged_into": self.into}


@dataclass(frozen=True)
class Dataset:
    digest: str = "d"
    train: int = 1000
    validation: int = 50
    test: int = 100
    agreement: dict = field(default_factory=lambda: {"value": 0.9, "prompts": 50})

    @property
    def manifest(self):
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {"counts": counts, "agreement": self.agreement}


def one(task=None, dataset=None, settings=SETTINGS, measured=FREE, **more):
    task = task or Task("a")
    datasets = {} if dataset is None else {task.id: dataset}
    return plan([task], datasets, settings, NOW, measured, **more)


def test_a_good_task_is_planned_with_its_estimate():
    found = one(dataset=Dataset(), measured=Measured(300.0, {"d": 90.0}, overhead_seconds=10))
    assert [(run.task_id, run.dataset, run.steps) for run in found.runs] == [("a", "d", 100)]
    assert found.runs[0].estimated_seconds == 310
    assert found.runs[0].saving == pytest.approx(1e6 * 0.5 * 5 / 1e6)
    assert found.deadline == datetime(2026, 3, 3, 6, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("task", "dataset", "words"),
    [
        (Task("a", state="retired"), Dataset(), "retired"),
        (Task("a", policy="teacher"), Dataset(), "policy"),
        (Task("a", into="b"), Dataset(), "another tenant"),
        (Task("a", state="observed"), Dataset(), "fewer than 40 calls"),
        (Task("a"), None, "no data set"),
        (Task("a"), Dataset(train=2, validation=1, test=1), "2 training examples"),
        (Task("a"), Dataset(test=29), "29 test examples"),
        (Task("a"), Dataset(validation=0), "no validation"),
        (Task("a"), Dataset(agreement={"value": 0.3, "prompts": 40}), "only 30% of 40"),
        (
            Task("a"),
            Dataset(agreement={"value": None, "like": {"value": 0.4, "prompts": 20}}),
            "only 40% of 20 like prompts",
        ),
        (Task("a"), Dataset(digest="old"), "nothing new"),
    ],
)
def test_what_is_not_worth_a_run_is_skipped_with_its_reason(task, dataset, words):
    found = one(task, dataset, measured=Measured(trained=frozenset({"old"})))
    assert found.runs == ()
    assert found.skipped[0][0] == "a"
    assert words in found.skipped[0][1]


def test_a_good_base_is_looked_at_again_after_a_month_or_when_there_is_much_more_to_learn_from():
    def said(**score):
        measured = Measured(base_scores={"a": BaseScore(0.99, **score)})
        found = one(dataset=Dataset(), measured=measured)
        return found.skipped[0][1] if found.skipped else "trained"

    assert "nothing to learn; looked at again in 20 days" in said(
        age_seconds=10 * 86_400, train_rows=900
    )
    assert said(age_seconds=31 * 86_400, train_rows=900) == "trained"
    assert said(train_rows=600) == "trained"
    assert said() == "trained", "of what data is not known"


def test_a_few_repeated_prompts_prove_no_disagreement():
    assert one(dataset=Dataset(agreement={"value": 0.0, "prompts": 3})).runs
    assert one(dataset=Dataset(agreement={"value": None, "prompts": 0})).runs


def test_a_learning_curve_costs_half_a_run_and_its_verdict_is_in_the_reason():
    training = SETTINGS.training.model_copy(update={"learning_curve": True})
    curious = SETTINGS.model_copy(update={"training": training})
    said = Measured(overhead_seconds=0, curves={"a": "more data would help"})
    found = one(dataset=Dataset(), settings=curious, measured=said)
    assert found.runs[0].estimated_seconds == 150
    assert found.runs[0].reason.endswith("100 steps; more data would help")
    assert one(dataset=Dataset()).runs[0].estimated_seconds == 100


def test_the_largest_saving_goes_first_and_the_rest_waits_or_is_skipped():
    tasks = [Task("small", 1e3), Task("big", 9e6), Task("middle", 5e6), Task("tiny", 1.0)]
    settings = SETTINGS.model_copy(update={"night": Night(seconds_per_step=1, max_tasks=3)})
    found = plan(tasks, {t.id: Dataset(t.id) for t in tasks}, settings, NOW, FREE)
    assert [(run.task_id, run.starts_after_seconds) for run in found.runs] == [
        ("big", 0),
        ("middle", 100),
        ("small", 200),
    ]
    assert found.skipped == (("tiny", "3 tasks with more saving per second come first"),)
    assert found.estimated_seconds == 300
    assert found.deferred == ("tiny",)


def test_the_saving_counts_per_second_that_it_costs():
    tasks = [Task("long", 2e6), Task("short", 1.5e6)]
    data = {"long": Dataset("l", 1000), "short": Dataset("s", 200)}
    settings = SETTINGS.model_copy(update={"night": Night(seconds_per_step=1, max_tasks=1)})
    found = plan(tasks, data, settings, NOW, FREE)
    assert [run.task_id for run in found.runs] == ["short"]
    assert found.runs[0].saving_per_worker_hour == pytest.approx(1.5 * 0.5 * 5 / 20 * 3600)


def test_what_did_not_fit_comes_first_the_next_night():
    tasks = [Task("big", 9e6), Task("small", 1.0)]
    data = {t.id: Dataset(t.id) for t in tasks}
    end = NOW + timedelta(seconds=110)
    first = plan(tasks, data, SETTINGS, NOW, FREE, deadline=end)
    assert ([run.task_id for run in first.runs], first.deferred) == (["big"], ("small",))
    assert "comes first tomorrow" in dict(first.skipped)["small"]
    waiting = Measured(overhead_seconds=0, waiting=frozenset(first.deferred))
    then = plan(tasks, data, SETTINGS, NOW, waiting, deadline=end)
    assert ([run.task_id for run in then.runs], then.deferred) == (["small"], ("big",))
    assert "it waited for a night with room" in then.runs[0].reason


def test_the_longest_run_starts_first():
    settings = SETTINGS.model_copy(
        update={"training": SETTINGS.training.model_copy(update={"workers": 2})}
    )
    rows = {"a": 300, "b": 300, "c": 200, "d": 200, "e": 200, "long": 600}
    tasks = [Task(name) for name in rows]
    found = plan(tasks, {n: Dataset(n, r) for n, r in rows.items()}, settings, NOW, FREE)
    assert found.runs[0].task_id == "long"
    assert found.estimated_seconds == 100
    assert lower_bound([run.estimated_seconds for run in found.runs], 2) == 90


def test_a_base_model_that_can_do_it_already_is_left_alone():
    found = one(
        dataset=Dataset(), measured=Measured(base_scores={"a": BaseScore(0.99, train_rows=1000)})
    )
    assert "base model alone is right on 99%" in found.skipped[0][1]
    assert one(
        dataset=Dataset(), measured=Measured(base_scores={"a": BaseScore(0.5, train_rows=1000)})
    ).runs


def test_what_was_forgotten_is_trained_again_whatever_speaks_against_it():
    known = Measured(trained=frozenset("d"), base_scores={"a": BaseScore(0.99, train_rows=1000)})
    assert not one(dataset=Dataset(), measured=known).runs
    due = one(dataset=Dataset(), measured=replace(known, due=frozenset("a")))
    assert "due, for what was forgotten" in due.runs[0].reason


def with_training(**changes):
    return SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update=changes)})


def test_a_spec_has_no_more_steps_than_are_set_and_its_processes_share_each_evenly():
    few = one(dataset=Dataset(), settings=with_training(max_steps=7))
    assert few.runs[0].steps == 7
    team = with_training(processes_per_run=4)
    assert step_examples(Dataset(), team) == 12
    assert one(dataset=Dataset(), settings=team).runs[0].steps == 84


def test_each_base_that_competes_is_in_the_estimate():
    alone = one(dataset=Dataset(), measured=FREE)
    against = one(dataset=Dataset(), settings=with_training(candidate_bases=("b", "c", "d")))
    assert against.runs[0].estimated_seconds > 1.9 * alone.runs[0].estimated_seconds


def test_two_of_three_like_runs_on_two_workers_follow_each_other():
    assert lower_bound([5.0, 5.0, 5.0], 2) == 10


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.integers(1, 5))
def test_the_layout_keeps_grahams_bound(seconds, workers):
    bound = lower_bound(seconds, workers)
    assert bound <= makespan(seconds, workers) + 1e-6
    # Against the mean load and the longest run alone, list scheduling stays below twice that.
    assert makespan(seconds, workers) <= (2 - 1 / workers) * bound + 1e-6


def test_two_workers_share_the_night():
    settings = SETTINGS.model_copy(
        update={"training": SETTINGS.training.model_copy(update={"workers": 2})}
    )
    tasks = [Task(name) for name in "abc"]
    found = plan(tasks, {t.id: Dataset(t.id) for t in tasks}, settings, NOW, FREE)
    assert [run.starts_after_seconds for run in found.runs] == [0, 0, 100]
    assert found.estimated_seconds == 200


def test_a_run_is_cut_to_fit_but_not_to_nothing():
    short = one(dataset=Dataset(), deadline=NOW + timedelta(seconds=60))
    assert short.runs[0].steps == 60
    assert "cut from 100" in short.runs[0].reason
    none = one(dataset=Dataset(), deadline=NOW + timedelta(seconds=20))
    assert none.runs == ()
    assert "does not fit" in none.skipped[0][1]


def test_outside_the_night_nothing_is_trained():
    found = plan([Task("a")], {"a": Dataset()}, SETTINGS, NOW.replace(hour=12), FREE)
    assert found.runs == ()
    assert "starts at 22:00 UTC" in found.skipped[0][1]


def test_a_measured_coverage_counts():
    tasks = [Task("a", 1e6), Task("b", 1e6)]
    found = plan(
        tasks,
        {t.id: Dataset(t.id) for t in tasks},
        SETTINGS,
        NOW,
        Measured(overhead_seconds=0, coverage={"b": 0.9}),
    )
    assert [run.task_id for run in found.runs] == ["b", "a"]


@pytest.mark.parametrize(
    ("night", "now", "start", "end"),
    [
        (Night(), "2026-03-02T23:00", "2026-03-02T22:00", "2026-03-03T06:00"),
        (Night(), "2026-03-03T05:59", "2026-03-02T22:00", "2026-03-03T06:00"),
        (Night(), "2026-03-03T06:00", "2026-03-03T22:00", "2026-03-04T06:00"),
        (
            Night(start="01:00", end="05:00"),
            "2026-03-03T06:00",
            "2026-03-04T01:00",
            "2026-03-04T05:00",
        ),
        (
            Night(timezone="Europe/Berlin"),
            "2026-07-01T03:00",
            "2026-06-30T20:00",
            "2026-07-01T04:00",
        ),
    ],
)
def test_the_night_that_now_lies_in_or_the_next(night, now, start, end):
    def moment(text):
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    assert night_window(night, moment(now)) == (moment(start), moment(end))


@given(
    st.lists(st.tuples(st.floats(0, 1e7), st.integers(0, 3000)), max_size=12),
    st.integers(1, 4),
    st.integers(0, 4000),
)
def test_every_task_is_planned_or_explained_and_all_ends_in_time(shapes, workers, seconds):
    tasks = [Task(f"t{index}", tokens) for index, (tokens, _) in enumerate(shapes)]
    datasets = {f"t{index}": Dataset(str(index), rows) for index, (_, rows) in enumerate(shapes)}
    settings = SETTINGS.model_copy(
        update={"training": SETTINGS.training.model_copy(update={"workers": workers})}
    )
    found = plan(tasks, datasets, settings, NOW, FREE, deadline=NOW + timedelta(seconds=seconds))
    named = [run.task_id for run in found.runs] + [name for name, _ in found.skipped]
    assert sorted(named) == sorted(task.id for task in tasks)
    assert all(
        run.starts_after_seconds + run.estimated_seconds <= seconds + 1e-6 for run in found.runs
    )
    assert len(found.runs) <= settings.night.max_tasks


ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
)
CLOCKS = st.times().map(lambda time: time.replace(second=0, microsecond=0))


@given(st.sampled_from(ZONES), CLOCKS, CLOCKS)
def test_a_year_has_its_nights_whatever_the_clock_does(zone, start, end):
    """From each night to the next: on the clock, in order, none lost."""
    night = Night(timezone=zone, start=f"{start:%H:%M}", end=f"{end:%H:%M}")
    clock = ZoneInfo(zone)
    nominal = timedelta(
        minutes=((end.hour - start.hour) * 60 + end.minute - start.minute - 1) % 1440 + 1
    )
    now, starts = datetime(2026, 1, 1, tzinfo=UTC), []
    while now < datetime(2027, 1, 2, tzinfo=UTC):
        opens, closes = night_window(night, now)
        assert opens < closes and now < closes
        assert abs((closes - opens) - nominal) <= timedelta(hours=1)
        assert night_window(night, closes - timedelta(microseconds=1)) == (opens, closes)
        local = opens.astimezone(clock)
        if local.time() != start:
            # Only where the clock skipped the start, by at most an hour.
            assert local.utcoffset() != (opens + timedelta(hours=1)).astimezone(clock).utcoffset()
        starts.append(opens)
        now = closes
    for sooner, later in itertools.pairwise(starts):
        assert timedelta(hours=23) <= later - sooner <= timedelta(hours=25)


def test_a_night_inside_the_hour_that_the_clock_skips_is_as_long_as_any():
    night = Night(timezone="Europe/Berlin", start="02:30", end="03:00")
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)
    opens, closes = night_window(night, before)
    assert opens.isoformat() == "2026-03-29T00:30:00+00:00"
    assert closes - opens == timedelta(minutes=30)


def test_the_hour_that_the_clock_has_twice_is_part_of_the_night():
    night = Night(timezone="Europe/Berlin", start="22:00", end="06:00")
    opens, closes = night_window(night, datetime(2026, 10, 24, 22, tzinfo=UTC))
    assert closes - opens == timedelta(hours=9)
