"""The queue in front of the model's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.embedded.base_model import load_base_model
from serving.engines.embedded.batcher import (
    Batcher,
    BatcherClosed,
    GenerationFailed,
    Job,
    QueueFull,
    Step,
    choose,
)
from serving.engines.embedded.decoding import Row, RunningBatch
from serving.engines.embedded.mixed_lora import BASE_SLOT, AdapterBank

WAIT_SECONDS = 30
News = tuple[int, bool, Exception | None]


@given(st.lists(st.integers(1, 500), max_size=30), st.integers(0, 8), st.integers(1, 2000))
def test_choose_is_bounded_and_starves_nobody(lengths: list[int], free: int, budget: int) -> None:
    chosen = choose(lengths, free, budget)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= free
    if lengths and free:
        assert chosen[0] == 0, "the oldest always goes"
        padded = max(lengths[number] for number in chosen) * len(chosen)
        assert padded <= max(budget, lengths[0])


def test_choose_prefers_prompts_of_like_length() -> None:
    assert choose([10, 400, 11, 390, 9], free=3, budget=10_000) == [0, 2, 4]


class Harness:
    def __init__(self, base: Path, **options: object) -> None:
        loaded = load_base_model(base, "float32")
        self.batch = RunningBatch(
            loaded.model, AdapterBank(loaded.model), pad_token=0, decode=loaded.decode
        )
        self.steps: list[Step] = []
        limits = {"batch_size": 4, "max_waiting": 3, "window_seconds": 0.001} | options
        self.batcher = Batcher(self.batch, observe=self.steps.append, **limits)  # type: ignore[arg-type]

    def job(self, max_tokens: int = 4, **options: bool) -> tuple[Job, queue.Queue[News]]:
        news: queue.Queue[News] = queue.Queue()
        row = Row([5, 6, 7], BASE_SLOT, max_tokens)
        return Job(row, lambda *what: news.put(what), **options), news

    def hold(self) -> threading.Event:
        """Keep the model's thread busy until the event is set."""
        running, release = threading.Event(), threading.Event()

        def wait() -> None:
            running.set()
            release.wait(WAIT_SECONDS)

        self.batcher.call(wait)
        assert running.wait(WAIT_SECONDS)
        return release


@pytest.fixture
def harness(base: Path) -> Iterator[Harness]:
    harness = Harness(base)
    harness.batcher.start()
    yield harness
    harness.batcher.close()


def test_full_queue_refuses_at_once_and_recovers(harness: Harness) -> None:
    release = harness.hold()
    jobs = [harness.job() for _ in range(3)]
    for job, _ in jobs:
        harness.batcher.submit(job)
    with pytest.raises(QueueFull, match="3 requests"):
        harness.batcher.submit(harness.job()[0])
    release.set()
    for _, news in jobs:
        assert news.get(timeout=WAIT_SECONDS) == (4, True, None)
    assert [step.rows for step in harness.steps if step.kind == "prefill"] == [3], "one batch"


def test_cancelled_before_its_turn_never_runs(harness: Harness) -> None:
    release = harness.hold()
    job, news = harness.job()
    other, other_news = harness.job()
    harness.batcher.submit(job)
    harness.batcher.submit(other)
    job.cancelled = True
    release.set()
    assert news.get(timeout=WAIT_SECONDS) == (0, True, None)
    assert other_news.get(timeout=WAIT_SECONDS) == (4, True, None)
    assert job.row.tokens == []


def test_cancelled_on_its_way_stops_early(harness: Harness) -> None:
    job, news = harness.job(max_tokens=900, every_token=True)
    harness.batcher.submit(job)
    news.get(timeout=WAIT_SECONDS)
    job.cancelled = True
    while not (last := news.get(timeout=WAIT_SECONDS))[1]:
        pass
    assert last[0] < 900


def test_newcomers_join_a_running_batch(harness: Harness) -> None:
    long, long_news = harness.job(max_tokens=900, every_token=True)
    harness.batcher.submit(long)
    long_news.get(timeout=WAIT_SECONDS)
    short, short_news = harness.job(max_tokens=2)
    harness.batcher.submit(short)
    assert short_news.get(timeout=WAIT_SECONDS) == (2, True, None)
    assert not long.row.finished
    long.cancelled = True


def test_a_failing_pass_fails_its_rows_and_the_engine_goes_on(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness.batch, "_model", None)
        job, news = harness.job()
        harness.batcher.submit(job)
        _, done, error = news.get(timeout=WAIT_SECONDS)
        assert done
        assert isinstance(error, GenerationFailed)
    job, news = harness.job()
    harness.batcher.submit(job)
    assert news.get(timeout=WAIT_SECONDS) == (4, True, None)


def test_closing_tells_everyone(base: Path) -> None:
    harness = Harness(base)
    harness.batcher.start()
    running, running_news = harness.job(max_tokens=100_000, every_token=True)
    harness.batcher.submit(running)
    running_news.get(timeout=WAIT_SECONDS)
    release = harness.hold()
    waiting, waiting_news = harness.job()
    harness.batcher.submit(waiting)
    closer = threading.Thread(target=harness.batcher.close)
    closer.start()
    while harness.batcher.alive:
        pass
    release.set()
    closer.join(WAIT_SECONDS)
    for news in (running_news, waiting_news):
        while not (last := news.get(timeout=WAIT_SECONDS))[1]:
            pass
        assert isinstance(last[2], BatcherClosed)
    with pytest.raises(BatcherClosed):
        harness.batcher.submit(harness.job()[0])
    with pytest.raises(BatcherClosed):
        harness.batcher.call(lambda: None)


def test_an_error_in_a_call_goes_to_its_caller(harness: Harness) -> None:
    with pytest.raises(ZeroDivisionError):
        harness.batcher.call(lambda: 1 // 0).result(WAIT_SECONDS)
    assert harness.batcher.call(lambda: 7).result(WAIT_SECONDS) == 7
