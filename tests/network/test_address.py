"""Addresses as people write them."""

from __future__ import annotations

import pytest

from planc.errors import InputError
from runtime.channels.address import Address, parse, parse_listen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpc://localhost:70", Address("localhost", 70)),
        ("grpcs://bob.example:7000/", Address("bob.example", 7000, secure=True)),
        ("grpc://[::1]:5", Address("::1", 5)),
        ("unix:/tmp/x", Address(path="/tmp/x")),
        ("unix:///tmp/x", Address(path="/tmp/x")),
    ],
)
def test_addresses_are_read_and_written(text: str, expected: Address) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "bob:70",
        "grpc://bob",
        "grpc://bob:0",
        "grpc://:70",
        "grpc://b:70000",
        "grpc://::1:5",
        "unix:",
        "unix:a\0b",
        "",
    ],
)
def test_what_is_no_address_says_what_one_is(text: str) -> None:
    with pytest.raises(InputError, match=r"expected|write"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [("127.0.0.1:0", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False), ("h:1", False)],
)
def test_whether_others_can_reach_it(text: str, local: bool) -> None:
    assert parse_listen(text, secure=False).local is local


def test_the_path_of_a_socket_is_no_address_of_a_network() -> None:
    with pytest.raises(InputError, match="no address of a network"):
        _ = Address(path="/tmp/x").target
