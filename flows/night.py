"""The night: ingest, discover, plan, then train, judge and release per task. A table of contents."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.states import Crashed, State
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import Field

from evaluators.drift import TooFewRows
from evaluators.judge.asking import JudgeAway
from flows.artifacts import (
    Progress,
    TrainingBar,
    described,
    show_facts,
    show_plan,
    show_scorecard,
    show_scores,
)
from flows.drift_artifacts import show_looks, show_report
from flows.drift_reports import drift_report
from flows.holding import NIGHT, hold
from flows.judgement import Judgement
from flows.judging import judge
from flows.learning import (
    Trained,
    dataset_of,
    discover_tasks,
    ending_by_name,
    train,
    train_spec,
)
from flows.orchestrator import OrchestratorDown, OrchestratorRefused
from flows.planning import RunFact, plan_night, plan_rows, remember_night, told_of
from flows.releasing import Released, release
from flows.reporting import report_url
from flows.scorecards import keep_scorecard, scorecard_markdown
from flows.taking_in import ingest_logs
from flows.watching import watch_tasks
from flows.wiring import open_context
from infra.calls.record import utc_now
from infra.objects.store import ObjectStoreError
from trainers.base_model import prepare_base
from trainers.discover.discover import TaskSummary
from trainers.executors.open import open_executor
from trainers.executors.protocol import Executor, ExecutorAway, ExecutorLost
from trainers.failures import classify
from trainers.ingest.ingest import IngestReport
from trainers.ingest.taking import WorkersLost
from trainers.plan import Plan, PlannedRun

QUEUE_SECONDS = 6 * 3600.0
"""How long a night waits for another one, or for a retraining, before it gives up."""


class NightFailed(Exception):
    """Some task could not be brought to an end; the others were."""


def machines_there(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another try is worth its while: machines that are away were waited for already."""
    return not isinstance(state.data, ExecutorAway)


@task(
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=machines_there,
    cache_policy=NO_CACHE,
    task_run_name="ingest",
)
def ingest_task() -> IngestReport:
    with open_context() as context:
        return ingest_logs(context, get_run_logger().info)


@task(retries=1, cache_policy=NO_CACHE, task_run_name="discover")
def discover_task() -> list[TaskSummary]:
    with open_context() as context:
        return discover_tasks(context)


@task(cache_policy=NO_CACHE, task_run_name="plan")
def plan_task(
    tasks: list[TaskSummary], only: str | None, within_hours: float | None, drill: bool
) -> Plan:
    deadline = None if within_hours is None else utc_now() + timedelta(hours=within_hours)
    with open_context() as context:
        return plan_night(context, tasks, only=only, deadline=deadline, drill=drill)


@task(cache_policy=NO_CACHE, task_run_name="train {run.task_id}")
def train_task(run: PlannedRun, plan: Plan, executor: Executor, drill: bool) -> Trained:
    say = get_run_logger().info
    with ending_by_name(run.task_id), open_context() as context:
        base = prepare_base(context.settings.engine, say)
        dataset = dataset_of(context, run.dataset)
        spec = train_spec(context, base, dataset, run.steps, shuffle_answers=drill, say=say)
        bar = TrainingBar(run.task_id)
        return train(
            context, executor, spec, dataset, deadline=plan.deadline, say=say, show=bar.show
        )


def worth_again(_task: Any, _run: Any, state: Any) -> bool:
    """Not where the judge is away or its budget spent: it was asked again already, or waits for a night."""
    return not isinstance(state.data, JudgeAway)


@task(
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=worth_again,
    cache_policy=NO_CACHE,
    task_run_name="judge {trained.name}",
)
def judge_task(trained: Trained) -> Judgement:
    with (
        open_context() as context,
        # One engine, one judge: two would share its slots and spoil each other's latencies.
        hold(context.database, "judge", context.holder, wait_seconds=3600),
    ):
        dataset = dataset_of(context, trained.dataset_digest)
        judgement = judge(context, trained.folder, dataset, say=get_run_logger().info)
        keep_scorecard(context, judgement)
        page = scorecard_markdown(context, judgement)
    show_scorecard(trained.task_id, page)
    return judgement


@task(retries=2, cache_policy=NO_CACHE, task_run_name="release {trained.name}")
def release_task(
    trained: Trained, judgement: Judgement, gate_override: str | None, drill: bool
) -> Released:
    with open_context() as context:
        return release(context, trained, judgement, gate_override=gate_override, drill=drill)


@task(retries=1, cache_policy=NO_CACHE, task_run_name="drift {run.task_id}")
def drift_task(run: PlannedRun) -> str | None:
    with open_context() as context:
        try:
            made = drift_report(context, dataset_of(context, run.dataset))
        except TooFewRows as few:
            get_run_logger().info("no report of drift: %s", few)
            return None
        show_report(context, f"drift-{run.task_id}", made, "train against test")
        return report_url(context, made.html_key)


@task(retries=1, cache_policy=NO_CACHE, task_run_name="drift of the champions")
def looks_task(planned: list[str]) -> int:
    """The tasks that are not trained tonight, each in its time."""
    with open_context() as context:
        found = watch_tasks(context, skip=planned)
        show_looks(context, found, get_run_logger())
        context.deliver_messages()
        return len(found)


@described
@flow(
    name="night",
    flow_run_name="night: {reason}",
    task_runner=ThreadPoolTaskRunner(max_workers=8),  # type: ignore[arg-type]
    timeout_seconds=18 * 3600,
)
def night(
    reason: str = "schedule",
    only: str | None = None,
    by_hand: bool = False,
    drill: bool = False,
    gate_override: str | None = None,
    within_hours: Annotated[float, Field(gt=0, le=24)] = 4.0,
) -> dict[str, Any] | State[Any]:
    """Learn from the logs and bring in what is good enough.

    Args:
        reason: Why it runs; shown in the run's name.
        only: Train this task only (its id).
        by_hand: Ignore the configured night window and start now.
        drill: Train a deliberately bad adapter on shuffled answers, for a drill.
        gate_override: A reason to let adapters past a gate that did not pass.
        within_hours: How long training may take when it is started by hand.
    """
    try:
        # Prefect's form gives an empty text where nothing was written.
        return _learn(only or None, by_hand or drill, drill, gate_override or None, within_hours)
    except (ExecutorLost, WorkersLost) as error:
        # As a night whose own machine is lost: the rest is done by whoever takes it over.
        return Crashed(message=f"the machines that it needs are gone: {error}")


def _learn(
    only: str | None, now: bool, drill: bool, gate_override: str | None, within_hours: float
) -> dict[str, Any]:
    """The steps in order.

    Raises NightFailed; ExecutorLost or WorkersLost when it loses its machines, ExecutorAway where they
    are not there at all.
    """
    logger = get_run_logger()
    logger.info("waiting for its turn, if another night or retraining is under way")
    with (
        open_context() as context,
        hold(context.database, NIGHT, context.holder, wait_seconds=QUEUE_SECONDS),
    ):
        try:
            ingested = ingest_task()
            tasks = discover_task()
            plan = plan_task(tasks, only, within_hours if now else None, drill)
        except (ObjectStoreError, OSError) as error:
            raise NightFailed(f"nothing is trained ({classify(error).state}): {error}") from error
        logger.info(
            "ingested %d calls of %d objects, %d lines in quarantine",
            ingested.calls,
            ingested.objects,
            ingested.quarantined,
        )
        _tell_plan(plan)
        show_plan(plan, context.settings.training.workers)
        progress = Progress(len(plan.runs))
        drifts = [drift_task.submit(run) for run in plan.runs]
        # A retraining or a drill is of one task: the others have their own night.
        others = [] if only or drill else [looks_task.submit([run.task_id for run in plan.runs])]
        executor = open_executor(context.settings.training, logger.warning) if plan.runs else None
        try:
            trained = [_submit_training(run, plan, executor, drill) for run in plan.runs]
            judged = [judge_task.submit(future) for future in trained]
            released = [
                release_task.submit(adapter, judgement, gate_override, drill)  # type: ignore[call-overload]
                for adapter, judgement in zip(trained, judged, strict=True)
            ]
            for _ in as_completed([*trained, *judged, *released]):
                progress.step()
            outcomes = [_outcome(future) for future in released]
        finally:
            if executor is not None:
                executor.close()
        facts = [
            _fact(run, *futures)
            for run, *futures in zip(plan.runs, trained, judged, released, strict=True)
        ]
        show_facts(facts)
        forgot = "" if only or drill else remember_night(context, plan, facts)
        verdicts = [_outcome(future) for future in judged]
        reports = [_outcome(future) for future in drifts]
        for looked in others:
            _outcome(looked)
        show_scores(context, [verdict for verdict in verdicts if verdict is not None])
        good = [outcome for outcome in outcomes if outcome is not None]
        if any(outcome.rollout for outcome in good):
            _start_tending(context.orchestrator())
        # The night's end is no failure: what it cut off comes first tomorrow.
        told = told_of(facts, forgot)
        if told:
            if any(isinstance(_raised(future), ExecutorLost) for future in trained):
                raise ExecutorLost(told)
            raise NightFailed(told)
        return {
            "calls": ingested.calls,
            "tasks": [found.id for found in tasks],
            "released": [vars(outcome) for outcome in good],
            "reports": reports,
        }


def _submit_training(run: PlannedRun, plan: Plan, executor: Any, drill: bool) -> Any:
    # Quoted: Prefect looks into arguments for futures, and an executor is not to be looked into.
    return train_task.submit(run, plan, quote(executor), drill)  # type: ignore[call-overload]


def _outcome(future: Any) -> Any:
    """What a task returned, or None when it failed or could not start because another did."""
    future.wait()
    return future.result() if future.state.is_completed() else None


def _raised(future: Any) -> Any:
    """What a task ended with that did not complete."""
    return None if future.state.is_completed() else future.result(raise_on_failure=False)


def _start_tending(orchestrator: Any) -> None:
    """The rollout flow also runs by schedule; this only saves the wait."""
    try:
        orchestrator.start("rollout", {})
    except (OrchestratorDown, OrchestratorRefused) as error:
        get_run_logger().warning("the rollout flow was not started at once: %s", error)


def _fact(run: PlannedRun, training: Any, judging: Any, releasing: Any) -> RunFact:
    done: Trained | None = _outcome(training)
    state, why = "trained", ""
    for name, step in (("", training), ("judging: ", judging), ("releasing: ", releasing)):
        if not step.state.is_completed():
            # The first of them has the reason: of those after it Prefect says that they waited for it.
            error = _raised(step)
            state = str(getattr(error, "state", None) or classify(error).state)
            why = f"{name}{error}"[:500]
            break
    return RunFact(
        run.task_id,
        round(run.estimated_seconds, 1),
        None if done is None or done.seconds is None else round(done.seconds, 1),
        run.steps,
        state,
        why,
    )


def _tell_plan(plan: Plan) -> None:
    for row in plan_rows(plan):
        what = f"{row['steps']} steps" if row["steps"] else "not tonight"
        get_run_logger().info("plan: %s, %s; %s", row["task"], what, row["why"])
