from __future__ import annotations

import os
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from resrank.core.errors import StackError
from resrank.loadtest.server_metrics import read_metrics
from resrank.stack import model_loading
from resrank.stack.triton_process import TritonProcess

from .conftest import write_echo

BROKEN_MODEL = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("no tokenizer here")

    def execute(self, requests):
        return []
"""


def segments(prefix: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def echo(address: str, text: str) -> str:
    tensor = triton_grpc.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
    with triton_grpc.InferenceServerClient(address) as client:
        return client.infer("echo", [tensor]).as_numpy("ECHO")[0, 0].decode()


def wait_gone(processes: list[psutil.Process], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_serves_keeps_its_log_and_leaves_nothing_else_behind(repository: Path, tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "triton.log"
    with TritonProcess(repository, log_path=log_path) as triton:
        assert "Started GRPCInferenceService" in log_path.read_text()
        assert echo(triton.grpc_address, "grüezi") == "grüezi"
        for name in segments(triton.shared_memory_prefix):
            assert stat.S_IMODE(Path("/dev/shm", name).stat().st_mode) == 0o600
        stubs = psutil.Process(triton.pid).children(recursive=True)
        assert stubs
        assert segments(triton.shared_memory_prefix)
    assert triton.returncode == 0
    assert wait_gone(stubs, 0)
    assert segments(triton.shared_memory_prefix) == []
    assert triton.log_tail(1) in log_path.read_text()


def test_of_two_servers_side_by_side_a_killed_one_leaves_nothing_behind_but_the_other(repository: Path) -> None:
    with TritonProcess(repository) as first:
        with TritonProcess(repository) as second:
            assert echo(first.grpc_address, "a") == "a"
            assert echo(second.grpc_address, "b") == "b"
            stubs = psutil.Process(second.pid).children(recursive=True)
            os.kill(second.pid, signal.SIGKILL)
        assert second.returncode == -signal.SIGKILL
        assert wait_gone(stubs, 0)
        assert segments(second.shared_memory_prefix) == []
        assert echo(first.grpc_address, "c") == "c"


def test_a_killed_owner_takes_the_server_along(repository: Path) -> None:
    program = f"""
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from resrank.stack.triton_process import TritonProcess
with TritonProcess(Path({str(repository)!r})) as triton:
    print(triton.pid, triton.shared_memory_prefix, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, prefix = owner.stdout.readline().split()
        server = psutil.Process(int(pid))
        family = [server, *server.children(recursive=True)]
        owner.kill()
    assert wait_gone(family, 30)
    assert segments(prefix) == []


def test_a_model_that_fails_to_load_is_reported_with_the_log(repository: Path) -> None:
    (repository / "echo" / "1" / "model.py").write_text(BROKEN_MODEL)
    triton = TritonProcess(repository)
    with pytest.raises(StackError) as caught, triton:
        pass
    said = str(caught.value).splitlines()
    assert said[0] == "tritonserver exited with status 1. Its last lines:"
    # The reason alone: on a machine without a GPU the log has as many lines about CUDA.
    assert said[1] == "failed to load 'echo' version 1: Internal: ValueError: no tokenizer here"
    assert said[2:4] == ["At:", f"  {repository}/echo/1/model.py(4): initialize"]
    assert said[4:] == ["error: creating server: Internal - failed to load all models"]
    assert triton.returncode not in {0, None}
    assert segments(triton.shared_memory_prefix) == []


UNSTEADY_MODEL = """
import os
import signal
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        begun = Path(__file__).with_name("begun")
        if {always} or not begun.exists():
            begun.touch()
            {fault}
            time.sleep(600)

    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("ECHO", text)]) for text in texts]
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("pass", "tritonserver: nothing has happened in its start for 4 s; still loading: echo"),
        (
            "os.kill(os.getppid(), signal.SIGABRT)",
            "tritonserver was killed by SIGABRT before it was ready; still loading: echo",
        ),
    ],
)
def test_a_start_that_stalls_or_crashes_is_begun_once_more(
    repository: Path, tmp_path: Path, fault: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loading, "STALLED_S", 4.0)
    repository = repository.rename(tmp_path / "a repository")  # whose link has to outlive the first start
    (repository / "echo" / "1" / "model.py").write_text(UNSTEADY_MODEL.format(always=False, fault=fault))
    lines: list[str] = []
    with TritonProcess(repository, on_line=lines.append) as triton:
        assert echo(triton.grpc_address, "a") == "a"
    assert triton.returncode == 0
    assert [line for line in lines if line.startswith("resrank: ")] == [f"resrank: {told}: started once more"]
    assert segments(triton.shared_memory_prefix) == []


def test_a_start_that_always_stalls_names_the_models_that_it_waits_for(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loading, "STALLED_S", 4.0)
    (repository / "echo" / "1" / "model.py").write_text(UNSTEADY_MODEL.format(always=True, fault="pass"))
    triton = TritonProcess(repository)
    with pytest.raises(StackError, match="nothing has happened in its start for 4 s; still loading: echo"), triton:
        pass
    assert triton.returncode not in {0, None}
    assert segments(triton.shared_memory_prefix) == []


def test_neither_odd_paths_nor_a_proxy_are_in_the_way(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "Mödels of 'mine'; touch $(touch shell) & touch other"
    odd.mkdir()
    repository = repository.rename(odd / "my repository")
    with monkeypatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(odd / "cache"))
        environment.setenv("TMPDIR", str(odd))
        environment.setattr("tempfile.tempdir", None)  # read anew
        for variable in ("http_proxy", "https_proxy", "grpc_proxy"):
            environment.setenv(variable, "http://127.0.0.1:9")
        environment.setenv("no_proxy", "")
        environment.chdir(odd)
        with TritonProcess(repository, ready_timeout_s=60) as triton:
            assert read_metrics(f"http://{triton.metrics_address}/metrics", timeout_s=5.0)
            link = next(Path(flag.partition("=")[2]) for flag in triton.command if "--model-repository" in flag)
            assert link.resolve() == repository.resolve()
            environment.undo()
            assert echo(triton.grpc_address, "a") == "a"
    assert {path.name for path in odd.iterdir()} == {"my repository", "cache"}
    assert not link.parent.exists()


@pytest.fixture
def segment() -> Iterator[str]:
    name = f"resrank_test_{secrets.token_hex(4)}"
    Path("/dev/shm", name).write_bytes(bytes(64))
    yield name
    Path("/dev/shm", name).unlink()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """One server for the tests that only knock at its doors."""
    folder = tmp_path_factory.mktemp("guarded")
    with TritonProcess(write_echo(folder), log_path=folder / "log") as triton:
        yield triton


def test_what_only_its_owner_needs_is_refused_to_others(guarded: TritonProcess, segment: str) -> None:
    triton = guarded
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        models_own = next(name for name in segments(triton.shared_memory_prefix))
        for attempt in (
            lambda: client.register_system_shared_memory("mine", f"/{segment}", 64),
            lambda: client.register_system_shared_memory("theirs", f"/{models_own}", 64),
            client.get_system_shared_memory_status,
            lambda: client.register_cuda_shared_memory("gpu", b"", 0, 64),
            lambda: client.update_log_settings({"log_verbose_level": 9}),
            client.get_log_settings,
            lambda: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
            lambda: client.load_model("echo"),
            lambda: client.unload_model("echo"),
            client.get_model_repository_index,
        ):
            with pytest.raises(triton_grpc.InferenceServerException, match="This protocol is restricted"):
                attempt()
        assert client.is_server_ready()
        assert echo(triton.grpc_address, "a") == "a"


def test_steering_takes_a_key_that_nobody_can_read(guarded: TritonProcess) -> None:
    listening = psutil.Process(guarded.pid).net_connections("tcp")
    (port,) = {connection.laddr.port for connection in listening} - {guarded.grpc_port, guarded.metrics_port}
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}
    for path in ("/v2", "/v2/health/ready", "/v2/health/live", "/v2/models/echo/config", "/v2/models/stats"):
        with pytest.raises(HTTPError, match="403"):
            urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
    for path in ("/v2/repository/index", "/v2/repository/models/echo/load", "/v2/models/echo/infer", "/v2/logging"):
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(f"http://127.0.0.1:{port}{path}", data=b"{}"), timeout=10)
    for flag in ("--http-restricted-api=", "--grpc-restricted-protocol="):
        (given,) = [word for word in guarded.command if word.startswith(flag)]
        key = given.rpartition("=")[2]
        assert len(key) == 32
        assert key not in " ".join(psutil.Process(guarded.pid).cmdline())
        assert key not in guarded.log_path.read_text()


def test_a_server_whose_model_died_is_not_ready_and_ends_at_once(repository: Path) -> None:
    with TritonProcess(repository) as triton:
        (stub,) = psutil.Process(triton.pid).children()
        assert triton.is_ready()
        stub.kill()
        stub_gone = time.monotonic() + 5
        while triton.is_ready():
            assert time.monotonic() < stub_gone
        began = time.monotonic()
        triton.stop()
        assert time.monotonic() - began < 5
    assert segments(triton.shared_memory_prefix) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_images_health_check_notices_a_dead_model(repository: Path, number: signal.Signals) -> None:
    check = Path(__file__).parents[3] / "deploy" / "docker" / "healthcheck"
    with TritonProcess(repository) as triton:
        program = (
            check.read_text().replace("127.0.0.1:8001", triton.grpc_address).replace("/repository", str(repository))
        )

        def ask() -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

        (stub,) = psutil.Process(triton.pid).children()
        assert ask().returncode == 0
        stub.send_signal(number)
        asked = ask()
        assert asked.returncode == 1
        assert asked.stderr.startswith("healthcheck: the process of model instance")
