"""Reads `depesche.toml`, checks all of it, and resolves its secrets. Nothing starts on a configuration that is wrong.

Every error names the setting's path, the value found and what would be right; all of them are reported at once, so
that a file is mended in one go.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import fields, replace

from broker.core.consent import words
from broker.core.endpoints import listed
from broker.core.hours import Hours, compile_hours
from broker.core.marketing_rest import HOURS_MAX
from broker.core.media_url import media_secret
from broker.core.routing import BOT, ROUTES_MAX, compile_route
from broker.errors import Misconfigured
from broker.misfits import converted
from broker.places import ANY_HOST, clashing_ports, ports, unreachable_sink, url_of
from broker.secrets import Secret, read_secret
from schemas.settings import App, GatewaySettings, LogSettings, Number, SecretSource, Settings, SinkSettings, Then

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""Names become parts of topic names, label values and our opaque data: short, and nothing that needs quoting."""

TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
"""What Kafka takes for a topic's name."""

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
"""Stands in many an example. The gateway takes no empty key: with this digest a bot would only ever hear 401."""

CONFIG_BYTES_MAX = 4 * 1024 * 1024


class Config:
    """A checked configuration with its secrets read. Immutable; a reload makes another one."""

    def __init__(self, settings: Settings, base: Path, secrets: Mapping[str, Secret], path: Path | None = None) -> None:
        """`path`: the file it was read from, where it was one."""
        self.settings = settings
        self.base = base
        self.path = path
        self._secrets = secrets

    def files(self) -> list[Path]:
        """Return every file it was made of: its own, and those of its secrets."""
        own = [] if self.path is None else [self.path]
        return own + [self.base / source.file for _, source in _sources(self.settings) if source.file]

    def secret_paths(self) -> list[str]:
        """Return the path of every setting that names a secret."""
        return list(self._secrets)

    def has(self, path: str, secret: Secret) -> bool:
        """Whether a setting's path names this secret."""
        return self._secrets.get(path) == secret

    def secret(self, path: str) -> Secret:
        """Return the secret that a setting's path names, e.g. `apps[0].secrets[1]`."""
        return self._secrets[path]

    def app_secrets(self) -> dict[str, tuple[Secret, ...]]:
        """Return each app's current secrets, newest first."""
        return {
            app.name: tuple(self.secret(f"apps[{i}].secrets[{j}]") for j in range(len(app.secrets)))
            for i, app in enumerate(self.settings.apps)
        }

    def verify_tokens(self) -> dict[str, Secret]:
        """Return each app's token for the GET handshake."""
        return {app.name: self.secret(f"apps[{i}].verify_token") for i, app in enumerate(self.settings.apps)}

    def number_tokens(self) -> dict[str, Secret]:
        """Return the Graph token of each number."""
        return {n.phone_number_id: self.secret(f"numbers[{i}].token") for i, n in enumerate(self.settings.numbers)}

    def media_secrets(self) -> dict[str, bytes]:
        """Return what signs the media urls of each number."""
        return {number: media_secret(token.reveal()) for number, token in self.number_tokens().items()}

    def sink_secrets(self) -> dict[str, tuple[Secret, ...]]:
        """Return the signing secrets of each sink: the present one, then the one it replaces; none for a topic."""
        secrets = {}
        for i, sink in enumerate(self.settings.sinks):
            sources = {"secret": sink.secret, "previous_secret": sink.previous_secret}
            names = [name for name, source in sources.items() if source is not None]
            secrets[sink.name] = tuple(self.secret(f"sinks[{i}].{name}") for name in names)
        return secrets

    def sink_passwords(self) -> dict[str, Secret]:
        """Return the password towards the cluster of each sink that has its own, and one."""
        return {
            s.name: self.secret(f"sinks[{i}].kafka.sasl_password")
            for i, s in enumerate(self.settings.sinks)
            if s.kafka is not None and s.kafka.sasl_password is not None
        }

    def sink_verify_tokens(self) -> dict[str, Secret]:
        """Return what is said in the handshake towards each sink that has one."""
        sinks = enumerate(self.settings.sinks)
        return {s.name: self.secret(f"sinks[{i}].verify_token") for i, s in sinks if s.verify_token is not None}


def load(path: Path) -> Config:
    """Read, check and resolve a configuration file. Raises `Misconfigured` with every error found, a line each."""
    return resolve(load_settings(path), path.parent.resolve(), path)


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file without its secrets, for what needs none: routes are tested where the secrets
    of production must not be. Raises `Misconfigured`."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read ({error.strerror}); name a TOML file with --config") from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise Misconfigured(f"{path}: is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: is not TOML: {error}") from None
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> Settings:
    """Turn a TOML tree into settings and check what types cannot say. Raises `Misconfigured`."""
    try:
        settings = converted(tree, Settings)
    except ValueError as error:
        raise Misconfigured(str(error)) from None
    if errors := list(check(settings)):
        raise Misconfigured("\n".join(errors))
    return settings


def resolve(settings: Settings, base: Path, path: Path | None = None) -> Config:
    """Read every secret the settings name. Raises `Misconfigured` with a line for each that cannot be read."""
    secrets: dict[str, Secret] = {}
    errors: list[str] = []
    for where, source in _sources(settings):
        try:
            secrets[where] = read_secret(source, where, base)
        except Misconfigured as error:
            errors.append(str(error))
    if errors:
        raise Misconfigured("\n".join(errors))
    return Config(settings, base, secrets, path)


def check(settings: Settings) -> Iterable[str]:
    """Yield what is wrong with settings whose types are right: ranges, names, references from one to another."""
    yield from _nothing(settings)
    yield from _names("apps", [app.name for app in settings.apps])
    yield from _names("sinks", [sink.name for sink in settings.sinks])
    yield from _names("keys", [key.name for key in settings.keys])
    yield from _names("routes", [route.name for route in settings.routes])
    yield from _names("hours", [opening.name for opening in settings.hours])
    yield from _unique("keys", "sha256", [key.sha256 for key in settings.keys])
    yield from _unique("numbers", "phone_number_id", [n.phone_number_id for n in settings.numbers])
    sinks = {sink.name for sink in settings.sinks}
    numbers = {n.phone_number_id for n in settings.numbers}
    for i, app in enumerate(settings.apps):
        if not app.secrets:
            yield f"apps[{i}].secrets = []: name at least one app secret, two while rotating"
    for i, number in enumerate(settings.numbers):
        where = f"numbers[{i}]"
        if not number.phone_number_id.isdigit():
            yield f"{where}.phone_number_id = {number.phone_number_id!r}: must be Meta's id, digits only"
        if not 0 <= number.slot < settings.log.slots and settings.log.slots > 0:
            yield f"{where}.slot = {number.slot}: must be from 0 to {settings.log.slots - 1} (log.slots - 1)"
        if not 1 <= number.throughput_mps <= 1_000:
            yield f"{where}.throughput_mps = {number.throughput_mps}: must be from 1 to 1000 (Meta: 20, 80 or 1000)"
        if not NAME.fullmatch(number.portfolio):
            yield f"{where}.portfolio = {number.portfolio!r}: must match {NAME.pattern}"
    for i, sink in enumerate(settings.sinks):
        where = f"sinks[{i}]"
        yield from _kind_of_sink(where, sink, settings.log)
        yield from unreachable_sink(where, sink, settings.connector)
        yield from _between(f"{where}.timeout_s", sink.timeout_s, 0.1, 60)
        yield from _between(f"{where}.in_flight_max", sink.in_flight_max, 1, 1_000)
        yield from _between(f"{where}.give_up_after_s", sink.give_up_after_s, 1, 7 * 86_400)
        yield from _between(f"{where}.partitions", sink.partitions, 1, 96)
        yield from _debounce(where, sink.debounce_ms, sink.debounce_events_max, sink.debounce_wait_ms_max)
        if sink.debounce_ms:
            kinds = {other.name: other.kind for other in settings.sinks}
            if sink.kind == "meta":
                yield f"{where}.debounce_ms: not for kind 'meta': one update per POST has no room for a list"
            elif kinds.get(sink.failover_to) == "meta":
                yield f"{where}.failover_to = {sink.failover_to!r}: of kind 'meta', which takes no list (debounce_ms)"
        yield from _between(f"{where}.failover_after_s", sink.failover_after_s, 1, 7 * 86_400)
        if sink.failover_to and (sink.failover_to not in sinks or sink.failover_to == sink.name):
            others = _list(sinks - {sink.name})
            yield f"{where}.failover_to = {sink.failover_to!r}: must be another sink; there are {others}"
        if sink.verify_token is not None and sink.kind != "meta":
            yield f"{where}.verify_token: belongs to kind 'meta', whose handshake it is"
        if sink.previous_secret is not None and sink.kind != "standard":
            yield f"{where}.previous_secret: belongs to kind 'standard'; Meta's format has room for one signature"
    for i, key in enumerate(settings.keys):
        where = f"keys[{i}]"
        if not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
            yield f"{where}.sha256 = {key.sha256!r}: must be 64 lower-case hex digits (`depesche key new` prints them)"
        elif key.sha256 == EMPTY_SHA256:
            yield f"{where}.sha256 = {key.sha256!r}: is of an empty key, which nobody has (`depesche key new`)"
        if not key.numbers and not key.control:
            yield f"{where}.numbers = []: name the numbers this key may send from, or '*' for all"
        if not key.sink and key.numbers:
            yield f"{where}.sink: is missing; name the sink that gets the statuses of what it sends"
        elif key.sink and sinks and key.sink not in sinks:
            yield f"{where}.sink = {key.sink!r}: no such sink; there are {_list(sinks)}"
        yield from _between(f"{where}.requests_per_s_max", key.requests_per_s_max, 0, 100_000)
        for j, name in enumerate(key.numbers):
            if numbers and name != "*" and name not in numbers:
                yield f"{where}.numbers[{j}] = {name!r}: no such number; there are {_list(numbers)}"
    hours: dict[str, Hours] = {}
    for i, opening in enumerate(settings.hours):
        try:
            hours[opening.name] = compile_hours(opening)
        except ValueError as error:
            yield f"hours[{i}].{error}"
            # A route that names them is not wrong for that: it is checked as if they were right.
            hours[opening.name] = compile_hours(replace(opening, time_zone="UTC", open=[], holidays=[], exceptions=[]))
    by_name = {sink.name: sink for sink in settings.sinks}
    if len(settings.routes) > ROUTES_MAX:
        yield f"routes: there are {len(settings.routes)}, at most {ROUTES_MAX}"
    for i, route in enumerate(settings.routes):
        where = f"routes[{i}]"
        for j, name in enumerate(route.then.sinks):
            if sinks and name not in sinks:
                yield f"{where}.then.sinks[{j}] = {name!r}: no such sink; there are {_list(sinks)}"
        yield from _debounce_of_route(f"{where}.then", route.then, by_name)
        for j, name in enumerate(route.when.numbers):
            if numbers and name not in numbers:
                yield f"{where}.when.numbers[{j}] = {name!r}: no such number; there are {_list(numbers)}"
        holders = [("then.holder", route.then.holder)] if route.then.holder else []
        holders += [(f"when.holders[{j}]", name) for j, name in enumerate(route.when.holders)]
        for what, name in holders:
            if sinks and name != BOT and name not in sinks:
                yield f"{where}.{what} = {name!r}: must be {BOT!r} or a sink; there are {_list(sinks)}"
        try:
            compile_route(route, hours)
        except ValueError as error:
            yield f"{where}.{error}"
    consent_settings = settings.customer.consent
    for name, lists in (("stop_words", consent_settings.stop_words), ("start_words", consent_settings.start_words)):
        try:
            words(lists)
        except ValueError as error:
            yield f"customer.consent.{name}: {error}"
    yield from _between("customer.marketing_rest_h", settings.customer.marketing_rest_h, 0, HOURS_MAX)
    yield from _between("log.partitions", settings.log.partitions, 1, 512)
    yield from _between("log.slots", settings.log.slots, 1, 512)
    yield from _between("log.bytes_in_flight_max", settings.log.bytes_in_flight_max, 4_500_000, 2**32)
    kafka = settings.log.kafka
    if kafka.heartbeat_interval_ms * 3 > kafka.session_timeout_ms:
        yield (
            f"log.kafka.heartbeat_interval_ms = {kafka.heartbeat_interval_ms}: must be at most a third of "
            f"session_timeout_ms ({kafka.session_timeout_ms})"
        )
    if kafka.min_insync_replicas > kafka.replication_factor:
        yield (
            f"log.kafka.min_insync_replicas = {kafka.min_insync_replicas}: must not exceed replication_factor "
            f"({kafka.replication_factor})"
        )
    for port in ports(settings):
        yield from _between(f"{port.where}.port", port.port, 0, 65_535)
    yield from clashing_ports(settings)
    yield from _between("receiver.append_timeout_s", settings.receiver.append_timeout_s, 0.1, 20)
    yield from _gateway(settings.gateway)
    yield from _between("gateway.append_timeout_s", settings.gateway.append_timeout_s, 0.1, 60)
    yield from _between("sender.call_timeout_s", settings.sender.call_timeout_s, 1, 300)
    yield from _between("sender.in_flight_max", settings.sender.in_flight_max, 1, 2_000)
    for where, ranges in (("allow", settings.connector.allow), ("deny", settings.connector.deny)):
        for i, text in enumerate(ranges):
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                yield f"connector.{where}[{i}] = {text!r}: is not an address range: {error}"


def _debounce(where: str, silence_ms: int | None, events_max: int | None, wait_ms_max: int | None) -> Iterable[str]:
    bounds = (
        ("debounce_ms", silence_ms, 0, 60_000),
        ("debounce_events_max", events_max, 2, 100),
        ("debounce_wait_ms_max", wait_ms_max, 1, 60_000),
    )
    for name, value, least, most in bounds:
        if value is not None:
            yield from _between(f"{where}.{name}", value, least, most)


def _debounce_of_route(where: str, then: Then, sinks: Mapping[str, SinkSettings]) -> Iterable[str]:
    """Yield what is wrong with how a rule has events joined: each of its sinks must take lists, and whoever stands in
    for one."""
    yield from _debounce(where, then.debounce_ms, then.debounce_events_max, then.debounce_wait_ms_max)
    if not then.debounce_ms:
        return
    said = f"{where}.debounce_ms = {then.debounce_ms}"
    for sink in (sinks[name] for name in dict.fromkeys(then.sinks) if name in sinks):
        stand_in = sinks.get(sink.failover_to)
        if sink.kind == "meta":
            yield (
                f"{said}: not for sink {sink.name!r} of kind 'meta', where one update per POST has no room for a list; "
                "must be 0 or left out, or that sink named by a rule of its own (continue = true)"
            )
        elif stand_in is not None and stand_in.kind == "meta":
            yield (
                f"{said}: not for sink {sink.name!r}, whose failover_to = {stand_in.name!r} is of kind 'meta', which "
                "takes no list; must be 0 or left out, or the stand-in of kind 'standard' or 'kafka'"
            )


def _gateway(gateway: GatewaySettings) -> Iterable[str]:
    yield from _public_url(gateway)
    try:
        listed(gateway.passthrough)
    except ValueError as error:
        yield f"gateway.passthrough: {error}"
    yield from _between("gateway.graph_timeout_s", gateway.graph_timeout_s, 1, 300)
    yield from _between("gateway.graph_in_flight_max", gateway.graph_in_flight_max, 1, 1_000)
    yield from _between("gateway.media_bytes_max", gateway.media_bytes_max, 1, 2**31)
    yield from _between("gateway.media_timeout_s", gateway.media_timeout_s, 1, 3_600)
    if gateway.template_refresh_s:
        yield from _between("gateway.template_refresh_s", gateway.template_refresh_s, 60, 86_400)
    for i, host in enumerate(gateway.media_hosts):
        if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host):
            yield f"gateway.media_hosts[{i}] = {host!r}: must be a name such as 'fbsbx.com'"


def _public_url(gateway: GatewaySettings) -> Iterable[str]:
    url = url_of(gateway.public_url)
    if not gateway.public_url:
        if gateway.host in ANY_HOST:
            yield (
                f"gateway.public_url = '': is needed with gateway.host = {gateway.host!r}, which says not where bots "
                "reach the gateway: http(s)://host[:port][/path]"
            )
    elif url is None or url.query or url.fragment:
        yield f"gateway.public_url = {gateway.public_url!r}: must be http(s)://host[:port][/path], and nothing more"


def _kind_of_sink(where: str, sink: SinkSettings, log: LogSettings) -> Iterable[str]:
    """Yield what is wrong with where a sink is, by its kind."""
    if sink.kind != "kafka":
        if url_of(sink.url) is None:
            yield f"{where}.url = {sink.url!r}: must be http(s)://host[:port]/path without user information"
        if sink.secret is None:
            yield f"{where}.secret: kind {sink.kind!r} needs one; its events are signed with it"
        for name, is_there in (("topic", sink.topic != ""), ("kafka", sink.kafka is not None)):
            if is_there:
                yield f"{where}.{name}: belongs to kind 'kafka'"
        return
    for name, is_there in (("url", sink.url != ""), ("secret", sink.secret is not None)):
        if is_there:
            yield f"{where}.{name}: belongs to kinds 'meta' and 'standard'; a 'kafka' sink has a topic"
    if not TOPIC.fullmatch(sink.topic) or sink.topic in (".", ".."):
        yield f"{where}.topic = {sink.topic!r}: must be a topic's name: 1 to 249 of letters, digits, '.', '_' and '-'"
    elif sink.kafka is None and log.engine == "kafka" and sink.topic.startswith(log.kafka.prefix):
        yield f"{where}.topic = {sink.topic!r}: begins with log.kafka.prefix, under which our own logs are"
    if sink.kafka is None and log.engine != "kafka":
        yield f"{where}.kafka: is missing; with log.engine = {log.engine!r} it must say where the topic is"
    yield from _between(f"{where}.message_bytes_max", sink.message_bytes_max, 1_000, 4_000_000)


def _sources(settings: Settings) -> Iterable[tuple[str, SecretSource]]:
    for i, app in enumerate(settings.apps):
        for j, source in enumerate(app.secrets):
            yield f"apps[{i}].secrets[{j}]", source
        yield f"apps[{i}].verify_token", app.verify_token
    for i, number in enumerate(settings.numbers):
        yield f"numbers[{i}].token", number.token
    for i, sink in enumerate(settings.sinks):
        if sink.secret is not None:
            yield f"sinks[{i}].secret", sink.secret
        if sink.kafka is not None and sink.kafka.sasl_password is not None:
            yield f"sinks[{i}].kafka.sasl_password", sink.kafka.sasl_password
        if sink.previous_secret is not None:
            yield f"sinks[{i}].previous_secret", sink.previous_secret
        if sink.verify_token is not None:
            yield f"sinks[{i}].verify_token", sink.verify_token
    if settings.log.engine == "kafka" and settings.log.kafka.sasl_password is not None:
        yield "log.kafka.sasl_password", settings.log.kafka.sasl_password
    if settings.sandbox is not None:
        if settings.sandbox.app_secret is not None:
            yield "sandbox.app_secret", settings.sandbox.app_secret
        for i, played in enumerate(settings.sandbox.numbers):
            yield f"sandbox.numbers[{i}].token", played.token
        for i, bot in enumerate(settings.sandbox.bots):
            yield f"sandbox.bots[{i}].secret", bot.secret
            yield f"sandbox.bots[{i}].key", bot.key


def _nothing(settings: Settings) -> Iterable[str]:
    """Yield what no deployment is without: keys and routes may be missing where nobody sends, or nobody is answered."""
    needed: tuple[tuple[str, Sequence[object], type, str], ...] = (
        ("apps", settings.apps, App, "Meta's webhooks are received for one"),
        ("numbers", settings.numbers, Number, "messages come to and go from one"),
        ("sinks", settings.sinks, SinkSettings, "events are delivered to one"),
    )
    if settings.sandbox is not None and not any(
        (settings.apps, settings.numbers, settings.sinks, settings.keys, settings.routes)
    ):
        return  # for `depesche sandbox` alone
    for name, given, kind, why in needed:
        if not given:
            wanted = ", ".join(field.encode_name for field in fields(kind) if field.required)
            yield f"{name}: there is none, and {why}; add [[{name}]] with at least {wanted}"


def _names(where: str, names: list[str]) -> Iterable[str]:
    for i, name in enumerate(names):
        if not NAME.fullmatch(name):
            yield f"{where}[{i}].name = {name!r}: must match {NAME.pattern}"
    yield from _unique(where, "name", names)


def _unique(where: str, what: str, values: list[str]) -> Iterable[str]:
    first: dict[str, int] = {}
    for i, value in enumerate(values):
        if value in first:
            yield f"{where}[{i}].{what} = {value!r}: stands already at {where}[{first[value]}]; it must be unique"
        first.setdefault(value, i)


def _between(where: str, value: float, least: float, most: float) -> Iterable[str]:
    if not least <= value <= most:
        yield f"{where} = {value}: must be from {least} to {most}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
