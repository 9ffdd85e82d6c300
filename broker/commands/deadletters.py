"""`depesche deadletters list | show | replay`: what was set aside, where and why, and putting it back.

A sink, reason or stage that is neither ours nor in any letter is wrong usage, 2. `list` and `show` exit with 0 (nothing
found is said on standard error), or 4 when the letter asked for is not there. `replay` exits with 0 when every letter
chosen was put back (or, with `--dry-run`, could be), 4 when one was refused or none was chosen by its place, 3 when the
log went away in between: what was put back until then is marked, and the same command goes on behind it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import msgspec

from broker import compose, inspect
from broker.clock import SystemClock
from broker.commands.terms import (
    EXIT_CHECK,
    EXIT_CONFIG,
    Instant,
    config_option,
    fail,
    json_option,
    loaded,
    masking_of,
    reveal_option,
    run_loop,
)
from broker.config import Config
from broker.deadletters import Replay, Standing, Wanted, as_whole, check_names, find, replay, standing
from broker.masking import Masking

REPLAY_MAX = 1_000
"""Put back by one command unless it says otherwise: enough for a bad hour, few enough to look at first."""


@click.group()
def deadletters() -> None:
    """Records that were set aside."""


sink_option = click.option("--sink", default="", help="Those meant for this sink.")
reason_option = click.option("--reason", default="", help="Those of this reason, e.g. gave_up, poison, malformed.")
stage_option = click.option("--stage", default="", help="Those set aside by this stage, e.g. delivery, customer.")
since_option = click.option(
    "--since", type=Instant(), default=0, help="Set aside then or later: 2026-03-01T12:00:00Z, or 15m, 2h, 3d ago."
)


@deadletters.command("list")
@config_option
@sink_option
@reason_option
@stage_option
@since_option
@click.option("--waiting", is_flag=True, help="Those alone that were not replayed.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many.")
@json_option
@reveal_option
def deadletters_list(
    config_path: Path,
    sink: str,
    reason: str,
    stage: str,
    since: int,
    waiting: bool,
    limit: int | None,
    as_json: bool,
    reveal: bool,
) -> None:
    """List dead letters, oldest first: place, time, stage, reason, where it stood, whether it was replayed."""
    config = loaded(config_path)
    masking = masking_of(config.settings, reveal=reveal)
    wanted = Wanted(sink=sink, reason=reason, stage=stage, since=since, replayed=False if waiting else None)

    async def work() -> int:
        count = 0
        async with compose.visit(config) as visit:
            await check_names(visit, wanted, _sinks(config))
            async for one in standing(visit, wanted):
                click.echo(_json(one, masking) if as_json else _line(one, masking))
                count += 1
                if count == limit:
                    break
        return count

    if not run_loop(work):
        is_narrowed = sink or reason or stage or since or waiting
        click.echo(f"depesche: {'no such dead letter' if is_narrowed else 'no dead letters'}", err=True)


@deadletters.command("show")
@config_option
@reveal_option
@click.argument("place")
def deadletters_show(config_path: Path, reveal: bool, place: str) -> None:
    """Show one dead letter whole. PLACE is as `list` prints it: partition/offset."""
    config = loaded(config_path)
    _must_be_a_place(place)
    partition, _, offset = place.partition("/")

    async def work() -> Standing | None:
        async with compose.visit(config) as visit:
            return await find(visit, (int(partition), int(offset)))

    found = run_loop(work)
    if found is None:
        fail(EXIT_CHECK, f"no dead letter at {place}")
    click.echo(msgspec.json.format(_json(found, masking_of(config.settings, reveal=reveal)), indent=2))


@deadletters.command("replay")
@config_option
@sink_option
@reason_option
@stage_option
@since_option
@click.option("--again", is_flag=True, help="Those too that were replayed before.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and do nothing.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=REPLAY_MAX, show_default=True, help="No more than so many."
)
@json_option
@click.argument("places", nargs=-1)
def deadletters_replay(
    config_path: Path,
    sink: str,
    reason: str,
    stage: str,
    since: int,
    again: bool,
    dry_run: bool,
    limit: int,
    as_json: bool,
    places: tuple[str, ...],
) -> None:
    """Append the original records to their logs once more and mark the letters, oldest first.

    PLACES are as `list` prints them (partition/offset); without any, options must say which letters are meant. A
    record that comes back stands behind what its log got since: its customer's later messages are not held for it.
    """
    config = loaded(config_path)
    for place in places:
        _must_be_a_place(place)
    if not places and not (sink or reason or stage or since):
        fail(EXIT_CONFIG, "which letters? Name their places, or use --sink, --reason, --stage or --since")
    wanted = Wanted(
        places=frozenset(places), sink=sink, reason=reason, stage=stage, since=since, replayed=None if again else False
    )

    clock = SystemClock()

    async def work() -> tuple[int, bool]:
        count, refused = 0, False
        async with compose.visit(config) as visit:
            await check_names(visit, wanted, _sinks(config))
            async for letter in standing(visit, wanted):
                count += 1
                if count <= limit:
                    one = await replay(visit, letter, clock, dry_run=dry_run)
                    click.echo(_replay_json(one, dry_run=dry_run) if as_json else _replay_line(one, dry_run=dry_run))
                    refused = refused or bool(one.refused)
        return count, refused

    count, any_refused = run_loop(work)
    if not count:
        said = "no such letter that was not replayed already" if not again else "no such letter"
        if places:
            fail(EXIT_CHECK, f"{said} at {', '.join(places)}")
        click.echo(f"depesche: {said}", err=True)
    if count > limit:
        click.echo(f"depesche: {count - limit} more are left; --limit {count} takes all", err=True)
    if any_refused:
        sys.exit(EXIT_CHECK)


def _sinks(config: Config) -> list[str]:
    return [sink.name for sink in config.settings.sinks]


def _must_be_a_place(place: str) -> None:
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,18}", place):
        fail(
            EXIT_CONFIG,
            f"PLACE {place!r}: must be partition/offset as `depesche deadletters list` prints it, e.g. 0/17",
        )


def _line(one: Standing, masking: Masking | None) -> str:
    line = inspect.dead_letter_line(one.entry, masking)
    return line if one.replayed_at is None else f"{line} [replayed {inspect.instant(one.replayed_at)}]"


def _json(one: Standing, masking: Masking | None) -> bytes:
    return msgspec.json.encode(as_whole(one, masking))


def _replay_line(one: Replay, *, dry_run: bool) -> str:
    if one.refused:
        return f"{one.place} {one.reason}: not replayed: {one.refused}"
    return f"{one.place} {one.reason}: {'would be replayed' if dry_run else 'replayed'} to {one.log}"


def _replay_json(one: Replay, *, dry_run: bool) -> bytes:
    return msgspec.json.encode(
        {
            "place": one.place,
            "log": one.log,
            "reason": one.reason,
            "replayed": not one.refused and not dry_run,
            "refused": one.refused or None,
        }
    )
