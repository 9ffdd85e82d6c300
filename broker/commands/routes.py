"""`depesche route explain | test`: where a message would go and why; whether all go where they should.

Neither reads a secret. `explain` exits with 0 whatever it finds. `test` exits with 0 when every case is as expected, 4
when one is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from broker.commands.terms import (
    EXIT_CHECK,
    EXIT_CONFIG,
    Instant,
    config_option,
    fail,
    json_option,
    loaded_settings,
    masking_of,
    reveal_option,
)
from broker.core.routing import BOT, Case, Judged, Routed, explain, has_no_metadata
from broker.errors import Misconfigured
from broker.explanations import as_tree, debounces, what
from broker.inspect import instant
from broker.masking import Masking
from broker.route_cases import (
    SAMPLE_BYTES_MAX,
    asked,
    follows,
    read_cases,
    read_file,
    read_samples,
    rules_of,
    said,
    try_cases,
)
from schemas.settings import Settings


@click.group("route")
def routes() -> None:
    """Where messages go, by the configured routes."""


@routes.command("explain")
@click.argument("message")
@config_option
@click.option("--number", default="", help="For a message alone: the phone_number_id it is written to.")
@click.option("--at", type=Instant(), help="When it comes in: 2026-03-01T12:00:00Z, or 2h ago. Now unless said.")
@click.option("--first", is_flag=True, help="It is the customer's first message to that number.")
@click.option("--holder", default=BOT, show_default=True, help="Who holds the conversation.")
@click.option("--language", default="", help="The customer's language, where one is known.")
@json_option
@reveal_option
def route_explain(
    message: str,
    config_path: Path,
    number: str,
    at: int | None,
    first: bool,
    holder: str,
    language: str,
    as_json: bool,
    reveal: bool,
) -> None:
    """Say which routes take a MESSAGE, why the others do not, and what follows.

    MESSAGE is a file (or - for standard input): a webhook body as Meta sends it, one of its messages, or a record as
    `depesche tail conversations --json --reveal` prints it.
    """
    settings = loaded_settings(config_path)
    at = Instant.now() if at is None else at
    try:
        raw = sys.stdin.buffer.read(SAMPLE_BYTES_MAX + 1) if message == "-" else read_file(Path(message))
        if len(raw) > SAMPLE_BYTES_MAX:
            raise Misconfigured(f"is larger than {SAMPLE_BYTES_MAX} bytes")
        items = read_samples(raw, settings, at, number)
    except Misconfigured as error:
        text = str(error)
        fail(EXIT_CONFIG, text if text.startswith(f"{message}: ") else f"{message}: {text}")
    rules, masking = rules_of(settings), masking_of(settings, reveal=reveal)
    for item in items:
        about = asked(item, first, holder, language)
        judged, routed = explain(rules, about), follows(rules, settings, about)
        if as_json:
            tree = as_tree(about, judged, routed, settings)
            click.echo(msgspec.json.encode(tree if masking is None else masking.tree(tree)))
        else:
            for line in _lines(about, judged, routed, settings):
                click.echo(line if masking is None else masking.text(line))


@routes.command("test")
@click.argument("cases", type=click.Path(path_type=Path, dir_okay=False))
@config_option
@click.option("--all", "show_all", is_flag=True, help="Name the cases that are right, too.")
def route_test(cases: Path, config_path: Path, show_all: bool) -> None:
    """Try the CASES of a TOML file: messages, and where each is expected to go."""
    settings = loaded_settings(config_path)
    masking = Masking.of(settings)
    tried = failed = 0
    try:
        for one in try_cases(rules_of(settings), settings, read_cases(cases), cases.parent):
            tried += 1
            failed += bool(one.wrong)
            if not one.wrong:
                if show_all:
                    click.echo(f"right  {one.case.name}")
                continue
            click.echo(f"WRONG  {one.case.name}")
            for what, expected, got in one.wrong:
                click.echo(f"         {what:<9} expected  {expected}")
                click.echo(f"         {'':<9} got       {got}")
            for reason in one.reasons:
                click.echo(f"         {masking.text(reason)}")
    except Misconfigured as error:
        fail(EXIT_CONFIG, str(error))
    click.echo(f"{tried} cases, {failed} wrong")
    if failed:
        sys.exit(EXIT_CHECK)


def _lines(about: Case, judged: list[Judged], routed: Routed, settings: Settings) -> list[str]:
    """Return an explanation for a terminal."""
    item = about.item
    lines = [
        f"{what(item)} from {item.wa_id or item.bsuid or 'nobody'} to {item.phone_number_id or 'no number'}, "
        f"received {instant(item.received_at)}",
        f"assumed: {'the first message' if about.first else 'not the first message'}, held by {about.holder}, "
        f"language {about.language or 'not known'}",
    ]
    if has_no_metadata(item):
        lines.append("  no route is asked: it has no metadata, and goes to sinks with account_updates = true")
    for number, (rule, verdict, conditions) in enumerate(judged, 1):
        onwards = ", continues" if verdict == "taken" and rule.go_on else ""
        lines.append(f"{number:>3}  {rule.name}: {verdict}{onwards}")
        if verdict == "not reached":
            continue
        lines += [
            f"       {'yes' if each.holds else 'NO '}  {each.name}: {each.wanted} (found {each.found})"
            for each in conditions
        ]
    lines.append(f"  => sinks: {said(list(routed.sinks))}")
    follows = {
        "tags": said(list(routed.tags)) if routed.tags else "",
        "reply of the broker's own": "" if routed.reply is None else f"that of {routed.reply.rule}",
        "holder": routed.holder,
        "language": routed.language,
    }
    lines += [f"     {name}: {value}" for name, value in follows.items() if value]
    for sink, joined in debounces(routed, settings).items():
        if joined is None:
            lines.append(f"     debounce at {sink}: none, each goes at once")
        else:
            lines.append(
                f"     debounce at {sink}: joined after a silence of {joined['debounce_ms']} ms, at most "
                f"{joined['debounce_events_max']}, the first waits at most {joined['debounce_wait_ms_max']} ms"
            )
    return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    """Escape what would steer a terminal: the text came from a customer."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
