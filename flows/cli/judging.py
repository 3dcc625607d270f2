"""The commands about judging and the gate's decisions."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from flows.cli.common import (
    AS_OPTION,
    FAILED,
    JSON_OPTION,
    WHY_OPTION,
    context_of,
    fail,
    failing_clearly,
)


@click.command(
    epilog="\b\nExamples:\n  nightschool gate --replay invoices@0123456789abcdef\n"
    "  nightschool gate --replay 3f2a91c04b7d --json"
)
@click.option(
    "--replay",
    "wanted",
    required=True,
    metavar="ID",
    help="An adapter's name (its newest decision), or a decision's id.",
)
@JSON_OPTION
@click.pass_context
@failing_clearly
def gate(ctx: click.Context, wanted: str, as_json: bool) -> None:
    """Decide a stored judgement again, from the policy and the evidence stored with it.

    Returns 1 when it does not come out the same: what is stored was changed, or this release decides
    otherwise.
    """
    from flows.gate_replay import replay_gate

    with context_of(ctx) as context:
        found = replay_gate(context, wanted)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(f"{found.adapter}: {found.again}, as stored {found.verdict} ({found.id[:12]})")
        for reason in found.reasons:
            click.echo(f"  {reason}")
    if not found.same:
        fail("it does not come out as it was stored", FAILED)


@click.command(
    epilog="\b\nExamples:\n  nightschool judge invoices@0123456789abcdef\n"
    "  nightschool judge invoices@0123456789abcdef --json\n"
    "  nightschool judge invoices@0123456789abcdef --keep --why 'a new engine'"
)
@click.argument("adapter")
@click.option(
    "--keep",
    is_flag=True,
    help="Keep the page and the decision beside the first. The newest decides whether a rollout may "
    "open: one that passes opens the way, any other closes it, whatever the night had found.",
)
@WHY_OPTION
@AS_OPTION
@JSON_OPTION
@click.pass_context
@failing_clearly
def judge(
    ctx: click.Context, adapter: str, keep: bool, why: str, actor: str, as_json: bool
) -> None:
    """Judge ADAPTER again now: replay its held-out calls through the engine, and show the scorecard.

    No route and no rollout is changed by it. Where [judge] names a large model, it is asked too, within
    look_calls_per_day and look_money_per_day; what it has said before is not paid again. The engine
    has to run; minutes, by the number of test examples.
    """
    from evaluators.pages import markdown
    from evaluators.scorecard_page import scorecard_page
    from flows.judging_again import judge_again
    from flows.reporting import report_url
    from flows.scorecards import PICTURE

    with context_of(ctx) as context:
        found = judge_again(
            context,
            adapter,
            keep=keep,
            actor=actor,
            why=why,
            say=lambda text: click.echo(text, err=True),
        )
        link = None if found.page is None else report_url(context, found.page)
    if as_json:
        click.echo(json.dumps({**asdict(found), "link": link}))
        return
    title, blocks = scorecard_page(asdict(found.judgement))
    click.echo(markdown(title, blocks, PICTURE))
    for row in found.worst:
        click.echo(f"{row['call']} asked: {row['asked']}")
        click.echo(f"  right: {row['right']}")
        click.echo(f"  said:  {row['said'] if row['said'] is not None else row['why']}")
    if link is not None:
        click.echo(f"kept: {link}")
