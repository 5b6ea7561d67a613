from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from resrank.errors import StackError
from resrank_stack.triton_process import TritonProcess

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 8
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "ECHO" data_type: TYPE_STRING dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("ECHO", text)]) for text in texts]
"""
BROKEN_MODEL = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("no tokenizer here")

    def execute(self, requests):
        return []
"""


def write_repository(folder: Path, model: str = MODEL) -> Path:
    version = folder / "echo" / "1"
    version.mkdir(parents=True)
    (folder / "echo" / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(model)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


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


def test_serves_and_leaves_nothing_behind(repository: Path) -> None:
    with TritonProcess(repository) as triton:
        assert echo(triton.grpc_address, "grüezi") == "grüezi"
        stubs = psutil.Process(triton.pid).children(recursive=True)
        assert stubs
        assert segments(triton.shared_memory_prefix)
    assert triton.returncode == 0
    assert wait_gone(stubs, 0)
    assert segments(triton.shared_memory_prefix) == []


def test_a_killed_server_leaves_nothing_behind(repository: Path) -> None:
    with TritonProcess(repository) as triton:
        stubs = psutil.Process(triton.pid).children(recursive=True)
        os.kill(triton.pid, signal.SIGKILL)
    assert triton.returncode == -signal.SIGKILL
    assert wait_gone(stubs, 0)
    assert segments(triton.shared_memory_prefix) == []


def test_a_killed_owner_takes_the_server_along(repository: Path) -> None:
    program = f"""
import time
from pathlib import Path
from resrank_stack.triton_process import TritonProcess
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


def test_a_model_that_fails_to_load_is_reported_with_the_log(tmp_path: Path) -> None:
    triton = TritonProcess(write_repository(tmp_path / "repository", BROKEN_MODEL))
    with pytest.raises(StackError, match="no tokenizer here"), triton:
        pass
    assert triton.returncode not in {0, None}
    assert segments(triton.shared_memory_prefix) == []


def test_two_servers_run_side_by_side(repository: Path) -> None:
    with TritonProcess(repository) as first, TritonProcess(repository) as second:
        assert echo(first.grpc_address, "a") == "a"
        assert echo(second.grpc_address, "b") == "b"


def test_the_log_goes_to_the_file(repository: Path, tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "triton.log"
    with TritonProcess(repository, log_path=log_path) as triton:
        assert "Started GRPCInferenceService" in log_path.read_text()
    assert triton.log_tail(1) in log_path.read_text()
