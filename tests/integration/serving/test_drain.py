"""A stop under load: what is under way is answered, what comes later is told to ask another server."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from resrank.client import ResRankClient
from resrank.core.errors import ServerUnavailableError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.stack.local_stack import LocalStack

from .conftest import Exported

CALLERS = 12
CALLS: tuple[Callable[[ResRankClient], object], ...] = (
    lambda client: client.embed_queries(["a query"]),
    lambda client: client.embed_passages(["a passage"], bulk=True),
    lambda client: client.rerank("a query", passages=[os.urandom(4).hex() for _ in range(5)]),
    lambda client: client.search("a query", k=2, candidates=5, route="server"),
)


def fill(stack: LocalStack, dimension: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(8, dimension)).astype("<f2")
    records = [pb.Record(id=f"p{i}", text=f"a query {i}", embedding=row.tobytes()) for i, row in enumerate(vectors)]
    with grpc.insecure_channel(stack.sidecar.address) as channel:
        batch = pb.UpsertRequest(encoder_sha256=stack.encoder_sha256, dimension=dimension, records=records)
        retrieval_pb2_grpc.RetrievalServiceStub(channel).Upsert(iter([batch]))


@pytest.mark.parametrize("name", ["query_residual-linear-openvino"])
def test_a_stop_answers_what_is_under_way(exported: Callable[[str], Exported], tmp_path: Path, name: str) -> None:
    made = exported(name)
    outcomes: Counter[str] = Counter()
    ended, stopping = threading.Event(), threading.Event()
    ready_while_stopping: list[bool] = []

    def keep_calling(number: int) -> None:
        call = CALLS[number % len(CALLS)]
        with ResRankClient(
            stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=30, max_attempts=1
        ) as client:
            while not ended.is_set():
                late = stopping.is_set()
                try:
                    call(client)
                    outcomes["answered"] += 1
                except ServerUnavailableError:
                    outcomes["late, unavailable" if late else "under way, unavailable"] += 1
                    time.sleep(0.05)
                except Exception as error:
                    outcomes[f"{'late' if late else 'under way'}: {error!r}"] += 1

    def ask_for_readiness() -> None:
        with triton_grpc.InferenceServerClient(stack.triton.grpc_address) as client:
            while not ended.is_set():
                try:
                    ready = client.is_server_ready(client_timeout=1.0)
                except triton_grpc.InferenceServerException:
                    return
                if stopping.is_set():
                    ready_while_stopping.append(ready)

    with LocalStack(made.repository, tmp_path / "index") as stack, ThreadPoolExecutor(CALLERS + 1) as threads:
        fill(stack, made.spec.encoder.embedding_dim)
        for number in range(CALLERS):
            threads.submit(keep_calling, number)
        time.sleep(3)
        asking = threads.submit(ask_for_readiness)
        stopping.set()
        time.sleep(0.5)  # what was called before this has arrived
        ready_while_stopping.clear()
        assert stack.stop() == []
        time.sleep(0.2)
        ended.set()
        asking.result()
    assert outcomes.pop("answered") > CALLERS
    assert outcomes.pop("late, unavailable") > 0
    assert outcomes == {}
    # It was asked before the first model went, and between two that had nothing to finish, at most.
    assert sum(ready_while_stopping) < len(ready_while_stopping) / 2
