"""The images of sidecar and gateway and the composition, as far as they can be held to something without an engine."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from resrank.stack.sidecar_process import SidecarProcess
from support.certificates import Certificates, make_certificates

ROOT = Path(__file__).parents[3]
DOCKER, COMPOSE = ROOT / "deploy" / "docker", ROOT / "deploy" / "compose"


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage of the Dockerfile."""
    lines = [line for line in (DOCKER / "services.Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found: dict[str, list[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found[rest.partition(" AS ")[2]] = []
        elif found and word:
            found[list(found)[-1]].append((word, rest.strip()))
    return found


@pytest.mark.parametrize("target", ["retrieval", "gateway"])
def test_an_image_serves_one_module_and_not_as_root(target: str) -> None:
    instructions = stages()[target]
    assert [rest for word, rest in instructions if word == "USER"] == ["1000:1000"]
    assert json.loads(instructions[-1][1]) == ["python", "-m", f"resrank.{target}"]
    copied = [rest.split() for word, rest in instructions if word == "COPY"]
    rules = (DOCKER / "services.Dockerfile.dockerignore").read_text().splitlines()
    for _, source, place in copied:
        assert f"!{source}" in rules
        assert place == "/usr/local/bin/healthcheck"
        assert os.access(ROOT / source, os.X_OK)


def test_the_context_is_that_of_the_triton_image() -> None:
    def folders(name: str) -> set[str]:
        return {rule for rule in (DOCKER / name).read_text().splitlines() if not rule.startswith("!deploy/")}

    assert folders("services.Dockerfile.dockerignore") == folders("Dockerfile.dockerignore")


def check(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOCKER / program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_sidecar_is_healthy_while_it_serves(tmp_path: Path) -> None:
    socket = Path("/tmp") / f"resrank-health-{os.getpid()}"
    assert check("healthcheck-retrieval", RESRANK_RETRIEVAL_SOCKET=str(socket)).returncode == 1
    with SidecarProcess(tmp_path / "index", socket=socket):
        done = check("healthcheck-retrieval", RESRANK_RETRIEVAL_SOCKET=str(socket))
        assert (done.returncode, done.stderr) == (0, "")


def test_a_gateway_that_nobody_reaches_is_not_healthy() -> None:
    done = check("healthcheck-gateway", RESRANK_GATEWAY_PORT="9")
    assert done.returncode == 1
    assert done.stderr.startswith("healthcheck: port 9: ")


class Alive(BaseHTTPRequestHandler):
    """Says that it is alive, and nothing more."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v1/health/live" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def alive(certificates: Certificates | None = None) -> Iterator[int]:
    """The port of a server that is alive; with certificates it wants one of its callers."""
    with HTTPServer(("127.0.0.1", 0), Alive) as server:
        if certificates is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.authority)
            context.load_cert_chain(certificates.served.certificate, certificates.served.key)
            context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_gateway_is_asked_where_its_file_says(tmp_path: Path, encrypted: bool) -> None:
    certificates = make_certificates(tmp_path) if encrypted else None
    with alive(certificates) as port:
        fields: dict[str, object] = {"port": port}
        if certificates is not None:
            served = certificates.served
            fields |= {"tls_certificate": str(served.certificate), "tls_key": str(served.key)}
            fields["tls_client_ca"] = str(certificates.authority)
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(fields))
        done = check("healthcheck-gateway", RESRANK_GATEWAY_CONFIG=str(tmp_path / "gateway.yaml"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gateway_whose_settings_are_wrong_is_not_healthy() -> None:
    done = check("healthcheck-gateway", RESRANK_GATEWAY_CONFIG="/nowhere/gateway.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("healthcheck: ")
    assert len(done.stderr.splitlines()) == 1


class Page:
    """A metrics page as Triton's, at the address that the hook asks."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.done = Counter("resrank_requests", "x", ["model"], registry=registry).labels("reranker")
        self.waiting = Gauge("resrank_waiting_requests", "x", ["model"], registry=registry).labels("reranker")
        self._server, self._thread = start_http_server(0, "127.0.0.1", registry)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def page() -> Iterator[Page]:
    shown = Page()
    yield shown
    shown.close()


def drain(page: Page, tmp_path: Path, *seconds: float) -> subprocess.Popen[str]:
    """The hook with the page's address and less patience."""
    text = (DOCKER / "drain").read_text()
    for name, value in {"PAGE": repr(page.url), "LEAST_S": "0.5", "STILL_S": "1.0"}.items():
        text, changed = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert changed == 1
    (tmp_path / "drain").write_text(text)
    command = [sys.executable, tmp_path / "drain", *map(str, seconds)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_stop_waits_for_what_is_under_way(page: Page, tmp_path: Path) -> None:
    page.waiting.set(1)
    with drain(page, tmp_path, 30) as hook:
        time.sleep(3)
        assert hook.poll() is None, "a request waits"
        page.waiting.set(0)
        page.done.inc()
        assert hook.wait(20) == 0


def test_a_stop_waits_for_who_ends_later_and_may_still_ask(page: Page, tmp_path: Path) -> None:
    began = time.monotonic()
    with drain(page, tmp_path, 30, 4) as hook:
        assert hook.wait(20) == 0
        assert time.monotonic() - began >= 4


def test_a_stop_does_not_wait_for_ever(page: Page, tmp_path: Path) -> None:
    page.waiting.set(1)
    with drain(page, tmp_path, 2) as hook:
        assert hook.stderr is not None
        assert hook.stderr.read() == "drain: requests were still under way after 2 s\n"
        assert hook.wait(20) == 1


def test_the_composition_is_closed_but_for_the_gateway() -> None:
    composed = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    services = composed["services"]
    assert set(services) == {"triton", "retrieval", "gateway"}
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert ("ports" in service) == (name == "gateway")
    assert composed["networks"]["stack"] == {"internal": True}
    mounts = [service.get("volumes", []) for service in (services["triton"], services["retrieval"])]
    assert all("run:/run/resrank" in volumes for volumes in mounts), "the socket is shared"
    # What the image itself is started with, but for the page of metrics, which the other container has to reach.
    image = json.loads(re.search(r"^CMD (\[.*?\])$", _joined(DOCKER / "Dockerfile"), re.MULTILINE)[1])  # type: ignore[index]
    differing = set(image) ^ set(services["triton"]["command"])
    assert differing == {"--metrics-address=127.0.0.1", "--metrics-address=0.0.0.0"}


def _joined(file: Path) -> str:
    return re.sub(r"\\\n\s*", "", file.read_text())
