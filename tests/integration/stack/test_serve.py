from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resrank.core.errors import StackError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.export.manifest import ManifestError, Runtime
from resrank.loadtest.server_metrics import read_metrics
from resrank.retrieval.local.catalog import LocalCatalog
from resrank.retrieval.local.lock import read_owner
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.quota import NO_QUOTA
from resrank.retrieval.records import Encoder, Record, RecordBatch
from resrank.stack import local_stack
from resrank.stack.local_stack import LocalStack
from resrank.stack.ports import choose_ports
from resrank.stack.sidecar_process import SidecarProcess
from support.tiny_manifest import ENCODER_SHA256, make_manifest, write_tiny_manifest


@pytest.fixture
def exported(repository: Path) -> Path:
    """The manifest tells of engines without files of their own, since the repository has none."""
    models = make_manifest().models
    fileless = {model: facts.model_copy(update={"onnx_sha256": {}}) for model, facts in models.items()}
    write_tiny_manifest(repository, models=fileless)
    return repository


@dataclass
class Served:
    process: subprocess.Popen[str]
    triton: str
    sidecar: str
    family: list[psutil.Process]

    def segments(self) -> list[str]:
        return [name for name in os.listdir("/dev/shm") if f"_resrank_{self.process.pid}_" in name]

    def member(self, part: str) -> psutil.Process:
        return next(process for process in self.family if part in " ".join(process.cmdline()))

    def gone(self, timeout_s: float = 30) -> bool:
        deadline = time.monotonic() + timeout_s
        while any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in self.family):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def command(repository: Path, index: Path, ports: list[int]) -> list[str]:
    names = ("--triton-port", "--metrics-port", "--retrieval-port", "--retrieval-metrics-port")
    options = zip(names, map(str, ports), strict=True)
    flat = [word for option in options for word in option]
    return [sys.executable, "-m", "resrank.stack", "serve", str(repository), "--index", str(index), *flat]


@contextmanager
def serving(repository: Path, index: Path) -> Iterator[Served]:
    ports = choose_ports("127.0.0.1", None, None, None, None)
    with subprocess.Popen(
        command(repository, index, ports), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "Retrieval sidecar (gRPC)" in line:
                    break
            else:
                raise AssertionError("".join(said))
            assert re.search(rf"Triton \(gRPC\) +127\.0\.0\.1:{ports[0]}", "".join(said))
            family = psutil.Process(process.pid).children(recursive=True)
            yield Served(process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[2]}", family)
        finally:
            process.kill()


def echo(address: str, text: str) -> str:
    tensor = triton_grpc.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
    with triton_grpc.InferenceServerClient(address) as client:
        return client.infer("echo", [tensor]).as_numpy("ECHO")[0, 0].decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_once_what_is_in_flight_is_answered(
    exported: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(exported, tmp_path / "index") as served, ThreadPoolExecutor(1) as caller:
        assert echo(served.triton, "a") == "a"
        with grpc.insecure_channel(served.sidecar) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert served.segments()
        answer = caller.submit(echo, served.triton, "slow")
        time.sleep(1)
        served.process.send_signal(number)
        assert answer.result() == "slow"
        served.process.communicate(timeout=60)
        assert served.process.returncode == 0
        assert served.gone(0)
        assert served.segments() == []


def test_a_killed_stack_takes_its_servers_along(exported: Path, tmp_path: Path) -> None:
    with serving(exported, tmp_path / "index") as served:
        served.process.kill()
        assert served.gone()
        assert served.segments() == []


@pytest.mark.parametrize(
    ("part", "name"), [("resrank.retrieval", "retrieval sidecar"), ("bin/tritonserver", "tritonserver")]
)
def test_a_dead_server_ends_the_stack(exported: Path, tmp_path: Path, part: str, name: str) -> None:
    with serving(exported, tmp_path / "index") as served:
        served.member(part).kill()
        _, errors = served.process.communicate(timeout=60)
        assert served.process.returncode == 1
        assert f"Error: {name} was killed by SIGKILL. Its last lines:" in errors
        assert served.gone(0)
        assert served.segments() == []


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "was stopped (SIGSTOP)")]
)
def test_a_dead_model_process_ends_the_stack_and_what_waits_for_it(
    exported: Path, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    with serving(exported, tmp_path / "index") as served, ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(echo, served.triton, "slow")
        time.sleep(0.5)
        began = time.monotonic()
        served.member("triton_python_backend_stub").send_signal(number)
        assert isinstance(waiting.exception(timeout=60), triton_grpc.InferenceServerException)
        assert time.monotonic() - began < 5
        _, errors = served.process.communicate(timeout=60)
        assert served.process.returncode == 1
        assert f"Error: tritonserver: the process of model instance echo_0_0 {words}" in errors
        assert served.gone(5)
        assert served.segments() == []


@pytest.mark.parametrize("part", ["resrank.retrieval", "bin/tritonserver"])
def test_a_stopped_server_ends_the_stack(exported: Path, tmp_path: Path, part: str) -> None:
    with serving(exported, tmp_path / "index") as served:
        served.member(part).send_signal(signal.SIGSTOP)
        _, errors = served.process.communicate(timeout=90)
        assert served.process.returncode == 1
        assert "was stopped (SIGSTOP) and does not go on. Its last lines:" in errors
        assert served.gone(5)


def test_what_does_not_finish_in_time_is_cut_off_and_said(exported: Path, tmp_path: Path) -> None:
    with LocalStack(exported, tmp_path / "index") as stack, ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(echo, stack.triton.grpc_address, "slow")
        time.sleep(0.5)
        assert stack.stop(drain_s=0.2) == ["requests were still under way when Triton was told to end"]
        assert waiting.exception(timeout=60) is None or "UNAVAILABLE" in str(waiting.exception())


def test_a_process_that_crashes_while_it_is_stopped_is_said(exported: Path, tmp_path: Path) -> None:
    with serving(exported, tmp_path / "index") as served, ThreadPoolExecutor(1) as caller:
        caller.submit(echo, served.triton, "slow")
        time.sleep(0.5)
        served.process.terminate()
        time.sleep(0.5)
        served.member("resrank.retrieval").send_signal(signal.SIGABRT)
        _, errors = served.process.communicate(timeout=60)
        assert served.process.returncode == 1
        assert "the stop was not clean: retrieval sidecar was killed by SIGABRT while it was stopped" in errors


def test_a_second_signal_waits_for_no_request(exported: Path, tmp_path: Path) -> None:
    with serving(exported, tmp_path / "index") as served, ThreadPoolExecutor(4) as caller:
        # One after the other: 8 s of work.
        for _ in range(4):
            caller.submit(echo, served.triton, "slow")
        time.sleep(0.5)
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        served.process.send_signal(signal.SIGINT)
        _, errors = served.process.communicate(timeout=60)
        assert served.process.returncode == 1
        assert "requests were still under way when Triton was told to end" in errors


def test_a_taken_port_is_named_before_anything_starts(exported: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = [*choose_ports("127.0.0.1", None, None, None), port]
        ended = subprocess.run(
            command(exported, tmp_path / "index", ports), capture_output=True, text=True, check=False, timeout=60
        )
    assert ended.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in ended.stderr
    assert not (tmp_path / "index").exists()


def test_a_stack_keeps_and_tells_its_logs_and_takes_its_socket_along(exported: Path, tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    log_dir = tmp_path / "log"
    with LocalStack(
        exported, tmp_path / "index", log_dir=log_dir, on_line=lambda name, line: lines.append((name, line))
    ) as stack:
        socket_path = stack.sidecar.socket
        assert socket_path is not None
        assert psutil.Process(stack.triton.pid).environ()["RESRANK_RETRIEVAL_SOCKET"] == str(socket_path)
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            described = retrieval_pb2_grpc.RetrievalServiceStub(channel).Describe(pb.DescribeRequest())
        assert described.record_count == 0
        os.kill(stack.sidecar.pid, signal.SIGKILL)  # which leaves the socket behind
    assert not socket_path.parent.exists()
    for name in ("triton", "retrieval"):
        assert [line for source, line in lines if source == name] == (log_dir / f"{name}.log").read_text().splitlines()


def test_an_index_of_another_encoder_is_refused(exported: Path, tmp_path: Path) -> None:
    other = "b" * 64
    batch = RecordBatch(Encoder(other, 4), (Record("p", "t", ""),), np.ones((1, 4), np.float16))
    with closing(LocalVectorStore.open(tmp_path / "index")) as store:
        store.upsert(batch)
    with pytest.raises(StackError, match=f"belongs to encoder {other}, Triton serves encoder {ENCODER_SHA256}"):
        LocalStack(exported, tmp_path / "index").__enter__()
    with closing(LocalCatalog.open(tmp_path / "index")) as catalog:
        catalog.create("docs@v2", NO_QUOTA)
        with catalog.collection("docs@v2") as held:
            held.store.upsert(replace(batch, encoder=Encoder(ENCODER_SHA256, 4)))
    with LocalStack(exported, tmp_path / "index"):  # one collection is this checkpoint's
        pass


def test_a_second_triton_joins_a_running_sidecar_which_outlives_it(exported: Path, tmp_path: Path) -> None:
    triton_port, metrics_port = choose_ports("127.0.0.1", None, None)
    with SidecarProcess(tmp_path / "index") as sidecar:
        with grpc.insecure_channel(sidecar.address) as channel:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            record = pb.Record(id="p", title="t", embedding=np.ones(4, "<f2").tobytes())
            batch = pb.UpsertRequest(encoder_sha256="b" * 64, dimension=4, records=[record])
            stub.Upsert(iter([batch]))
            options = ["--triton-port", str(triton_port), "--metrics-port", str(metrics_port)]
            serve = [sys.executable, "-m", "resrank.stack", "serve", str(exported), *options]
            joining = [*serve, "--retrieval-url", sidecar.address]
            environment = {**os.environ, "RESRANK_INDEX": str(tmp_path / "unused"), "RESRANK_RETRIEVAL_SOCKET": "/gone"}
            ended = subprocess.run(joining, capture_output=True, text=True, check=False, timeout=60, env=environment)
            assert ended.returncode == 1
            assert f"belongs to encoder {'b' * 64}, Triton serves encoder {ENCODER_SHA256}" in ended.stderr
            assert "resrank collection create NAME" in ended.stderr
            stub.CreateCollection(pb.CreateCollectionRequest(collection="docs@v2"))
            with subprocess.Popen(joining, stdout=subprocess.PIPE, text=True, env=environment) as process:
                assert process.stdout is not None
                lines = iter(process.stdout.readline, "")
                assert any(line.split()[-1:] == [sidecar.address] for line in lines)  # behind "joined"
                (triton,) = [
                    one for one in psutil.Process(process.pid).children() if "triton" in " ".join(one.cmdline())
                ]
                told = {name: value for name, value in triton.environ().items() if "RETRIEVAL" in name}
                assert told == {"RESRANK_RETRIEVAL_SOCKET": "", "RESRANK_RETRIEVAL_URL": sidecar.address}
                assert echo(f"127.0.0.1:{triton_port}", "a") == "a"
                process.send_signal(signal.SIGTERM)
                process.stdout.read()
            assert process.returncode == 0
            assert stub.Describe(pb.DescribeRequest()).record_count == 1
        assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checkpoint": 1}'])
def test_a_manifest_that_is_none_is_refused(exported: Path, tmp_path: Path, content: str) -> None:
    (exported / "manifest.json").write_text(content)
    with pytest.raises(ManifestError, match="is not a manifest as export writes it"):
        LocalStack(exported, tmp_path / "index")


def test_a_repository_that_this_machine_cannot_serve_is_refused_before_anything_starts(
    exported: Path, tmp_path: Path
) -> None:
    write_tiny_manifest(exported, gpus=(63,), runtime=Runtime.TENSORRT)
    ended = subprocess.run(
        command(exported, tmp_path / "index", choose_ports("127.0.0.1", None, None, None, None)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert f"{exported} cannot be served here: encoder: " in ended.stderr
    assert f"more: resrank doctor {exported})" in ended.stderr
    assert not (tmp_path / "index").exists()


def test_a_server_that_hangs_ends_the_stack(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_stack, "_HEALTH_EVERY_S", 0.5)
    monkeypatch.setattr(local_stack, "_SILENCE_S", 2.0)
    with LocalStack(exported, tmp_path / "index") as stack:
        monkeypatch.setattr(stack.sidecar, "is_ready", lambda: False)
        with pytest.raises(StackError, match="retrieval sidecar runs but has answered no health check"):
            stack.watch(threading.Event())


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_it_listens_on_ipv6(exported: Path, tmp_path: Path, host: str) -> None:
    with LocalStack(exported, tmp_path / "index", host=host) as stack:
        assert stack.triton.grpc_address.startswith("[::1]:")
        assert echo(stack.triton.grpc_address, "a") == "a"
        assert read_metrics(f"http://{stack.triton.metrics_address}/metrics", timeout_s=5.0)
        owner = read_owner(tmp_path / "index")
        assert owner is not None
        assert owner.address == stack.sidecar.address
        with grpc.insecure_channel(owner.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
