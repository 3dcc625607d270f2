"""What a person who watches a training run in Prefect is told."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.artifacts import TrainingBar
from flows.following import LINES_IN_ALL, News, follow
from tests.prefect_server import PrefectServer
from tests.tiny_model import make_tiny_model
from tests.tiny_run import tiny_run
from trainers.executors.local import LocalExecutor
from trainers.executors.on_ray import RayRun
from trainers.executors.protocol import RunHandle, TrainJob
from trainers.run_folder import Progress, StoragePlace, append_line
from trainers.run_report import Report, report_of
from trainers.run_storage import storage_of


def watched(server: PrefectServer, handle: RunHandle, task_id: str) -> tuple[list[str], list[str]]:
    """Lines in the flow run's log, and descriptions of its progress bar, as the server has them."""

    @flow(name="watched")
    def watch() -> None:
        say = get_run_logger().info
        follow(handle, "training lights", say, show=TrainingBar(task_id).show, poll_seconds=0.2)

    async def read(run_id: object) -> tuple[list[str], list[str]]:
        chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        async with get_client() as client:
            lines: list[str] = []
            for _ in range(100):  # the log is sent in the background
                lines = [log.message for log in await client.read_logs(chosen, limit=200)]
                if any("step 8 of 8" in line for line in lines):
                    break
                await asyncio.sleep(0.2)
            bars = [
                a
                for a in await client.read_artifacts(limit=200)
                if a.key == "training-lights-local"
            ]
            return lines, [str(bar.description) for bar in bars if bar.data == 100.0]

    with temporary_settings({PREFECT_API_URL: server.variables["PREFECT_API_URL"]}):
        state = watch(return_state=True)
        assert state.is_completed()
        return asyncio.run(read(state.state_details.flow_run_id))


def test_a_local_runs_steps_are_in_prefect(
    prefect_server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "loud")
    run = tiny_run(tmp_path / "run", make_tiny_model(tmp_path / "base"), steps=8)
    run.note("half as many examples at once")
    run.log_file.write_bytes(b"a library warns\nLoading: 10%|#  |\nno line\xff yet")
    executor = LocalExecutor(1)
    try:
        lines, bars = watched(prefect_server, executor.submit(TrainJob(run.path)), "lights-local")
    finally:
        executor.close()
    (last,) = [line for line in lines if "step 8 of 8" in line]
    assert "loss" in last and "tokens a second" in last
    assert bars == [f"training lights-local: {last.removeprefix('training lights: ')}"]
    assert "training lights: half as many examples at once" in lines
    assert "training lights: a library warns" not in lines, "printed before it was submitted"
    assert [line for line in lines if "Invalid -W option" in line]
    assert not [line for line in lines if "%|" in line]


def report(step: int = 0, log: str = "", **more: object) -> Report:
    made = Report(Progress(step, 1000, loss=1.0, seconds_per_step=1.0), log=log, log_bytes=len(log))
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_long_night_is_told_in_a_bounded_number_of_lines() -> None:
    news, said, printed = News("n"), 0, ""
    for second in range(0, 8 * 3600, 10):
        printed += f"line {second}\n" * 3
        lines, _ = news.of(report(second, printed[-8192:], log_bytes=len(printed)), float(second))
        said += len(lines)
    assert LINES_IN_ALL < said < LINES_IN_ALL + 200


def test_nothing_is_said_twice_and_what_is_left_out_is_counted() -> None:
    news = News("n")
    note = ((1.0, "out of memory"),)
    assert news.of(report(4, "a\nb", notes=note), 0)[0] == [
        "n: out of memory",
        "n: a",
        "n: step 4 of 1000, loss 1.000, about 996 s left",
    ]
    assert news.of(report(4, "a\nb", notes=note), 99) == ([], False)
    lines, progressed = news.of(report(5, "a\nb\n" + "c\n" * 30, processes=2), 100)
    assert progressed
    assert lines[0] == "n: process 2 goes on, since the one before was lost"
    assert lines[1:3] == ["n: (12 lines are only in its log)", "n: c"]
    assert len(lines) == 22


def test_what_an_earlier_submission_noted_and_printed_is_no_news(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", make_tiny_model(tmp_path / "base"))
    old = b"printed last night\n"
    run.log_file.write_bytes(old)
    run.note("lost last night")
    run.ask(run.request().model_copy(update={"submitted": time.time()}))
    run.renew()
    news = News("n")
    assert news.of(report_of(run), 0) == ([], False)
    append_line(run.attempts_file, {"attempt": 1, "pid": 1, "time": 1, "log_bytes": len(old)})
    run.log_file.write_bytes(old + b"printed now\n")
    run.note("lost now")
    for told in (news, News("n")):
        assert told.of(report_of(run), 0)[0] == ["n: lost now", "n: printed now"]


def test_a_far_workers_report_of_an_earlier_submission_is_not_told(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", make_tiny_model(tmp_path / "base"), request={"submitted": 2.0})
    job = TrainJob(run.path, storage=StoragePlace(url=str(tmp_path / "far")), run_id="lights")
    storage = storage_of(job.storage, job.run_id)
    assert storage is not None
    for submitted, step in ((1.0, 0), (2.0, 7)):
        storage.push_report(report(7, submitted=submitted).to_json())
        assert RayRun(job, None, None).progress().step == step
