"""Which addresses we connect to on behalf of a configuration: public ones, unless an operator says otherwise.

A sink's URL is written by people who may not run this network, and names resolve to whatever their owner likes. Nothing
of ours may be reached through us: loopback, private networks, the metadata service of a cloud. Judged is the final
address, after resolution, however it is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that is public in IPv6. Outside lie loopback, link-local, site-local, unique local, multicast, IPv4-compatible
addresses and both NAT64 prefixes (64:ff9b::/96 and 64:ff9b:1::/48), which lead to any IPv4 address."""

NOT_PUBLIC = (
    IPv6Network("2001::/23"),  # IETF assignments, among them Teredo (2001::/32), which wraps IPv4 addresses
    IPv6Network("2002::/16"),  # 6to4, which wraps them, too
    IPv6Network("3fff::/20"),  # documentation
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
)
"""Python 3.11 calls most of these global."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class AddressGuard:
    """An operator's lists over the rule: refused if denied, else allowed if allowed, else only if public."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        """Take networks in CIDR notation. Raises `ValueError` for what is none."""
        self._allow = [ip_network(text) for text in allow]
        self._deny = [ip_network(text) for text in deny]

    def permits(self, text: str) -> bool:
        """Whether an address may be connected to. What is no address is not permitted."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        address = _unwrapped(address)
        if _is_in(address, self._deny):
            return False
        return _is_in(address, self._allow) or _is_public(address)


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address inside a mapped one (::ffff:127.0.0.1): that is where the packets go."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved or _is_in(address, NOT_PUBLIC):
        return False
    return isinstance(address, IPv4Address) or address in GLOBAL_UNICAST
