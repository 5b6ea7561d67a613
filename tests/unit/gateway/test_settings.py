from __future__ import annotations

from pathlib import Path

import pytest

from resrank.core.errors import InvalidInputError
from resrank.gateway.settings import read_settings


def test_an_option_goes_before_a_variable_and_a_variable_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("port: 1\ntimeout_s: 2\nmodels: [one, two]\nmax_documents: 7\n")
    monkeypatch.setenv("RESRANK_GATEWAY_TIMEOUT_S", "3")
    monkeypatch.setenv("RESRANK_GATEWAY_PORT", "3")
    settings = read_settings(file, port=4)
    assert (settings.port, settings.timeout_s, settings.max_documents) == (4, 3.0, 7)
    assert settings.models == ("one", "two")
    monkeypatch.setenv("RESRANK_GATEWAY_MODELS", "three, *")
    assert read_settings(file).models == ("three", "*")


def test_the_form_of_the_log_has_its_variables_and_no_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("log_format: json\n")
    monkeypatch.setenv("LOG_FORMAT", "combined")
    assert (read_settings().log_format, read_settings(file).log_format) == ("text", "json")
    monkeypatch.setenv("RESRANK_LOG_FORMAT", "json")
    assert read_settings().log_format == "json"
    monkeypatch.setenv("RESRANK_GATEWAY_LOG_FORMAT", "text")
    assert read_settings(file).log_format == "text"
    assert read_settings(file, log_format="json").log_format == "json"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("log_format: xml", "log_format: must be 'text' or 'json'"),
        ("prot: 1", "prot: unknown field; did you mean port?"),
        ("port: 70000", r"port: must be less than or equal to 65535 \(limit 65535, got 70000\)"),
        ("timeout_s: 0", "timeout_s: must be greater than 0"),
        ("max_documents: 200000", "max_documents: must be less than or equal to 100000"),
        ("models: []", "models: "),
        ("on_failure: maybe", "on_failure: must be 'error' or 'retrieval_order'"),
        ("- 1", "must hold fields"),
        ("search_route: client", "search_route: 'client' needs the sidecar's address"),
        ("host: 0.0.0.0", "host: 0.0.0.0 is beyond loopback"),
        ("upstream_tls_key: a", "tls: mutual TLS needs both"),
        ("tls_key: a", "tls_certificate: a certificate and its key are needed"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(content)
    with pytest.raises(InvalidInputError, match=sentence):
        read_settings(file)


def test_beyond_loopback_it_takes_encryption_and_keys_or_insistence() -> None:
    assert read_settings(host="0.0.0.0", insecure=True).host == "0.0.0.0"
    with pytest.raises(
        InvalidInputError, match="--tls-certificate and --tls-key, and --keys or the setting tls_client_ca"
    ):
        read_settings(host="0.0.0.0", keys=Path("keys"))


def test_who_names_no_model_means_this_one() -> None:
    settings = read_settings(models="resrank,rerank-v3.5")
    assert settings.serves(None)
    assert settings.serves("rerank-v3.5")
    assert not settings.serves("gpt")
    assert read_settings(models="resrank,*").serves("gpt")
