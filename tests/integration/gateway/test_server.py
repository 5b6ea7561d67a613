"""The gateway as a process: who gets in, how it stops, and what it says while nothing is behind it."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from resrank.core.server_tls import ServerTls
from resrank.stack.cli.app import run
from resrank.stack.gateway_process import GatewayProcess
from support.certificates import Certificates, make_certificates

NOBODY = "127.0.0.1:1"
BODY = {"query": "q", "documents": ["a", "b"]}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class Silent:
    """A server that takes connections and never says a word."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def wait(self) -> socket.socket:
        """Until somebody asks."""
        return self._listener.accept()[0]


@pytest.fixture
def silent() -> Iterator[Silent]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(30.0)
        yield Silent(listener)


def ask(gateway: GatewayProcess, verify: ssl.SSLContext | bool = True, **body: object) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=30.0, verify=verify) as http:
        return http.post(f"{gateway.url}v2/rerank", json=BODY | body)


def test_without_servers_it_answers_503_or_in_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESRANK_GATEWAY_TIMEOUT_S", "1")
    with GatewayProcess(NOBODY, NOBODY) as gateway:
        failed = ask(gateway)
        assert failed.status_code == 503
        assert "no server answers" in failed.json()["message"]
        kept = ask(gateway, on_failure="retrieval_order")
        assert [result["index"] for result in kept.json()["results"]] == [0, 1]
        scores = [result["relevance_score"] for result in kept.json()["results"]]
        assert 1 > scores[0] > scores[1] > 0
        assert kept.json()["meta"]["reranked"] is False
        assert kept.json()["meta"]["reason"] == kept.headers["x-resrank-reason"] == "unavailable"
        assert kept.headers["x-resrank-reranked"] == "false"
        named = ask(
            gateway, on_failure="retrieval_order", documents=None, document_ids=["b", "a"], return_documents=True
        )
        assert [(result["index"], result["id"]) for result in named.json()["results"]] == [(0, "b"), (1, "a")]
        assert named.json()["meta"]["warnings"][-1] == "documents: the index did not answer, so that there are no texts"
        ready = httpx.get(f"{gateway.url}v1/health/ready", trust_env=False)
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert httpx.get(f"{gateway.url}v1/health/live", trust_env=False).status_code == 200
        metrics = httpx.get(f"{gateway.url}metrics", trust_env=False).text
        assert 'resrank_gateway_not_reranked_total{reason="unavailable",route="/v2/rerank"} 2.0' in metrics
        assert gateway.stop() == 0


def test_a_stop_lets_requests_under_way_finish_and_takes_no_others(
    silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESRANK_GATEWAY_TIMEOUT_S", "4")
    with GatewayProcess(silent.address, silent.address) as gateway, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ask, gateway)
        asked = silent.wait()
        gateway.terminate()
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            ask(gateway)
        answer = under_way.result()
        asked.close()
        assert answer.status_code == 504
        assert "timeout_s of 4 s" in answer.json()["message"]
        assert gateway.stop() == 0


def test_a_second_signal_ends_it_at_once(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESRANK_GATEWAY_TIMEOUT_S", "60")
    with GatewayProcess(silent.address, silent.address) as gateway, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ask, gateway)
        asked = silent.wait()
        gateway.terminate()
        time.sleep(0.5)
        assert gateway.returncode is None
        gateway.terminate()
        for _ in range(150):
            if gateway.returncode is not None:
                break
            time.sleep(0.1)
        assert gateway.returncode == 0
        asked.close()
        assert isinstance(under_way.exception(), httpx.HTTPError) or under_way.result().status_code >= 500


def test_tls_and_certificates_of_callers(certificates: Certificates) -> None:
    def context(name: str | None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=certificates.authority)
        if name is not None:
            made.load_cert_chain(certificates.folder / f"{name}.pem", certificates.folder / f"{name}.key")
        return made

    with GatewayProcess(NOBODY, NOBODY, tls=certificates.served) as gateway:
        assert gateway.url.startswith("https://")
        assert httpx.get(f"{gateway.url}v1/health/live", verify=context("client"), trust_env=False).status_code == 200
        for name in (None, "expired", "stranger"):
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"{gateway.url}v1/health/live", verify=context(name), trust_env=False)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{gateway.url}v1/health/live", trust_env=False)


def test_with_keys_no_certificate_is_asked_for(certificates: Certificates, tmp_path: Path) -> None:
    key = subprocess.run(
        [sys.executable, "-m", "resrank.stack", "gateway", "key", "a-team", "--file", str(tmp_path / "keys")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    verify = ssl.create_default_context(cafile=certificates.authority)
    with GatewayProcess(NOBODY, NOBODY, tls=certificates.served, keys=tmp_path / "keys") as gateway:
        assert ask(gateway, verify).status_code == 401
        with httpx.Client(trust_env=False, verify=verify, headers={"Authorization": f"Bearer {key}"}) as http:
            assert http.get(f"{gateway.url}v1/models").json()["data"][0]["id"] == "resrank"
        # A request's line is written when its answer has been sent.
        deadline = time.monotonic() + 20
        while "caller=a-team" not in gateway.log_tail():
            assert time.monotonic() < deadline, gateway.log_tail()
            time.sleep(0.05)
        assert key not in gateway.log_tail()


def test_an_expired_certificate_of_its_own_is_the_callers_to_refuse(certificates: Certificates) -> None:
    expired = ServerTls(certificates.folder / "late.pem", certificates.folder / "late.key")
    with GatewayProcess(NOBODY, NOBODY, tls=expired) as gateway:
        verify = ssl.create_default_context(cafile=certificates.authority)
        with pytest.raises(httpx.ConnectError, match="expired"):
            httpx.get(f"{gateway.url}v1/health/live", verify=verify, trust_env=False)


def test_a_hundred_megabytes_are_answered_with_a_sentence() -> None:
    with GatewayProcess(NOBODY, NOBODY) as gateway, httpx.Client(trust_env=False, timeout=60.0) as http:
        answer = http.post(
            f"{gateway.url}rerank", content=b" " * 100_000_000, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.json()["error"] == "body: too many bytes (limit 16777216, got 100000000)"
        documents = b'{"query": "q", "documents": [' + b",".join([b'"x"'] * 1_000_000) + b"]}"
        answer = http.post(f"{gateway.url}rerank", content=documents, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert answer.json()["message"] == "documents: too many in one request (limit 1000, got more)"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--on-failure", "maybe"), 2, "on_failure: must be 'error' or 'retrieval_order'"),
        (("--host", "0.0.0.0"), 2, "host: 0.0.0.0 is beyond loopback"),
        (("--keys", "/nowhere/keys"), 2, "keys: /nowhere/keys cannot be read"),
        (("--config", "/nowhere/gateway.yaml"), 2, "/nowhere/gateway.yaml: cannot be read"),
        (("--triton-url", "http://x"), 2, "triton: 'http://x' is no address"),
        (("key", "a b", "--file", "keys"), 2, "name: must be 1 to 64"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    arguments: tuple[str, ...], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["gateway", *arguments]) == code
    assert sentence in capsys.readouterr().err


def test_a_taken_port_is_one_sentence(silent: Silent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gateway", "--port", str(silent.port)]) == 1
    assert f"cannot listen on {silent.address} (Address already in use)" in capsys.readouterr().err


def test_the_command_serves_until_a_signal() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "resrank.stack", "gateway", "--port", "0", "--triton-url", NOBODY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        match = re.fullmatch(r"resrank.gateway listening on (http://127.0.0.1:\d+)\n", process.stdout.readline())
        assert match
        assert httpx.get(f"{match[1]}/v1/health/live", trust_env=False).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
