"""`depesche positions reset`: for a partition whose position belongs to another incarnation of a log.

A stage refuses such a partition loudly and for good (`WrongIncarnation`): the log was deleted and made again, or cut
off, and where to go on is an operator's decision. This is how it is taken. Exit codes: 0 the position was reset; 4 it
is right and was left, or `--yes` is missing; 3 the log cannot be had, or a running process has the embedded one open.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from broker import compose
from broker.commands.terms import EXIT_CHECK, config_option, fail, loaded, run_loop
from broker.log.catalogue import CUSTOMER_STAGE, SENDER_STAGE

STAGES = {stage.name: stage for stage in (CUSTOMER_STAGE, SENDER_STAGE)}


@click.group()
def positions() -> None:
    """How far stages have read."""


@positions.command("reset")
@config_option
@click.option("--partition", type=click.IntRange(0), required=True, help="The partition that is refused.")
@click.option("--yes", is_flag=True, help="Do it, knowing what it means.")
@click.argument("stage", type=click.Choice(sorted(STAGES)))
def positions_reset(config_path: Path, partition: int, yes: bool, stage: str) -> None:
    """Let a STAGE go on in a partition it refuses, from the first record each of its logs has now.

    What it means: whatever stood on the log that was deleted and had not been read is lost. What is there now is all
    read; facts that were taken before are known by their ids and change nothing, as far back as those are remembered.
    The stage's state is kept. A partition whose position is right is left alone; looking takes it from its owner for a
    moment. The embedded log must not be open in another process.
    """
    config = loaded(config_path)
    wrong = run_loop(lambda: compose.reset_position(config, STAGES[stage], partition, reset=yes))
    if not wrong:
        fail(EXIT_CHECK, f"{stage}-{partition}: its position is right; nothing was changed")
    click.echo(wrong)
    if not yes:
        click.echo("depesche: with --yes it is reset: what was not read of the log that is gone is lost", err=True)
        sys.exit(EXIT_CHECK)
    click.echo(f"{stage}-{partition}: reset; it goes on at the first record of each of its logs")
