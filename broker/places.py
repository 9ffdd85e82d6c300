"""Where a configuration listens and where it delivers to: ports that two parts would want, urls no POST would reach.

Judged is what can be judged without the network: names are resolved, and what they resolve to is judged by the same
rule, when a connection is made (`workers.connector`).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from itertools import combinations
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from broker.core.addresses import AddressGuard
from schemas.settings import ConnectorSettings, Settings, SinkSettings

ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104  # compared, not listened on
ANY = "*"
"""Every address of this machine."""
LOCALHOST = ("127.0.0.1", "::1")


class Port(NamedTuple):
    """A port somebody listens on. `process`: which one of several processes that is, where the log allows several."""

    where: str
    host: str
    port: int
    process: str


def ports(settings: Settings) -> list[Port]:
    """Return every port of a configuration."""
    found = [
        Port("receiver", settings.receiver.host, settings.receiver.port, "receiver"),
        Port("gateway", settings.gateway.host, settings.gateway.port, "gateway"),
        Port("admin", settings.admin.host, settings.admin.port, "all"),
    ]
    if settings.sandbox is not None:
        found.append(Port("sandbox", settings.sandbox.host, settings.sandbox.port, "sandbox"))
        bots = enumerate(settings.sandbox.bots)
        found += [Port(f"sandbox.bots[{i}]", "127.0.0.1", bot.port, "sandbox") for i, bot in bots]
    return found


def clashing_ports(settings: Settings) -> Iterable[str]:
    """Yield each port that is taken by the time a second part wants it. With the embedded log all parts are one
    process; on Kafka receiver and gateway may run on hosts of their own and have the same port there."""
    is_one_process = settings.log.engine == "embedded"
    for first, second in combinations(ports(settings), 2):
        meet = is_one_process or first.process == second.process or "all" in (first.process, second.process)
        if meet and first.port == second.port != 0 and _is_same_host(first.host, second.host):
            yield (
                f"{second.where}.port = {second.port}: {first.where}.port is the same on {second.host or 'this host'}; "
                "each needs its own"
            )


def _is_same_host(first: str, second: str) -> bool:
    """Whether two hosts to listen on have an address in common. IPv4 and IPv6 are apart: `::` is listened on alone."""
    return any(
        version == other and (one == another or ANY in (one, another))
        for version, one in _listened(first)
        for other, another in _listened(second)
    )


def _listened(host: str) -> list[tuple[int, str]]:
    """Return the addresses a host stands for, by IP version; a name stands for itself."""
    if host in ("", "localhost"):
        return [(4, LOCALHOST[0] if host else ANY), (6, LOCALHOST[1] if host else ANY)]
    try:
        address = ip_address(host)
    except ValueError:
        return [(4, host), (6, host)]
    return [(address.version, ANY if address.is_unspecified else str(address))]


def url_of(text: str) -> SplitResult | None:
    """Return the parts of an http(s) url that names a host and no user; None for anything else."""
    try:
        url = urlsplit(text)
        is_right = url.port != 0  # reading it judges it
    except ValueError:
        return None
    is_right = is_right and url.scheme in ("http", "https") and bool(url.hostname) and "@" not in url.netloc
    return url if is_right else None


def unreachable_sink(where: str, sink: SinkSettings, connector: ConnectorSettings) -> Iterable[str]:
    """Yield why no event would ever be delivered to a sink whose url names an address, or this machine itself."""
    url = url_of(sink.url)
    if url is None or sink.kind == "kafka":
        return  # told already, or without one
    host = (url.hostname or "").rstrip(".")
    try:
        addresses: tuple[str, ...] = (str(ip_address(host)),)
    except ValueError:
        if host != "localhost" and not host.endswith(".localhost"):
            return
        addresses = LOCALHOST
    try:
        guard = AddressGuard(connector.allow, connector.deny)
        is_denied = not any(AddressGuard(("0.0.0.0/0", "::/0"), connector.deny).permits(each) for each in addresses)
    except ValueError:
        return  # a range is wrong and told
    if any(guard.permits(each) for each in addresses):
        return
    if is_denied:
        yield f"{where}.url = {sink.url!r}: is in connector.deny, every delivery would be refused; name another address"
        return
    one = ip_address(addresses[0])
    mapped = getattr(one, "ipv4_mapped", None) or one
    yield (
        f"{where}.url = {sink.url!r}: is not a public address, every delivery would be refused; name another one, or "
        f'its range in connector.allow, such as "{mapped}/{mapped.max_prefixlen}"'
    )
