"""``resrank index build --ray`` with a real Ray of two workers, a real Triton and a real sidecar."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from resrank.stack.triton_process import TritonProcess
from support.letter_models import write_letter_models

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")

WAIT_S = 900  # on an idle machine a build takes 15 s; Ray starts a dozen processes
PASSAGES = {f"p{number}": "abcd"[number % 4] * (1 + number % 17) for number in range(1500)}  # six batches


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, start_triton: Callable[..., TritonProcess]) -> TritonProcess:
    return start_triton(write_letter_models(tmp_path_factory.mktemp("repository")))


@pytest.fixture(scope="module")
def build(triton: TritonProcess) -> Callable[..., subprocess.Popen[str]]:
    """``build(corpus, index, *options)`` starts the command."""

    def start(corpus: Path, index: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "resrank.stack", "index", "build", str(corpus), "--index", str(index)]
        command += ["--triton-url", triton.grpc_address, "--output", "json", *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(process: subprocess.Popen[str], code: int = 0) -> Any:
    with process:
        told, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, errors
    return json.loads(told) if code == 0 else errors


def write_corpus(path: Path, passages: dict[str, str]) -> Path:
    path.write_text(
        "".join(json.dumps({"_id": id_, "title": id_, "text": text}) + "\n" for id_, text in passages.items())
    )
    return path


def digest(index: Path) -> str:
    """Of all records and vectors of an index."""
    command = [sys.executable, "-m", "resrank.stack", "index", "backup", f"{index}.backup", "--index", str(index)]
    done = subprocess.run([*command, "--output", "json"], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["sha256"])


def test_records_are_those_of_a_build_without_it(build: Any, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", PASSAGES)
    assert finish(build(corpus, tmp_path / "alone"))["inserted"] == len(PASSAGES)
    report = finish(build(corpus, tmp_path / "ray", "--ray", "local", "--workers", "2"))
    assert (report["passages"], report["inserted"], report["unchanged"]) == (1500, 1500, 0)
    assert digest(tmp_path / "ray") == digest(tmp_path / "alone")


@dataclass(frozen=True)
class Cluster:
    """A Ray of three CPUs that lasts, and the process that started it."""

    address: str
    head: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Those that encode."""
        return [
            process
            for process in self.head.children(recursive=True)
            if "MapWorker(Map(_Worker))" in " ".join(process.cmdline())
        ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {**os.environ, "RAY_prestart_worker_first_driver": "0", "RAY_worker_register_timeout_seconds": "600"}
    options = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 256 * 2**20}
    code = (
        f"import ray, sys; node = ray.init(**{options}); print(node.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        assert head.stdin is not None
        yield Cluster(head.stdout.readline().strip(), psutil.Process(head.pid))
        head.stdin.close()
        head.wait(timeout=WAIT_S)


def records(index: Path) -> int:
    command = [sys.executable, "-m", "resrank.stack", "index", "describe", "--index", str(index), "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(json.loads(done.stdout)["record_count"]) if done.returncode == 0 else 0


def wait_until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


SLOW = {id_: f"slow {text}" for id_, text in PASSAGES.items()}  # 8 texts take 0.05 s


@pytest.mark.full  # half a minute: three more builds on Ray, whose processes start slowly
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_missing(
    build: Any, cluster: Cluster, tmp_path: Path
) -> None:
    corpus, index = write_corpus(tmp_path / "corpus.jsonl", SLOW), tmp_path / "index"
    running = build(corpus, index, "--ray", cluster.address, "--workers", "2")
    wait_until(lambda: len(cluster.workers()) == 2 and records(index) > 0)
    cluster.workers()[0].send_signal(signal.SIGKILL)
    assert finish(running)["passages"] == 1500
    assert finish(build(corpus, tmp_path / "alone"))["inserted"] == 1500
    assert digest(index) == digest(tmp_path / "alone")


@pytest.mark.full  # as above
def test_a_build_that_is_killed_goes_on_where_it_stopped(build: Any, cluster: Cluster, tmp_path: Path) -> None:
    corpus, index = write_corpus(tmp_path / "corpus.jsonl", SLOW), tmp_path / "index"
    with build(corpus, index, "--ray", cluster.address, "--workers", "2") as killed:
        wait_until(lambda: records(index) > 0)
        killed.kill()
    stored = wait_until(lambda: records(index))
    report = finish(build(corpus, index, "--ray", cluster.address, "--workers", "2"))
    assert 0 < stored < 1500
    assert (report["inserted"], report["unchanged"]) == (1500 - stored, stored)


@pytest.mark.full  # as above
def test_a_batch_that_fails_is_named_and_the_others_are_stored(build: Any, cluster: Cluster, tmp_path: Path) -> None:
    corpus, index = write_corpus(tmp_path / "corpus.jsonl", {**PASSAGES, "bad": "refused"}), tmp_path / "index"
    errors = finish(build(corpus, index, "--ray", cluster.address), code=2)
    named, sentence = [line for line in errors.splitlines() if line][-2:]
    stored = records(index)
    assert "'bad'" in named
    assert f"{1501 - stored} passages are not stored, _id " in named
    assert f"1 batches with {1501 - stored} passages failed" in sentence
    assert "the encoder refuses _id 'bad' (holds the word refused)" in sentence
    assert 1501 - 256 <= stored < 1501
    over = finish(build(corpus, index, "--ray", cluster.address, "--workers", "9"), code=2)
    assert "workers: more than the cluster has CPUs (limit 3, got 9)" in over
