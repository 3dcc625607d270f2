"""The command line ``nightschool``. Commands are loaded when called, so that help is instant."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = {
    "up": "flows.cli.run:up",
    "demo": "flows.cli.run:demo",
    "night": "flows.cli.run:night",
    "gateway": "flows.cli.run:gateway",
    "registry": "flows.cli.run:registry",
    "import": "flows.cli.logs:import_logs",
    "quarantine": "flows.cli.logs:quarantine",
    "anonymize": "flows.cli.logs:anonymize",
    "status": "flows.cli.watch_over:status",
    "doctor": "flows.cli.watch_over:doctor",
    "tasks": "flows.cli.shaping:tasks",
    "datasets": "flows.cli.data:datasets",
    "forget": "flows.cli.forget:forget",
    "adapters": "flows.cli.read:adapters",
    "rollouts": "flows.cli.rollouts:rollouts",
    "gate": "flows.cli.judging:gate",
    "drift": "flows.cli.drift:drift",
    "golden": "flows.cli.golden:golden",
    "judge": "flows.cli.judging:judge",
    "events": "flows.cli.read:events",
    "audit": "flows.cli.watch_over:audit",
    "history": "flows.cli.lineage:history",
    "lineage": "flows.cli.lineage:lineage",
    "rollback": "flows.cli.act:rollback",
    "retrain": "flows.cli.act:retrain",
    "gc": "flows.cli.act:gc",
    "keys": "flows.cli.keys:keys",
    "hooks": "flows.cli.hooks:hooks",
    "notify": "flows.cli.act:notify",
    "config": "flows.cli.configure:config",
    "db": "flows.cli.configure:db",
}
SUMMARIES = {
    "up": "Start everything on this machine and keep it running.",
    "demo": "Play one day, one night and the next day on real input.",
    "night": "Run the night now: learn from the logs, judge, open rollouts.",
    "gateway": "Run the gateway alone.",
    "registry": "Run the registry's HTTP read API alone.",
    "import": "Take in the logs of other gateways and tracers.",
    "quarantine": "Rows of logs that could not be read: list, explain, read again.",
    "anonymize": "What the anonymizer makes of a file.",
    "status": "What runs, what it saves, what is being rolled out, what waits.",
    "doctor": "Check what everything stands on, and say how to mend it.",
    "tasks": "The tasks in the logs: show, rename, merge, split, ignore, pin.",
    "datasets": "The frozen data sets: list, show, compare, export.",
    "forget": "Erase a session, a tenant or a text from logs and data sets.",
    "adapters": "The adapters and their scores.",
    "rollouts": "The rollouts and their verdicts: watch, pause, approve, replay.",
    "gate": "A decision of the gate, made again from what was stored.",
    "drift": "What drifted in a task's calls, by how much, with examples.",
    "golden": "Cases whose right answer is pinned: no adapter may lose one.",
    "judge": "Judge an adapter again now, and show its scorecard.",
    "events": "Who changed what, when and why.",
    "audit": "The events, by person, task, kind and time.",
    "history": "Everything that happened to a task, its adapters and rollouts.",
    "lineage": "From an answer to the logs behind it, and back.",
    "rollback": "Put a task's previous champion, or the teacher, back.",
    "retrain": "Ask Prefect for a training of one task now.",
    "gc": "Clear away what is past its time; never what is in use.",
    "keys": "API keys: create, list, limit, revoke.",
    "hooks": "Webhooks in: senders' secrets, and what waits.",
    "notify": "Send a test message to the configured channels.",
    "config": "The effective settings and where each came from.",
    "db": "Database: upgrade the schema, back up, restore.",
}
EPILOG = """\b
Examples:
  nightschool up                        start the stack, open the Prefect UI
  nightschool tasks --json              the tasks, for a script
  nightschool rollback invoice-fields   the previous champion answers again
Exit status: 0 done, 1 it failed, 2 wrong usage or settings, 3 not found."""


class LazyGroup(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"max_content_width": 100})
@click.version_option(package_name="nightschool")
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    help="TOML file with settings (default: nightschool.toml, or $NIGHTSCHOOL_CONFIG).",
)
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """Night School: small models learn by night what your agents ask for by day."""
    ctx.obj = config
