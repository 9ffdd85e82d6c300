"""`depesche sinks list | pause | resume | verify | replay`: what an operator does with the places events go to.

Exit codes as everywhere; `verify` exits with 4 when a sink did not answer as Meta asks of a webhook, `replay` when the
limit left something. `pause` and `resume` exit with 0 once the word is durable: every process that delivers follows it
within about a second, and those that start later, too.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click
import msgspec

from broker import compose
from broker.clock import SystemClock
from broker.commands.terms import (
    EXIT_CHECK,
    EXIT_CONFIG,
    Instant,
    config_option,
    fail,
    json_option,
    loaded,
    run_loop,
)
from broker.config import Config
from broker.inspect import instant
from broker.sink_control import Again, SinkState, as_tree, place, replay_since, set_paused, states
from schemas.settings import SinkSettings
from workers.handshake import Handshake, shake

REPLAY_MAX = 100_000


@click.group()
def sinks() -> None:
    """The places events are delivered to."""


@sinks.command("list")
@config_option
@json_option
def sinks_list(config_path: Path, as_json: bool) -> None:
    """List sinks: name, kind, whether one is paused, how many events wait, where they go."""
    config = loaded(config_path)

    async def work() -> list[SinkState]:
        async with compose.visit(config) as visit:
            return await states(visit, config.settings.sinks)

    for sink, one in zip(config.settings.sinks, run_loop(work), strict=True):
        if as_json:
            click.echo(msgspec.json.encode(as_tree(sink, one)))
        else:
            how = f"paused since {instant(one.paused_at)}" if one.paused else "running"
            note = f" ({one.note})" if one.note else ""
            click.echo(
                f"{sink.name} {sink.kind} {how}{note}, {one.waiting} waiting of {one.kept} kept, to {place(sink)}"
            )


@sinks.command("pause")
@config_option
@click.option("--note", default="", help="Why, for whoever looks at `sinks list` next.")
@click.argument("name")
def sinks_pause(config_path: Path, note: str, name: str) -> None:
    """Hold a sink's events back on their log, until `resume`: what is under way ends, nothing new begins.

    They wait for as long as the log is kept, seven days. It stays so over restarts.
    """
    _say(loaded(config_path), name, paused=True, note=note[:200])
    click.echo(f"{name} is paused; its events wait on their log")


@sinks.command("resume")
@config_option
@click.argument("name")
def sinks_resume(config_path: Path, name: str) -> None:
    """Let a paused sink's events go again, in order, beginning with the oldest."""
    _say(loaded(config_path), name, paused=False, note="")
    click.echo(f"{name} runs")


@sinks.command("verify")
@config_option
@json_option
@click.argument("names", nargs=-1)
def sinks_verify(config_path: Path, as_json: bool, names: tuple[str, ...]) -> None:
    """Ask sinks of kind `meta` to prove themselves as Meta does: GET with hub.challenge, answered with its bytes.

    Without NAMES all that have a `verify_token` in the configuration.
    """
    config = loaded(config_path)
    tokens = config.sink_verify_tokens()
    chosen = [_sink(config, name) for name in names] or [s for s in config.settings.sinks if s.name in tokens]
    if not chosen:
        fail(EXIT_CONFIG, "no sink has a verify_token; set sinks[…].verify_token to what the bot expects")
    for sink in chosen:
        if sink.kind != "meta":
            fail(EXIT_CONFIG, f"{sink.name} is of kind {sink.kind!r}: the handshake belongs to kind 'meta'")
        if sink.name not in tokens:
            fail(EXIT_CONFIG, f"{sink.name} has no verify_token; set it to what the bot expects as hub.verify_token")
    rng = random.SystemRandom()

    async def work() -> list[Handshake]:
        async with compose.connector(config) as connector:
            return [await shake(connector, sink, tokens[sink.name], rng) for sink in chosen]

    found = run_loop(work)
    for sink, one in zip(chosen, found, strict=True):
        if as_json:
            click.echo(msgspec.json.encode({"name": sink.name, "verified": not one.wrong, "wrong": one.wrong or None}))
        else:
            click.echo(f"{sink.name}: {'verified' if not one.wrong else one.wrong}")
    if any(one.wrong for one in found):
        sys.exit(EXIT_CHECK)


@sinks.command("replay")
@config_option
@click.option("--since", type=Instant(), required=True, help="2026-03-01T12:00:00Z, or 15m, 2h, 3d ago.")
@click.option("--dry-run", is_flag=True, help="Count and do nothing.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000_000), default=REPLAY_MAX, show_default=True, help="No more than so many."
)
@json_option
@click.argument("name")
def sinks_replay(config_path: Path, since: int, dry_run: bool, limit: int, as_json: bool, name: str) -> None:
    """Deliver once more what came for a sink since a moment, as far back as its log is kept (seven days).

    Each event keeps its id and says in the header X-Depesche-Replay that it comes again. They come behind what waits
    already. What is a replay itself is left out, so a second command doubles nothing that the first one did.
    """
    config = loaded(config_path)
    _sink(config, name)
    clock = SystemClock()

    async def work() -> Again:
        async with compose.visit(config) as visit:
            return await replay_since(visit, name, since, clock, limit, dry_run=dry_run)

    found = run_loop(work)
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "dry_run": dry_run, **found._asdict()}))
    else:
        click.echo(f"{name}: {found.appended} events {'would be' if dry_run else 'are'} delivered once more")
        if found.copies:
            click.echo(f"{name}: {found.copies} are replays of before and were left out")
        if found.unreadable:
            click.echo(f"{name}: {found.unreadable} cannot be read and were left out")
    if found.is_cut:
        fail(EXIT_CHECK, f"{name}: there are more; --limit {limit} ended it")


def _say(config: Config, name: str, *, paused: bool, note: str) -> None:
    _sink(config, name)
    clock = SystemClock()

    async def work() -> None:
        async with compose.visit(config) as visit:
            await set_paused(visit, name, clock, paused=paused, note=note)

    run_loop(work)


def _sink(config: Config, name: str) -> SinkSettings:
    found = next((sink for sink in config.settings.sinks if sink.name == name), None)
    if found is None:
        fail(EXIT_CONFIG, f"no sink {name!r}; there are {', '.join(s.name for s in config.settings.sinks) or 'none'}")
    return found
