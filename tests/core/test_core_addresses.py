"""Addresses and URLs as text."""

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import Address, join_address, parse_address
from pbkv_cluster.core.locations.urls import MASK, without_password


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:26100", Address("127.0.0.1", 26100)),
        ("gateway.pbkv.svc:1", Address("gateway.pbkv.svc", 1)),
        ("my_host-1:65535", Address("my_host-1", 65535)),
        ("[::1]:26100", Address("::1", 26100)),
        ("[fe80::1%eth0]:7", Address("fe80::1%eth0", 7)),
    ],
)
def test_parts_of_an_address(text: str, address: Address) -> None:
    assert parse_address("endpoint", text) == address
    assert str(address) == text == join_address(*address)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("127.0.0.1:99999", "the port must be a number from 1 to 65535, got '127.0.0.1:99999'"),
        ("127.0.0.1:0", "the port must be a number from 1 to 65535"),
        ("127.0.0.1:-1", "the port must be a number from 1 to 65535"),
        ("127.0.0.1:٣", "the port must be a number from 1 to 65535"),
        ("127.0.0.1:", "the port must be a number from 1 to 65535"),
        ("127.0.0.1", "must be HOST:PORT, got '127.0.0.1'"),
        (":26100", "must be HOST:PORT"),
        ("", "must be HOST:PORT"),
        ("::1:26100", "an IPv6 host must be in brackets"),
        ("[::g]:1", "'::g' in brackets is no IPv6 address"),
        ("[]:1", "'' in brackets is no IPv6 address"),
        ("http://host:1", "must be HOST:PORT without a scheme"),
        ("my host:1", "must be the name or the number of a host, got 'my host'"),
        ("user@host:1", "must be the name or the number of a host"),
    ],
)
def test_what_is_no_address_is_refused_by_the_name_of_its_field(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_address("endpoint", text)
    assert error.value.field == "endpoint"
    assert error.value.problem.startswith(problem)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:se/cret@db:6379/0",
        "redis://me:se#cret@db:6379/0",
        "redis://me:se?cret@db:6379/0",
        "redis://:se/cret/@db",
        "redis://:secret@db:99999/0",
        "redis://db/0?ssl_password=secret",
        "redis://:secret@[::1/0",
        ":secret@db",
    ],
)
def test_a_password_is_masked_even_where_the_url_is_wrong(url: str) -> None:
    shown = without_password(url)
    assert "cret" not in shown
    assert MASK in shown
