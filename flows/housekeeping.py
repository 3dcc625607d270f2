"""Clear away what is past its time: adapters, data sets, logs, run folders. No Prefect here.

What may go is decided elsewhere, by pure functions with a reason for each thing; this asks for all of
them in turn. Logs and run folders are what a night reads while it runs, so they go only between two
nights, in short turns that a night which wants to begin does not have to wait for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from flows.holding import NIGHT, Busy, hold
from flows.kept_evidence import expire
from flows.wiring import Context
from infra.calls.record import utc_now
from serving.registry.retention.collecting import Done, Outcome, collect
from serving.registry.retention.forgetting import forget_ordered
from trainers.ingest.expiry import expire_logs, first_kept_day
from trainers.old_runs import clear_run, find_runs
from trainers.run_storage import RunStorage, stored_runs

TURN_SECONDS = 15.0
"""The night's lease is held no longer at a time; a night waits longer than that for it."""
PAUSE_SECONDS = 3.0
MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class Housekeeping:
    """What became of each thing, in the order that it was looked at."""

    done: tuple[Done, ...]
    dry_run: bool

    def counts(self) -> dict[str, int]:
        """``adapter removed`` and the like, to how many."""
        counts: dict[str, int] = {}
        for entry in self.done:
            name = f"{entry.kind} {entry.outcome}"
            counts[name] = counts.get(name, 0) + 1
        return counts


def housekeep(
    context: Context, *, dry_run: bool = False, now: datetime | None = None
) -> Housekeeping:
    """Take everything that may go one step further; safe to kill, to repeat and to run twice at once.

    Raises ObjectStoreError: the store cannot be listed or changed; what was done is done.
    """
    now = now or utc_now()
    policy = context.settings.retention
    done = collect(context.database, context.store, policy, now, dry_run=dry_run)
    done += forget_ordered(context.database, context.store, now, dry_run=dry_run)
    done += _runs(context, now, dry_run)
    done += _stored_runs(context, now, dry_run)
    done += _logs(context, now, dry_run)
    done += _evidence(context, now, dry_run)
    return Housekeeping(tuple(done), dry_run)


def _runs(context: Context, now: datetime, dry_run: bool) -> list[Done]:
    folder, keep = context.settings.training.runs, context.settings.retention.run_seconds
    moment = now.timestamp()
    found = find_runs(folder, moment, keep)

    def told(outcome: Outcome) -> list[Done]:
        return [
            Done("run", str(run.path), "kept" if run.keep else outcome, run.why) for run in found
        ]

    if dry_run or all(run.keep for run in found):
        return told("would go")
    try:
        with hold(context.database, NIGHT, context.holder):
            done = []
            for run in found:
                outcome: Outcome = "kept"
                if not run.keep:
                    outcome = "removed" if clear_run(run.path, moment, keep) else "not now"
                done.append(Done("run", str(run.path), outcome, run.why))
            return done
    except Busy:
        return told("not now")


def _stored_runs(context: Context, now: datetime, dry_run: bool) -> list[Done]:
    """Checkpoints in object storage that no run has written to for long."""
    keep = context.settings.retention.run_seconds
    found = stored_runs(context.store)
    # One that says no time is being written for the first time, or was left so: it stays.
    idle = {
        run_id: now.timestamp() - touched if touched else 0.0 for run_id, touched in found.items()
    }

    def told(outcome: Outcome) -> list[Done]:
        return [
            Done(
                "run",
                f"checkpoints/{run_id}",
                "kept" if seconds <= keep else outcome,
                f"untouched for {seconds / 3600:.0f} hours",
            )
            for run_id, seconds in idle.items()
        ]

    if dry_run or all(seconds <= keep for seconds in idle.values()):
        return told("would go")
    try:
        with hold(context.database, NIGHT, context.holder):
            for run_id, seconds in idle.items():
                if seconds > keep:
                    RunStorage(context.store, run_id).clear()
            return told("removed")
    except Busy:
        return told("not now")


def _evidence(context: Context, now: datetime, dry_run: bool) -> list[Done]:
    """Of rollouts that ended long ago. What is open is never touched."""
    seconds = context.settings.retention.evidence_seconds
    if not seconds:
        return []
    done = []
    for rollout in context.registry.rollouts():
        if rollout.open or (now - rollout.entered).total_seconds() <= seconds:
            continue
        count = expire(context.store, rollout.id, dry_run=dry_run)
        if count:
            why = f"{count} objects of a rollout that ended {rollout.entered:%Y-%m-%d}"
            done.append(Done("evidence", rollout.id, "would go" if dry_run else "removed", why))
    return done


def _logs(context: Context, now: datetime, dry_run: bool) -> list[Done]:
    since = [rollout.created for rollout in context.registry.rollouts("open")]
    seconds = context.settings.retention.log_seconds
    first_kept, why = first_kept_day(now, seconds, since)
    place = f"log objects before {first_kept}" if first_kept else "log objects"
    # A look first: where nothing is to go, no night has to wait for its lease.
    turn = expire_logs(context.store, context.database, first_kept, why, dry_run=True)
    removed, ends = turn.removed, time.monotonic() + MAX_SECONDS
    if not dry_run and removed:
        removed = 0
        while True:
            try:
                with hold(context.database, NIGHT, context.holder):
                    turn = expire_logs(
                        context.store,
                        context.database,
                        first_kept,
                        why,
                        now=now,
                        within_seconds=TURN_SECONDS,
                    )
            except Busy:
                told = "a night is running; the next time will do"
                return [Done("logs", place, "not now", told)]
            removed += turn.removed
            if turn.done or time.monotonic() > ends:
                break
            time.sleep(PAUSE_SECONDS)
    outcome: Outcome = "would go" if dry_run else "removed"
    done = [Done("logs", place, outcome if removed else "kept", f"{removed} of them: {why}")]
    for reason, count in turn.kept.items():
        done.append(Done("logs", place, "kept", f"{count} of them: {reason}"))
    return done
