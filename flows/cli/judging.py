"""The command about the gate's decisions."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from flows.cli.common import FAILED, JSON_OPTION, context_of, fail, failing_clearly


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
