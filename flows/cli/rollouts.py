"""``nightschool rollouts``: look at rollouts, give them orders, and have their verdicts taken again."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from flows.cli.common import (
    AS_OPTION,
    FAILED,
    JSON_OPTION,
    USAGE,
    WHY_OPTION,
    context_of,
    fail,
    failing_clearly,
    show,
)

if TYPE_CHECKING:
    from flows.replaying import Replayed
    from flows.wiring import Context
    from serving.registry.records import Rollout, Route
    from serving.rollout.machine import Order

ELSEWHERE: dict[str, str] = {"simulate": "flows.cli.simulate:simulate"}
"""Subcommands of other modules, by name: ``module:command``; loaded when called."""


class RolloutsGroup(click.Group):
    """Its own subcommands, and those of ``ELSEWHERE`` without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = ELSEWHERE[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=RolloutsGroup,
    invoke_without_command=True,
    epilog="\b\nExamples:\n  nightschool rollouts\n  nightschool rollouts --json\n"
    "  nightschool rollouts watch\n  nightschool rollouts replay ID",
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def rollouts(ctx: click.Context, as_json: bool) -> None:
    """The rollouts, newest last, with their verdicts and reasons; and what to do with one.

    A task's name stands for its open rollout, else for its newest.
    """
    if ctx.invoked_subcommand is not None:
        return
    with context_of(ctx) as context:
        rows = [
            {
                "id": rollout.id,
                "adapter": rollout.adapter,
                "state": _state(rollout),
                "step": rollout.step,
                "sessions": rollout.sessions,
                "since": rollout.entered,
                "reason": rollout.reason
                if as_json
                else shorten(rollout.reason, 90, placeholder="…"),
            }
            for rollout in context.registry.rollouts()
        ]
    show(rows, as_json, "No rollouts yet: an adapter that passes the gate opens one.")


@rollouts.command(
    epilog="\b\nExamples:\n  nightschool rollouts watch\n  nightschool rollouts watch --once --json"
)
@click.option("--once", is_flag=True, help="Show them once, and end.")
@click.option(
    "--every",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def watch(ctx: click.Context, once: bool, every: float, as_json: bool) -> None:
    """The open rollouts, live; Ctrl-C ends it."""
    from infra.calls.record import utc_now

    with contextlib.suppress(KeyboardInterrupt), context_of(ctx) as context:
        while True:
            rows = [_live(context, one) for one in context.registry.rollouts("open")]
            if not once and not as_json and sys.stdout.isatty():
                click.clear()
            if not as_json:
                click.echo(f"{utc_now():%Y-%m-%d %H:%M:%S} UTC")
            show(rows, as_json, "No rollout is open.")
            sys.stdout.flush()
            if once:
                return
            time.sleep(every)


@rollouts.command("show", epilog="\b\nExample:\n  nightschool rollouts show ID --json")
@click.argument("rollout_id", metavar="ID")
@JSON_OPTION
@click.pass_context
@failing_clearly
def show_one(ctx: click.Context, rollout_id: str, as_json: bool) -> None:
    """One rollout: its steps, its verdict, the evidence, and who acted."""
    with context_of(ctx) as context:
        rollout = _named(context, rollout_id)
        events = list(reversed(context.registry.events(rollout.id, 1000)))
        share = _share(rollout, context.registry.route(rollout.task_id))
    steps: list[dict[str, Any]] = [
        {"time": event.time, "who": event.actor, "what": event.what, "why": event.why}
        for event in events
    ]
    if as_json:
        body = {
            "id": rollout.id,
            "adapter": rollout.adapter,
            "task": rollout.task_id,
            "state": rollout.state,
            "step": rollout.step,
            "paused": rollout.paused,
            "approval": rollout.approval,
            "reason": rollout.reason,
            "deadline": rollout.deadline,
            "policy": rollout.policy.to_json(),
            "evidence": rollout.evidence,
            "steps": steps,
        }
        click.echo(json.dumps(body, indent=1, default=str))
        return
    click.echo(f"{rollout.adapter} of task {rollout.task_id} is {_state(rollout)}")
    click.echo(f"  why       {rollout.reason}")
    if rollout.open:
        click.echo(f"  share     {share}")
        click.echo(f"  deadline  {rollout.deadline:%Y-%m-%d %H:%M:%S} UTC")
    for name, value in _numbers(rollout).items():
        click.echo(f"  {name:<9} {value}")
    show(steps, False, "Nothing has happened to it.")


def _order(name: Order, summary: str, details: str) -> None:
    """Make a subcommand that gives a rollout an order."""

    @rollouts.command(
        name,
        help=f"{summary}\n\n{details}",
        short_help=summary,
        epilog=f"\b\nExample:\n  nightschool rollouts {name} ID --why 'wrong totals'",
    )
    @click.argument("rollout_id", metavar="ID")
    @WHY_OPTION
    @AS_OPTION
    @JSON_OPTION
    @click.pass_context
    @failing_clearly
    def command(ctx: click.Context, rollout_id: str, why: str, actor: str, as_json: bool) -> None:
        from serving.rollout.orders import give_order

        with context_of(ctx) as context:
            after = give_order(
                context.registry,
                _named(context, rollout_id).id,
                name,
                actor=actor,
                why=why,
                channels=tuple(context.channels),
            )
            context.deliver_messages()
        if as_json:
            click.echo(json.dumps({"id": after.id, "state": _state(after), "reason": after.reason}))
        else:
            click.echo(f"{after.adapter} is {_state(after)}: {after.reason}")


_order(
    "pause",
    "Take the candidate off all sessions without ending its rollout.",
    "It stays loaded and keeps its evidence. A pause that nobody ends is inconclusive after "
    "[rollout] pause_seconds.",
)
_order("resume", "Go on with a paused rollout where it was.", "Its deadline waited for it.")
_order(
    "abort",
    "End a rollout without a verdict; the champion stays.",
    "The adapter is not rejected and may be brought in again: `nightschool rollback` rejects it.",
)
_order(
    "approve",
    "Agree to a promotion that waits for it.",
    "Only where [rollout] approval asks for it. The adapter is promoted at the next look, if it is "
    "still shown as good.",
)


@rollouts.command(epilog="\b\nExample:\n  nightschool rollouts replay ID --json")
@click.argument("rollout_id", metavar="ID")
@JSON_OPTION
@click.pass_context
@failing_clearly
def replay(ctx: click.Context, rollout_id: str, as_json: bool) -> None:
    """Take every step of a rollout again from its evidence; status 1 if one comes out different."""
    from flows.replaying import replay as take_again

    with context_of(ctx) as context:
        rollout = _named(context, rollout_id)
        steps = take_again(context, rollout.id)
    rows: list[dict[str, Any]] = [step.to_json() for step in steps]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        table = [
            {"time": step.time, "what": step.what, "from": step.source, "again": _again(step)}
            for step in steps
        ]
        show(table, False, "Nothing has happened to it.")
        for step in steps:
            for difference in step.differences:
                click.echo(f"{step.what}: {difference}")
    if not all(step.same for step in steps):
        sys.exit(FAILED)


@rollouts.command(
    epilog="\b\nExamples:\n  nightschool rollouts picture ID --to rollout.png\n"
    "  nightschool rollouts picture ID --png rollout.png --to rollout.html"
)
@click.argument("rollout_id", metavar="ID")
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where it goes; .html, .png or .svg says as what. Default: rollout.html, without --png.",
)
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="An image there, too.")
@click.pass_context
@failing_clearly
def picture(ctx: click.Context, rollout_id: str, to: Path | None, png: Path | None) -> None:
    """Draw a rollout's evidence against its thresholds, and its steps: a page, or an image."""
    from flows.drawing import NoPng
    from flows.rollout_picture import FORMS, draw

    wanted = {} if png is None else {png: ".png"}
    if to is not None or not wanted:
        to = to or Path("rollout.html")
        wanted[to] = to.suffix.lower()
        if wanted[to] not in FORMS:
            fail(f"{to} says no form that is drawn: end it in one of {', '.join(FORMS)}", USAGE)
    with context_of(ctx) as context:
        drawn = draw(context, _named(context, rollout_id).id)
    for file, form in wanted.items():
        try:
            file.write_bytes(drawn.in_form(form))
        except (NoPng, OSError) as error:
            fail(f"{file}: {error}", FAILED)
        click.echo(str(file))


def _again(step: Replayed) -> str:
    if step.source == "order":
        return "ordered"
    return "same" if step.same else "different"


def _named(context: Context, given: str) -> Rollout:
    """The rollout of that id, or of that task: the open one, else the newest. Raises UnknownRollout."""
    from serving.registry.errors import UnknownRollout

    try:
        return context.registry.rollout(given)
    except UnknownRollout:
        of_task = context.registry.rollouts(task_id=given)
        if not of_task:
            raise
        return next((one for one in of_task if one.open), of_task[-1])


def _state(rollout: Rollout) -> str:
    if rollout.open and rollout.paused:
        return f"{rollout.state}, paused"
    if rollout.open and rollout.approval == "asked":
        return f"{rollout.state}, waits for approval"
    return rollout.state


def _share(rollout: Rollout, route: Route) -> str:
    """Of sessions that its candidate answers now."""
    return f"{route.weight:.0%}" if route.rollout_id == rollout.id else "waits"


def _live(context: Context, rollout: Rollout) -> dict[str, Any]:
    route = context.registry.route(rollout.task_id)
    own = route.rollout_id == rollout.id
    return {
        "id": rollout.id,
        "adapter": rollout.adapter,
        "state": _state(rollout),
        "share": _share(rollout, route),
        **_numbers(rollout),
        "tended": route.updated if own else None,
        "deadline": rollout.deadline,
    }


def _numbers(rollout: Rollout) -> dict[str, Any]:
    counts = rollout.evidence.get("counts") or {}
    canary = (rollout.evidence.get("observed") or {}).get("canary") or {}

    def evidence(name: str, alpha: float) -> str:
        value = canary.get(name)
        return "-" if not isinstance(value, int | float) else f"{value:.3g} of {1 / alpha:g}"

    return {
        "pairs": counts.get("shadow_pairs", 0),
        "sessions": counts.get("canary_sessions", 0),
        "labels": counts.get("labels", 0),
        "worse": evidence("e_bad", rollout.policy.alpha_bad),
        "as good": evidence("e_good", rollout.policy.alpha_good),
    }
