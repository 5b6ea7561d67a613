from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.client import ResRankClient, TlsConfig
from resrank.client.deadline import Deadline
from resrank.client.metadata import call_metadata
from resrank.client.settings import ClientSettings
from resrank.core.errors import InvalidInputError, ServerUnavailableError


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"timeout_s": None}, "timeout_s"),
        ({"timeout_s": 10**400}, "timeout_s"),
        ({"triton": ""}, "triton"),
        ({"triton": None}, "triton"),
        ({"retrieval": ""}, "retrieval"),
        ({"retrieval": "::1"}, "retrieval"),
        ({"max_attempts": "4"}, "max_attempts"),
        ({"max_in_flight": 2.5}, "max_in_flight"),
        ({"tls": True}, "tls"),
        ({"headers": [("a", "b")]}, "headers"),
        ({"headers": {7: "b"}}, "headers"),
        ({"headers": {"x-bin": "b"}}, "headers"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"headers": {"not a key": "x"}}, "headers"),
        ({"triton": "triton.example:8001", "bearer_token": "t"}, "bearer_token"),
        ({"retrieval": "10.0.0.7:8003", "bearer_token": "t"}, "bearer_token"),
    ],
)
def test_a_setting_out_of_range_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ClientSettings(**options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "options",
    [
        {"triton": "localhost:8001"},
        {"triton": "127.0.0.1:8001", "retrieval": "[::1]:8003"},
        {"triton": "unix:/run/triton.sock"},
        {"triton": "triton.example:8001", "tls": TlsConfig()},
    ],
)
def test_a_token_may_stay_on_this_machine_or_travel_encrypted(options: dict[str, Any]) -> None:
    assert call_metadata(ClientSettings(bearer_token="t", **options)) == (("authorization", "Bearer t"),)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"bearer_token": lambda: b"token"}, "bearer_token"),
        ({"bearer_token": b"token"}, "bearer_token"),
        ({"headers": {"a": 7}}, "headers['a']"),
    ],
)
def test_metadata_that_is_no_text_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call_metadata(ClientSettings(**options))
    assert caught.value.field == field


@pytest.mark.parametrize("timeout_s", [9e9, 1e300, 10**30])
def test_a_long_deadline_is_no_short_one(timeout_s: float) -> None:
    settings = ClientSettings(timeout_s=timeout_s)
    left_s = Deadline(settings.timeout_s).remaining_s()
    assert 3e7 < left_s < 1e8
    # Nobody listens there: the time is not what is over.
    with ResRankClient("127.0.0.1:9", max_attempts=1) as client, pytest.raises(ServerUnavailableError):
        client.embed_queries(["x"], timeout_s=timeout_s)


def test_secrets_are_not_in_the_representation() -> None:
    settings = ClientSettings(bearer_token="t0ken", headers={"triton-grpc-protocol-key": "s3cret"})
    assert "t0ken" not in repr(settings)
    assert "s3cret" not in repr(settings)


def test_mutual_tls_needs_both_halves() -> None:
    with pytest.raises(InvalidInputError, match="both"):
        TlsConfig(certificate_chain=Path("client.pem"))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with (
        ResRankClient(tls=TlsConfig(root_certificates=path)) as client,
        pytest.raises(InvalidInputError, match=r"tls\.root_certificates: .*ca\.pem"),
    ):
        client.encoder_sha256()


def test_a_token_that_expires_is_asked_for_at_every_call() -> None:
    tokens = iter(["first", "second"])
    settings = ClientSettings(bearer_token=lambda: next(tokens))
    assert call_metadata(settings) == (("authorization", "Bearer first"),)
    assert call_metadata(settings) == (("authorization", "Bearer second"),)


@pytest.mark.parametrize("value", ["token\n", "schlüssel", "\x00"])
def test_what_grpc_cannot_send_is_refused_by_name_and_not_shown(value: str) -> None:
    with pytest.raises(InvalidInputError, match="printable ASCII") as caught:
        call_metadata(ClientSettings(bearer_token=lambda: value))
    assert caught.value.field == "bearer_token"
    assert value not in str(caught.value)
    with pytest.raises(InvalidInputError, match=r"headers\['x-key'\]: must be printable ASCII"):
        call_metadata(ClientSettings(headers={"X-Key": value}))
