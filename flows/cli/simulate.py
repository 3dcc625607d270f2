"""``nightschool rollouts simulate``: choose a rollout policy before trusting it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flows.cli.common import FAILED, JSON_OPTION, USAGE, fail, failing_clearly, settings_of, show

SHARE = click.FloatRange(0, 1)
POSITIVE = click.FloatRange(0, min_open=True)
EPILOG = """\b
Examples:
  nightschool rollouts simulate --base-rate 0.9 --sessions-per-hour 40
  nightschool rollouts simulate --margin 0.05 --rollback-margin 0.01 --harm 0 --harm 0.1
  nightschool rollouts simulate --label-delay-hours 2 --maturity-hours 8 --picture trial.html
What is not given comes from the settings. Rates and margins are fractions of one."""


@click.command(epilog=EPILOG)
@click.option("--sessions-per-hour", type=POSITIVE, default=100.0, show_default=True)
@click.option(
    "--champion",
    type=click.Choice(["adapter", "teacher"]),
    default="adapter",
    show_default=True,
    help="Whom the canary stands beside; the teacher is always right.",
)
@click.option(
    "--base-rate", type=SHARE, default=0.85, show_default=True, help="An adapter as champion right."
)
@click.option(
    "--harm",
    "harms",
    type=click.FloatRange(-1, 1),
    multiple=True,
    help="How much worse the canary is; may be given often. Default: 0, the margins, 0.1, 0.2.",
)
@click.option("--margin", type=SHARE, help="Worse by this must not be promoted.")
@click.option("--rollback-margin", type=SHARE, help="Worse by more is rolled back.")
@click.option("--alpha-bad", type=SHARE, help="Level of rollback, all metrics together.")
@click.option("--alpha-good", type=SHARE, help="Level of promotion.")
@click.option("--step", "steps", type=SHARE, multiple=True, help="Canary share; once per step.")
@click.option(
    "--step-sessions", type=click.IntRange(1), help="Canary sessions before the next step."
)
@click.option("--max-sessions", type=click.IntRange(1, 20_000), help="Then inconclusive.")
@click.option(
    "--label-delay-hours", type=click.FloatRange(0), default=0.0, help="Mean, exponential."
)
@click.option(
    "--late",
    type=click.Choice(["all", "right", "wrong"]),
    default="all",
    show_default=True,
    help="Which answers' labels come late.",
)
@click.option("--maturity-hours", type=click.FloatRange(0), help="Longest wait for a label.")
@click.option(
    "--missing", type=SHARE, default=0.0, show_default=True, help="Labels that never come."
)
@click.option(
    "--judge-share",
    type=SHARE,
    help="Of the canary's answers unlike the teacher's: those a judge is asked about meanwhile.",
)
@click.option(
    "--judge-forgives",
    type=SHARE,
    default=0.2,
    show_default=True,
    help="Of those: wrong ones that it calls as good.",
)
@click.option("--runs", type=click.IntRange(1, 1_000_000), default=2000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True)
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write."
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def simulate(
    ctx: click.Context, /, as_json: bool, picture: Path | None, runs: int, seed: int, **given: Any
) -> None:
    """Try a rollout policy on simulated traffic with the decision code that production runs."""
    from evaluators.policy_trial import PictureUnavailable, draw, try_policy
    from evaluators.reach import reachable

    try:
        traffic, terms, refused = _traffic_and_terms(ctx, given)
        most = traffic.champion  # then it is never right
        usual = (0.0, terms.rollback_margin, terms.margin, 0.1, 0.2)
        harms = given["harms"] or tuple(harm for harm in usual if harm <= most)
        harms = tuple(sorted(set(harms)))
        for harm in harms:
            replace(traffic, harm=harm)  # what cannot be is refused before the first is simulated
        with click.progressbar(
            length=runs * len(harms), label="simulating", file=sys.stderr
        ) as bar:
            trial = try_policy(
                traffic,
                terms,
                harms,
                runs=runs,
                seed=seed,
                progress=lambda done: bar.update(done - bar.pos),
            )
        reach = reachable(terms, traffic, harm=min(most, max(0.1, 2 * terms.rollback_margin)))
    except ValueError as error:
        fail(str(error), USAGE)
    rows = [row.to_dict() for row in trial.rows()]
    if as_json:
        body = {
            "traffic": {**vars(traffic)},
            "terms": {**vars(terms)},
            "runs": runs,
            "seed": seed,
            "rows": rows,
            "refused": refused,
            "unlikely": list(reach.reasons),
        }
        click.echo(json.dumps(body, indent=1))
    else:
        show(rows, False, "")
        if refused is not None:
            click.echo(f"a rollout would be refused: {refused}")
        for reason in reach.reasons:
            click.echo(f"with this traffic: {reason}")
    if picture is not None:
        try:
            draw(trial, picture)
        except (PictureUnavailable, OSError) as error:
            fail(str(error), FAILED)
        click.echo(f"picture: {picture}", err=True)


def _traffic_and_terms(ctx: click.Context, given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """With the policy that a rollout would open with: from the options, and from the settings where
    none is given. Raises ValueError."""
    from evaluators.simulation import Terms, Traffic
    from flows.observing import evidence_policy
    from serving.rollout.policy import RolloutPolicy

    by_teacher = given["champion"] == "teacher"
    changes = {name: given[name] for name in _OF_THE_POLICY if given[name] is not None}
    if by_teacher and "rollback_margin" in changes:
        changes["teacher_rollback_margin"] = changes.pop("rollback_margin")
    if given["steps"]:
        changes["steps"] = given["steps"]
    if given["maturity_hours"] is not None:
        changes["maturity_seconds"] = 3600 * given["maturity_hours"]
    settings = settings_of(ctx)
    opened = replace(RolloutPolicy.from_settings(settings.rollout), **changes)
    judged = evidence_policy(opened)
    if judged.latency_objective_seconds is None and opened.shadow_sessions:
        # Measured in the shadow: what it will be changes nothing here but that it is judged.
        judged = replace(judged, latency_objective_seconds=opened.latency_floor_seconds)
    hours = opened.maturity_seconds / 3600
    delay = given["label_delay_hours"]
    too_late = math.exp(-hours / delay) if delay else 0.0
    lost = {
        kind: 1 - (1 - given["missing"]) * (1 - (too_late if given["late"] in ("all", kind) else 0))
        for kind in ("right", "wrong")
    }
    asked = given["judge_share"]
    if asked is None:
        asked = settings.judge.rollout_share if settings.judge.model is not None else 0.0
    traffic = Traffic(
        champion=1.0 if by_teacher else given["base_rate"],
        missing_right=lost["right"],
        missing_wrong=lost["wrong"],
        forgiven=asked * given["judge_forgives"],
        sessions_per_hour=given["sessions_per_hour"],
        maturity_hours=hours,
    )
    terms = Terms(
        margin=judged.margin,
        rollback_margin=judged.tolerated(by_teacher),
        alpha_bad=judged.quality_level(by_teacher),
        alpha_good=judged.alpha_good,
        steps=opened.steps,
        step_sessions=opened.step_sessions,
        max_sessions=opened.max_sessions,
        champion_is_teacher=by_teacher,
    )
    return traffic, terms, opened.unreachable()


_OF_THE_POLICY = (
    "margin",
    "rollback_margin",
    "alpha_bad",
    "alpha_good",
    "step_sessions",
    "max_sessions",
)
