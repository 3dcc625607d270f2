"""What the embedded base model learns of real tool calls: its share of the teacher, over the examples.

The calls are the demo's smart home (Home Assistant's own grammar, twelve tools); the teacher's answer is the
recorded one, which the grammar says is right, so the teacher scores 1. One run of the ``peft`` backend
pauses at several steps; at each the adapter answers held-out calls (sessions of another seed, none of
whose prompts was trained on) through the embedded engine, as the judge asks and scores them: the tool's
name and every argument. The base alone is asked with the whole prompt, tools included.

Each example is seen once, so steps times batch size is the number of examples that a point has learned
from; its learning rate, though, is that of a run on its way to the last point. ``cpu_minutes`` is
processor time of the training processes up to the point, their start included, with one thread; on two
idle cores with two threads it is about half as many minutes. What was measured is kept in ``--folder``,
and a killed bench goes on from there.

    python bench/learning.py [--quick] [--json FILE] [--picture FILE.svg] [--folder var/learning]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.random_adapters import packaged_base, small_base
from bench.support.real_answers import BATCH, Asked, answers, traffic, train, unseen
from evaluators.intervals import clopper_pearson
from infra.artifacts.base import fingerprint
from infra.files import write_atomically
from trainers.base_model import BaseModel
from trainers.curve import Line, draw_lines

TRAIN_SEED, ASKED_SEED = 21, 22
GOAL = 0.95
POINTS = (40, 120, 240)
"""Optimizer steps at which the adapter is asked."""
QUICK = (4, 8)
ROWS, LAST_ROWS, BASE_ROWS = 120, 400, 24
"""Held-out calls asked at each point, at the last one, and of the base alone, whose prompts are long."""
QUICK_ROWS = 8
VALIDATION = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument("--picture", type=Path, help="write the learning curve here, as SVG")
    parser.add_argument("--folder", type=Path, help="what was measured so far")
    parser.add_argument("--quick", action="store_true", help="a random small model, a few steps")
    options = parser.parse_args()
    folder = options.folder or Path("var/learning-quick" if options.quick else "var/learning")
    folder.mkdir(parents=True, exist_ok=True)
    points, rows = (QUICK, QUICK_ROWS) if options.quick else (POINTS, LAST_ROWS)
    base = roomy(small_base(folder / "base")) if options.quick else packaged_base()
    learned, asked = data(points[-1] * BATCH, rows)
    measured: list[dict[str, Any]] = []
    for step in (0, *points):
        make = partial(point, folder, base, step, points[-1], learned, asked)
        measured.append(kept(folder / f"step-{step:05d}.json", make))
        print(f"step {step}: {summary(measured[-1])}", file=sys.stderr)
    result = report(base.name, measured)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    if options.picture:
        options.picture.write_text(picture(result))


def roomy(base: Path) -> Path:
    """The small model with room for the whole prompt of twelve tools; its positions are computed."""
    config = json.loads((base / "config.json").read_text())
    write_atomically(base / "config.json", json.dumps({**config, "max_position_embeddings": 4096}))
    return base


def data(examples: int, rows: int) -> tuple[list[Asked], list[Asked]]:
    """Calls to learn from, with some to validate on, and held-out ones with prompts never seen."""
    learned = traffic(TRAIN_SEED, examples + VALIDATION)
    return learned, unseen(traffic(ASKED_SEED, 8 * rows), learned)[:rows]


def point(
    folder: Path, base: Path, step: int, steps: int, learned: Sequence[Asked], asked: list[Asked]
) -> dict[str, Any]:
    """Train up to ``step`` (0: the base alone) and ask for the held-out calls."""
    from tests.serving.engines.building import start_engine

    adapter: Path | None = None
    done: dict[str, Any] = {"training_seconds": 0.0, "validation_loss": None}
    if step:
        make = partial(trained, folder, base, step, steps, learned)
        found = kept(folder / f"step-{step:05d}.trained.json", make)
        adapter, done = Path(found["adapter"]), found["done"]
    rows = asked if step == steps else asked[: ROWS if step else BASE_ROWS]
    before = child_seconds()
    with start_engine(
        base, "--batch-size", "32", "--max-waiting", "64", "--threads", "1"
    ) as engine:
        said = asyncio.run(answers(engine.url, adapter, rows))
    return {
        "step": step,
        "examples": step * BATCH,
        **done,
        "asking_seconds": round(child_seconds() - before, 1),
        "rows": len(said),
        "exact": mean(float(answer["correct"] == 1) for answer in said),
        "name": mean(right_name(answer["stages"]) for answer in said),
        "checks": mean(float(answer["checks"]) for answer in said),
        "wrong": [answer["id"] for answer in said if answer["correct"] < 1],
    }


def kept(part: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds; made if it is not there, and said if it is: its name tells only the step."""
    if part.exists():
        print(f"{part} is kept from before", file=sys.stderr)
    else:
        write_atomically(part, json.dumps(make(), indent=1))
    found: dict[str, Any] = json.loads(part.read_text())
    return found


def trained(
    folder: Path, base: Path, step: int, steps: int, learned: Sequence[Asked]
) -> dict[str, Any]:
    """The adapter of a run that is paused at ``step``, and what it took from the point before."""
    before = child_seconds()
    adapter, loss = train(
        folder / "run",
        BaseModel(base.absolute(), fingerprint(base), base.name),
        steps,
        learned[:-VALIDATION],
        learned[-VALIDATION:],
        pause_step=step if step < steps else None,
    )
    spent = round(child_seconds() - before, 1)
    done = {"training_seconds": spent, "validation_loss": loss}
    return {"adapter": str(adapter), "done": done}


def report(base: str, measured: list[dict[str, Any]]) -> dict[str, Any]:
    last = measured[-1]
    right = round(last["exact"] * last["rows"])
    spent = 0.0
    curve = []
    for found in measured:
        spent += found["training_seconds"]
        kept = {name: value for name, value in found.items() if name != "wrong"}
        curve.append({**kept, "cpu_minutes": round(spent / 60, 1)})
    return {
        "base": base,
        "base_exact": measured[0]["exact"],
        "exact": last["exact"],
        "exact_interval": [round(end, 3) for end in clopper_pearson(right, last["rows"], 0.05)],
        "teacher_exact": 1.0,
        "of_teacher": last["exact"],
        "goal": GOAL,
        "cpu_minutes": round(spent / 60, 1),
        "curve": curve,
    }


def picture(result: dict[str, Any]) -> str:
    def line(name: str, colour: str) -> Line:
        points = [(found["examples"], found[name]) for found in result["curve"]]
        return Line(points, colour, 2, dotted=True)

    title = (
        f"{result['base']}, held-out calls: name and all arguments right blue, name right grey; "
        f"teacher 1"
    )
    lines = (line("name", "#999999"), line("exact", "#1f5fbf"))
    return draw_lines(lines, title, axis="examples", top=1.0)


def summary(found: dict[str, Any]) -> str:
    return (
        f"exact {found['exact']:.3f}, name {found['name']:.3f} of {found['rows']}; "
        f"{found['training_seconds']:.0f} s of training, {found['asking_seconds']:.0f} s of asking"
    )


def right_name(stages: dict[str, float]) -> float:
    """1 where every tool's name is right, or none was to be called and none was."""
    return float(stages.get("name", stages.get("called", 0.0)) == 1)


def child_seconds() -> float:
    """Processor seconds of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def mean(values: Any) -> float:
    found = list(values)
    return round(sum(found) / len(found), 4)


if __name__ == "__main__":
    main()
