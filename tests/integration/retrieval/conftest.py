from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc

SHA = "a" * 64
DIMENSION = 8
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
]


@dataclass
class Sidecar:
    """A sidecar in a process of its own, and a stub connected to it."""

    process: subprocess.Popen[str]
    address: str
    channel: grpc.Channel
    stub: retrieval_pb2_grpc.RetrievalServiceStub

    def kill(self) -> None:
        """``kill -9``: no chance to save anything."""
        self.process.kill()
        self.process.wait()
        self.channel.close()


StartSidecar = Callable[..., Sidecar]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def start_sidecar(index: Path, tmp_path: Path) -> Iterator[StartSidecar]:
    """``start_sidecar(*options)`` runs ``python -m resrank.retrieval`` on the test's index folder."""
    running: list[Sidecar] = []
    log = (tmp_path / "sidecar.log").open("w")

    def start(*options: str, folder: Path = index, largest_file: int | None = None) -> Sidecar:
        process = subprocess.Popen(
            [sys.executable, "-m", "resrank.retrieval", "--index", str(folder), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("resrank.retrieval listening on "), (tmp_path / "sidecar.log").read_text()
        if largest_file is not None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
        address = line.split()[-1]
        channel = grpc.insecure_channel(address, OPTIONS)
        sidecar = Sidecar(process, address, channel, retrieval_pb2_grpc.RetrievalServiceStub(channel))
        running.append(sidecar)
        return sidecar

    yield start
    for sidecar in running:
        sidecar.channel.close()
        sidecar.process.terminate()
        sidecar.process.wait(timeout=30)
        assert sidecar.process.stdout is not None
        sidecar.process.stdout.close()
    log.close()


@pytest.fixture
def upsert_request() -> Callable[..., pb.UpsertRequest]:
    """``upsert_request(ids, seed=…, text=…)`` makes one batch with random embeddings."""

    def make(ids: Iterable[str], *, seed: int = 0, text: str = "walrus", sha256: str = SHA) -> pb.UpsertRequest:
        names = list(ids)
        vectors = np.random.default_rng(seed).normal(size=(len(names), DIMENSION)).astype("<f2")
        records = [
            pb.Record(id=id_, title=f"title {id_}", text=text, metadata={"n": id_}, embedding=vector.tobytes())
            for id_, vector in zip(names, vectors, strict=True)
        ]
        return pb.UpsertRequest(encoder_sha256=sha256, dimension=DIMENSION, records=records)

    return make
