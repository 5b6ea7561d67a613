from __future__ import annotations

import socket

import pytest

from resrank.core.errors import InvalidInputError, StackError
from resrank.stack.ports import choose_ports, is_free


def test_chosen_ports_are_free_and_different() -> None:
    ports = choose_ports("127.0.0.1", *[None] * 20)
    assert len(set(ports)) == 20
    assert all(is_free("127.0.0.1", port) for port in ports)


def test_given_ports_are_kept_and_a_taken_one_is_refused() -> None:
    (free,) = choose_ports("127.0.0.1", None)
    assert choose_ports("127.0.0.1", free, None)[0] == free
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(StackError, match=rf"port {port} on 127\.0\.0\.1 is in use"):
            choose_ports("127.0.0.1", port)


@pytest.mark.parametrize("port", [None, 8001])
def test_an_address_that_is_not_this_machines_is_not_called_in_use(port: int | None) -> None:
    with pytest.raises(StackError, match=r"cannot listen on 192\.0\.2\.1, port (any|8001) \(Cannot assign"):
        choose_ports("192.0.2.1", port)  # of TEST-NET-1, which no machine has


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_with_brackets_and_without(host: str) -> None:
    (free,) = choose_ports(host, None)
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", free))
        taken.listen()
        assert not is_free(host, free)
        with pytest.raises(StackError, match=rf"port {free} on .* is in use"):
            choose_ports(host, free)
    assert is_free(host, free)


@pytest.mark.parametrize("host", ["", "[]", " ", "a b", "127.0.0.1\n"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^host: .* is no address to listen on"):
        choose_ports(host, None)


def test_a_port_for_two_servers_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"ports: 9001 is given twice"):
        choose_ports("127.0.0.1", 9001, None, 9001)
