"""`depesche …`: what an operator types. Parses, loads the configuration, hands over to `broker.compose`.

Exit codes: 0 done; 1 a crash of ours; 2 wrong usage or configuration; 3 the log or a port cannot be had; 4 a check
found something that is not as it should be; 130 interrupted, or stopped at once by a second signal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec
from click.core import ParameterSource

from broker import compose, failpoints, inspect, trial
from broker.commands.deadletters import deadletters
from broker.commands.positions import positions
from broker.commands.routes import routes
from broker.commands.sinks import sinks
from broker.commands.terms import (
    EXIT_CHECK,
    EXIT_CODES,
    EXIT_CONFIG,
    config_option,
    fail,
    loaded,
    masking_of,
    reveal_option,
    run_loop,
)
from broker.config import Config
from broker.errors import Misconfigured
from broker.log.contract import Entry
from broker.masking import Masking
from broker.reload import digest

admin_option = click.option(
    "--admin-port", type=click.IntRange(0, 65_535), help="Port of probes and metrics, instead of the configuration's."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES)
@click.version_option(package_name="depesche", prog_name="depesche")
def main() -> None:
    """A message broker for the WhatsApp Business Platform."""
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    except Misconfigured as error:
        fail(EXIT_CONFIG, str(error))


@main.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Without --config: the folder of a trial with sandbox and sample bots, made at the first start.",
)
@click.option(
    "--base-port",
    type=click.IntRange(1, 65_536 - len(trial.Ports._fields)),
    help="Without --config: the first of the trial's six ports in a row, for receiver, gateway, sandbox, the two "
    "sample bots and admin. Without it 8080, 8081, 8090, 8091, 8092 and 9090, or what the trial had last.",
)
@admin_option
@click.pass_context
def run(
    context: click.Context, config_path: Path | None, data: Path, base_port: int | None, admin_port: int | None
) -> None:
    """Run everything in one process: receiver, gateway, all stages, and the sandbox where one is configured."""
    if config_path is None:
        try:
            config_path = trial.prepare(data, None if base_port is None else trial.Ports.from_base(base_port))
        except Misconfigured as error:
            fail(EXIT_CONFIG, str(error))
    else:
        for name in ("data", "base_port"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"{option} belongs to a trial; a configuration says it itself (--config)")
    config = loaded(config_path)
    run_loop(lambda: compose.serve(config, compose.Roles.everything(config), admin_port, greet=click.echo))


@main.command()
@config_option
@admin_option
def receiver(config_path: Path, admin_port: int | None) -> None:
    """Run the receiver: Meta's webhooks in."""
    config = loaded(config_path)
    run_loop(lambda: compose.serve(config, compose.Roles(receiver=True), admin_port))


@main.command()
@config_option
@admin_option
def gateway(config_path: Path, admin_port: int | None) -> None:
    """Run the gateway: what bots send to."""
    config = loaded(config_path)
    run_loop(lambda: compose.serve(config, compose.Roles(gateway=True), admin_port))


@main.command()
@config_option
@admin_option
@click.option(
    "--stages",
    default=",".join(compose.STAGES),
    show_default=True,
    help="Which stages to run, separated by commas.",
)
def worker(config_path: Path, admin_port: int | None, stages: str) -> None:
    """Run stages: customer, sender, delivery."""
    names = tuple(name.strip() for name in stages.split(",") if name.strip())
    if unknown := [name for name in names if name not in compose.STAGES]:
        fail(
            EXIT_CONFIG, f"--stages {stages}: no such stage {', '.join(unknown)}; there are {', '.join(compose.STAGES)}"
        )
    if not names:
        fail(EXIT_CONFIG, f"--stages is empty; there are {', '.join(compose.STAGES)}")
    config = loaded(config_path)
    run_loop(lambda: compose.serve(config, compose.Roles(stages=names), admin_port))


@main.command()
@config_option
@admin_option
def sandbox(config_path: Path, admin_port: int | None) -> None:
    """Run the sandbox, Meta's stand-in, with its phone page and sample bots."""
    config = loaded(config_path)
    if config.settings.sandbox is None:
        fail(EXIT_CONFIG, f"{config_path}: has no [sandbox]; name its numbers, webhook_url and app_secret there")
    run_loop(lambda: compose.serve(config, compose.Roles(sandbox=True), admin_port, greet=click.echo))


@main.group()
def config() -> None:
    """Look at a configuration."""


@config.command("check")
@config_option
def config_check(config_path: Path) -> None:
    """Check a configuration and that all its secrets can be read."""
    config = loaded(config_path)
    try:
        compose.rehearse(config)
    except Misconfigured as error:
        fail(EXIT_CONFIG, str(error))
    settings = config.settings
    click.echo(
        f"{config_path}: right. {len(settings.apps)} apps, {len(settings.numbers)} numbers, "
        f"{len(settings.sinks)} sinks, {len(settings.keys)} keys, {len(settings.routes)} routes, "
        f"{settings.log.engine} log, digest {digest(settings)}."
    )


@main.group()
def key() -> None:
    """Keys that bots send with, and operators ask with."""


@key.command("new")
def key_new() -> None:
    """Make a key. It is for the bot (or the operator); the configuration gets the digest alone."""
    value, digest = trial.new_key()
    click.echo(f'key    {value}\nsha256 = "{digest}"')


@main.group()
def topics() -> None:
    """The logs as Kafka topics."""


@topics.command("apply")
@config_option
def topics_apply(config_path: Path) -> None:
    """Create the topics that are missing, then compare all of them as `check` does."""
    _topics(loaded(config_path), apply=True)


@topics.command("check")
@config_option
def topics_check(config_path: Path) -> None:
    """Say which topics are missing or not as they should be; changes nothing."""
    _topics(loaded(config_path), apply=False)


def _topics(config: Config, *, apply: bool) -> None:
    made, differences = run_loop(lambda: compose.topics(config, apply=apply))
    for name in made:
        click.echo(f"created {name}")
    for difference in differences:
        click.echo(difference)
    if differences:
        sys.exit(EXIT_CHECK)
    click.echo("all topics are as they should be")


@main.command()
@click.argument("log")
@config_option
@click.option("--partition", type=click.IntRange(0), help="This partition alone.")
@click.option("--offset", type=click.IntRange(0), help="Begin here instead of the first record.")
@click.option("--follow/--no-follow", default=False, help="Go on when the end is reached, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many records.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, nothing left out.")
@reveal_option
def tail(
    log: str,
    config_path: Path,
    partition: int | None,
    offset: int | None,
    follow: bool,
    limit: int | None,
    as_json: bool,
    reveal: bool,
) -> None:
    """Show the records of a LOG, e.g. conversations, sends.reply, deliveries.<sink>, deadletters."""
    config = loaded(config_path)
    masking = masking_of(config.settings, reveal=reveal)

    def show(entry: Entry) -> None:
        click.echo(_json(entry, masking) if as_json else inspect.as_line(entry, masking))

    run_loop(lambda: compose.tail(config, log, show, partition, offset, limit, follow=follow))


main.add_command(deadletters)
main.add_command(routes)
main.add_command(sinks)
main.add_command(positions)


def _json(entry: Entry, masking: Masking | None) -> bytes:
    tree = inspect.as_tree(entry)
    return msgspec.json.encode(tree if masking is None else masking.tree(tree))


if __name__ == "__main__":
    main()
