"""Which addresses we connect to on behalf of a configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.addresses import AddressGuard

PUBLIC = ["93.184.216.34", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2a03:2880:f003::1", "::ffff:1.1.1.1"]

NOT_PUBLIC = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "169.254.169.254", "169.254.170.2", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "::ffff:0:127.0.0.1",
    "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2001::7f00:1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1",
    "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "4000::1", "5f00::1",
]  # fmt: skip

NO_ADDRESS = ["", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "127.0.0.1/32", "127.0.0.1 ", "[::1]", "1.1.1.1:80"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    """Bots live on the Internet."""
    assert AddressGuard().permits(address)


@pytest.mark.parametrize("address", [*NOT_PUBLIC, *NO_ADDRESS])
def test_what_is_not_public_is_refused(address: str) -> None:
    """A sink's URL must not reach our own network, or a cloud's credentials, however the address is wrapped."""
    assert not AddressGuard().permits(address)


def test_an_operator_may_allow_a_network_of_the_own_cluster() -> None:
    """Bots also live next door; a mapped form of an allowed address is the same address."""
    guard = AddressGuard(allow=["10.1.0.0/16", "fd12:3456::/32"])
    assert guard.permits("10.1.2.3")
    assert guard.permits("::ffff:10.1.2.3")
    assert guard.permits("fd12:3456::1")
    assert not guard.permits("10.2.0.1")
    assert not guard.permits("fd12:3457::1")


def test_what_is_denied_is_refused_even_when_allowed_or_public() -> None:
    """The narrower wish of an operator is the forbidding one."""
    guard = AddressGuard(allow=["10.0.0.0/8"], deny=["10.0.0.0/24", "1.1.1.0/24"])
    assert guard.permits("10.0.1.1")
    assert not guard.permits("10.0.0.5")
    assert not guard.permits("1.1.1.1")
    assert not guard.permits("::ffff:1.1.1.1")


@pytest.mark.parametrize("network", ["10.0.0.1/8", "bots.example", "", "10.0.0.0/33"])
def test_a_list_that_is_no_list_of_networks_starts_nothing(network: str) -> None:
    """A typo in a security setting is an error, not a rule that never matches."""
    with pytest.raises(ValueError, match=r"network|host bits"):
        AddressGuard(deny=[network])


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_the_address_inside(address: object) -> None:
    """Both forms lead to the same machine."""
    guard = AddressGuard(allow=["10.0.0.0/8"])
    assert guard.permits(str(address)) == guard.permits(f"::ffff:{address}")
