"""What leads to this machine, what a proxy may carry, and what is no address."""

from __future__ import annotations

import pytest

from resrank.core.addresses import (
    NO_PROXY,
    bare_host,
    channel_options,
    check_target,
    is_local,
    is_local_url,
    join_address,
)
from resrank.core.errors import InvalidInputError

LOCAL = [
    "localhost:8001",
    "LOCALHOST.:8001",
    "model.localhost:8001",
    "localhost",
    "127.0.0.1:8001",
    "127.9.9.9:1",
    "127.1:8001",
    "0.0.0.0:8001",
    "[::1]:8001",
    "[::]:8001",
    "[::ffff:127.0.0.1]:8001",
    "dns:localhost:8001",
    "dns:///127.0.0.1:8001",
    "ipv4:127.0.0.1:80,127.0.0.2:80",
    "ipv6:[::1]:80",
    "unix:/run/x.sock",
    "unix:x.sock",
    "unix:///run/x.sock",
    "unix-abstract:x",
]
ELSEWHERE = [
    "triton:8001",
    "localhost.example:8001",
    "127.example:8001",
    "10.0.0.5:8001",
    "[2001:db8::1]:8001",
    "[::ffff:10.0.0.5]:8001",
    "dns:triton:8001",
    "dns://10.0.0.5/localhost:8001",
    "ipv4:127.0.0.1:80,10.0.0.5:80",
    "unix",
    "localhost@example.com:8001",
]


@pytest.mark.parametrize("target", LOCAL)
def test_no_proxy_stands_before_this_machine(target: str) -> None:
    assert is_local(target)
    assert channel_options(target) == NO_PROXY == (("grpc.enable_http_proxy", 0),)


@pytest.mark.parametrize("target", ELSEWHERE)
def test_other_addresses_follow_the_environment(target: str) -> None:
    assert not is_local(target)
    assert channel_options(target) == ()


def test_pages_of_this_machine() -> None:
    assert is_local_url("http://[::1]:8002/metrics")
    assert is_local_url("http://user@localhost:8002/metrics")
    assert not is_local_url("http://triton:8002/localhost")


def test_an_ipv6_address_has_brackets_beside_a_port() -> None:
    assert join_address("::1", 8001) == join_address("[::1]", 8001) == "[::1]:8001"
    assert join_address("triton", 8001) == "triton:8001"
    assert (bare_host("[::1]"), bare_host("::1"), bare_host("triton")) == ("::1", "::1", "triton")


@pytest.mark.parametrize("target", [*LOCAL, *ELSEWHERE, "dns:8001", "passages_2:8001"])
def test_what_grpc_reads_is_an_address(target: str) -> None:
    assert check_target("triton", target) == target


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("", "no address: give host:port"),
        (" ", "white space"),
        ("localhost:8001\n", "white space"),
        ("lo calhost:8001", "white space"),
        ("höst:8001", "not ASCII"),
        ("http://localhost:8001", "give host:port, without http://"),
        ("grpc://localhost:8001", "without grpc://"),
        ("::1", "an IPv6 address wants brackets"),
        ("::1:8001", "an IPv6 address wants brackets"),
        ("[::1]8001", "is no address"),
        ("localhost:", "is no address"),
        ("localhost:http", "is no address"),
        (":8001", "is no address"),
        ("localhost:8001/x", "is no address"),
        ("dns:///", "is no address as dns has them"),
        ("dns:", "is no address as dns has them"),
        ("unix:", "is no address as unix has them"),
        ("ipv4:x", "is no address as ipv4 has them"),
        ("ipv4:127.0.0.1", "is no address as ipv4 has them"),
        ("ipv6:::1:80", "is no address as ipv6 has them"),
        ("localhost:0", "the port of 'localhost:0' is none: 1 to 65535"),
        ("localhost:65536", "1 to 65535"),
        (8001, "must be an address, host:port, not int"),
        (None, "must be an address, host:port, not NoneType"),
    ],
)
def test_what_is_none_is_named(target: object, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^retrieval: ") as caught:
        check_target("retrieval", target)
    assert problem in str(caught.value)
