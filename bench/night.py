"""How well a night fills its workers: 8 tasks on 2, and with one killed once. Prints one JSON object.

Eight training runs (three with ``--quick``) of very different lengths are planned as a night plans
them (longest first) and carried out by the executor. ``makespan_seconds`` is from the first
submission to the last end;
``lower_bound_seconds`` is what no layout of the runs' own measured seconds could beat on as many
workers; ``of_bound`` is their quotient, which is to stay below 1.15. The second row kills (-9) the
training process of the longest run in its middle: what that costs (``lost_seconds``, from the last
kept step to the first new one) is in the makespan and not in the bound.

A run counts from the start of its process to its end, so the quotient is about waiting and layout; the
planned makespan beside it comes from a seconds-per-step measured on a first run here.

    python bench/night.py [--quick] [--json FILE] [--executor local]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.random_adapters import small_base
from bench.train import examples
from infra.artifacts.base import fingerprint
from infra.prompting.template import PRUNED
from infra.settings.learning import Training
from trainers.executors.open import open_executor
from trainers.executors.protocol import RunHandle, TrainJob
from trainers.packing import launch_order, lower_bound, makespan
from trainers.run_folder import RunFolder, RunRequest
from trainers.spec import LoraSpec, TrainSpec

WORKERS = 2
STEPS = (30, 45, 60, 75, 100, 130, 165, 210)
QUICK = (4, 6, 12)
GOAL = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--quick", action="store_true", help="runs of a few steps")
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    options = parser.parse_args()
    steps = QUICK if options.quick else STEPS
    result: dict[str, Any] = {"tasks": len(steps), "workers": WORKERS, "goal": GOAL}
    result["executor"] = options.executor
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = small_base(folder / "base")
        settings = Training(executor=options.executor, workers=WORKERS)
        executor = open_executor(settings)
        try:
            first = make_run(folder / "first", base, 8, 0)
            executor.submit(TrainJob(first.path)).wait()
            done = first.result()
            assert done is not None
            started = float(first.attempts()[-1]["time"])
            overhead = done.finished - started - done.seconds
            per_step = done.seconds / done.steps
            result["undisturbed"] = night(executor, folder / "a", base, steps, per_step, overhead)
            result["worker_killed_once"] = night(
                executor, folder / "b", base, steps, per_step, overhead, kill=True
            )
        finally:
            executor.close()
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def make_run(path: Path, base: Path, steps: int, seed: int) -> RunFolder:
    spec = TrainSpec(
        task_id="bench",
        base_model="bench",
        base_digest=fingerprint(base),
        dataset_digest="d" * 64,
        lora=LoraSpec(rank=4, alpha=8),
        format=PRUNED.to_dict(),
        batch_size=4,
        steps=steps,
        checkpoint_steps=max(2, steps // 8),
        seed=seed,
    )
    rows = examples()[:64]
    return RunFolder.create(path, spec, RunRequest(base_folder=base), rows, rows[:8])


def night(
    executor: Any,
    folder: Path,
    base: Path,
    steps: tuple[int, ...],
    per_step: float,
    overhead: float,
    *,
    kill: bool = False,
) -> dict[str, Any]:
    """One night of these runs, longest first."""
    planned = [overhead + count * per_step for count in steps]
    runs = [make_run(folder / str(i), base, count, i) for i, count in enumerate(steps)]
    order = launch_order(planned)
    began = time.time()
    handles: dict[int, RunHandle] = {i: executor.submit(TrainJob(runs[i].path)) for i in order}
    if kill:
        threading.Thread(target=kill_in_the_middle, args=(runs[order[0]],), daemon=True).start()
    outcomes = [handles[i].wait() for i in order]
    ended = time.time()
    if any(outcome.state != "done" for outcome in outcomes):
        raise SystemExit(f"a run did not end well: {outcomes}")
    lost = [lost_seconds(run) for run in runs]
    took = [finished(run) - float(run.attempts()[0]["time"]) for run in runs]
    seconds = [length - waste for length, waste in zip(took, lost, strict=True)]
    bound = lower_bound(seconds, WORKERS)
    return {
        "run_seconds": [round(value, 1) for value in seconds],
        "lost_seconds": round(sum(lost), 1),
        "attempts": sum(outcome.attempts for outcome in outcomes),
        "planned_makespan_seconds": round(makespan(planned, WORKERS), 1),
        "makespan_seconds": round(ended - began, 1),
        "lower_bound_seconds": round(bound, 1),
        "of_bound": round((ended - began) / bound, 3),
    }


def lost_seconds(run: RunFolder) -> float:
    """What a killed process cost: from the last step that was kept to the first one after it again."""
    lost, seen = 0.0, dict[int, float]()
    events = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    steps = [(event["step"], event["time"]) for event in events if event.get("tokens")]
    for before, (step, at) in zip([(0, 0.0), *steps], steps, strict=False):
        if step <= before[0]:
            lost += at - seen.get(step - 1, at)
        seen[step] = at
    return lost


def finished(run: RunFolder) -> float:
    result = run.result()
    assert result is not None
    return result.finished


def kill_in_the_middle(run: RunFolder) -> None:
    """Kill the run's process once it is half way."""
    total = run.spec().steps
    while run.result() is None:
        attempts = run.attempts()
        if attempts and run.progress().step >= total // 2:
            os.kill(int(attempts[-1]["pid"]), signal.SIGKILL)
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main()
