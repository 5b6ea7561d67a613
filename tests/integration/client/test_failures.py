"""Server down, queue full, deadline passed, model missing: four typed errors, all met with the real server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.client import AsyncResRankClient, ResRankClient
from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.stack.triton_process import TritonProcess

CANDIDATES = np.eye(4, dtype=np.float16)


@pytest.fixture
def dead_address() -> Iterator[str]:
    with socket.socket() as held:  # bound and not listening: nobody else can take the port, and nobody answers
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def slow(seconds: float) -> str:
    return json.dumps({"sleep": seconds})


def drain(triton: TritonProcess) -> None:
    """Waits until the server has computed what it took in: the queue is first in, first out."""
    with ResRankClient(triton.grpc_address) as client:
        for _ in range(200):
            try:
                client.rerank("query", CANDIDATES)
            except QueueFullError:
                time.sleep(0.05)
            else:
                return
    pytest.fail("the queue stays full")


def test_server_down(make: Any, dead_address: str) -> None:
    client = make(dead_address)
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="no server answers"):
        client.rerank("query", CANDIDATES, timeout_s=20.0)
    assert time.monotonic() - started < 10.0


def test_no_retry_outlives_the_deadline(make: Any, dead_address: str) -> None:
    client = make(dead_address, max_attempts=1000)
    started = time.monotonic()
    with pytest.raises((ServerUnavailableError, DeadlineExceededError)):
        client.rerank("query", CANDIDATES, timeout_s=1.0)
    assert time.monotonic() - started < 5.0  # a thousand attempts take minutes


def test_a_server_that_is_still_starting_is_waited_for(triton: TritonProcess, tmp_path: Path) -> None:
    process = TritonProcess(triton.repository)
    try:
        process.start()
        with ResRankClient(process.grpc_address, max_attempts=1000, timeout_s=60.0) as client:
            assert len(client.rerank("query", CANDIDATES).passages) == 4
    finally:
        process.stop()


def test_deadline_passed_while_computing_and_while_queued(make: Any, triton: TritonProcess) -> None:
    client = make(triton.grpc_address)
    client.encoder_sha256()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool, ResRankClient(triton.grpc_address) as other:
        busy = pool.submit(other.rerank, slow(2.0), CANDIDATES)
        time.sleep(0.2)
        with pytest.raises(DeadlineExceededError, match=r"timeout_s of 0\.2 s"):
            client.rerank("query", CANDIDATES, timeout_s=0.2)  # queued behind the other
        assert time.monotonic() - started < 1.5
        busy.result()
    with pytest.raises(DeadlineExceededError):
        client.rerank(slow(0.5), CANDIDATES, timeout_s=0.2)


def test_the_deadline_is_one_budget_for_all_blocks(make: Any, triton: TritonProcess) -> None:
    client = make(triton.grpc_address, max_in_flight=1)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.rerank(slow(0.3), np.tile(CANDIDATES, (10, 1)), timeout_s=0.5)  # eight blocks of 0.3 s
    assert time.monotonic() - started < 2.2


def test_queue_full_with_threads(triton: TritonProcess) -> None:
    drain(triton)  # what the test before has left under way takes a place
    with ResRankClient(triton.grpc_address) as client, ThreadPoolExecutor(16) as pool:
        client.encoder_sha256()
        futures = [pool.submit(client.rerank, slow(0.15), CANDIDATES) for _ in range(16)]
        errors = [future.exception() for future in futures]
    refused = [error for error in errors if error is not None]
    assert refused
    assert all(isinstance(error, QueueFullError) for error in refused)
    assert errors.count(None) >= 8


def test_queue_full_with_asyncio(triton: TritonProcess, runner: asyncio.Runner) -> None:
    async def overload() -> list[Any]:
        async with AsyncResRankClient(triton.grpc_address) as client:
            await client.encoder_sha256()
            calls = [client.rerank(slow(0.15), CANDIDATES) for _ in range(16)]
            return await asyncio.gather(*calls, return_exceptions=True)

    results = runner.run(overload())
    refused = [result for result in results if isinstance(result, BaseException)]
    assert refused
    assert all(isinstance(error, QueueFullError) for error in refused)


def test_after_a_refused_block_no_more_are_sent(make: Any, triton: TritonProcess) -> None:
    client = make(triton.grpc_address, max_in_flight=14)
    client.encoder_sha256()
    started = time.monotonic()
    with pytest.raises(QueueFullError):
        client.rerank(slow(0.1), np.tile(CANDIDATES, (100, 1)), timeout_s=30.0)  # 80 blocks; nine at once have room
    assert time.monotonic() - started < 5.0  # all of them take 8 s
    drain(triton)


def test_a_cancelled_task_ends_at_once(triton: TritonProcess, runner: asyncio.Runner) -> None:
    async def cancel() -> float:
        async with AsyncResRankClient(triton.grpc_address) as client:
            await client.encoder_sha256()
            task = asyncio.create_task(client.rerank(slow(0.8), np.tile(CANDIDATES, (3, 1))))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - started

    assert runner.run(cancel()) < 0.5


def test_close_ends_the_calls_of_other_threads_with_a_typed_error(triton: TritonProcess) -> None:
    client = ResRankClient(triton.grpc_address)
    client.encoder_sha256()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.rerank, slow(0.8), CANDIDATES)
        time.sleep(0.2)
        client.close()
        with pytest.raises(ResRankError, match="the client is closed"):
            call.result()
    drain(triton)


@pytest.mark.parametrize("blocks", [1, 3])
def test_close_ends_the_calls_of_other_tasks_with_a_typed_error(
    triton: TritonProcess, runner: asyncio.Runner, blocks: int
) -> None:
    async def close_meanwhile() -> None:
        client = AsyncResRankClient(triton.grpc_address)
        await client.encoder_sha256()
        task = asyncio.create_task(client.rerank(slow(0.4), np.tile(CANDIDATES, (2 * blocks - 1, 1))))
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(ResRankError, match="the client is closed"):
            await task

    runner.run(close_meanwhile())
    drain(triton)


def test_model_broken_in_python_is_neither_retried_nor_taken_for_overload(client: Any) -> None:
    with pytest.raises(ResRankError, match="no such axis") as caught:
        client.rerank(json.dumps({"break": "no such axis"}), CANDIDATES)
    assert type(caught.value) is ServerFailedError


def test_a_malformed_tensor_is_invalid_input_and_the_server_lives_on(client: Any) -> None:
    with pytest.raises(InvalidInputError, match="CANDIDATES"):
        client.rerank(json.dumps({"refuse": "CANDIDATES: odd (limit 1, got 2)"}), CANDIDATES)
    assert len(client.rerank("query", CANDIDATES).passages) == 4


def test_health_of_a_server_that_is_up(client: Any) -> None:
    report = client.health()
    assert report.ok
    assert report.live
    assert report.ready
    assert all(report.models.values())
    assert report.encoder_sha256 == "e" * 64
    assert report.retrieval is None


def test_health_of_a_server_that_is_down_is_a_report(make: Any, dead_address: str) -> None:
    report = make(dead_address, retrieval=dead_address).health()
    assert not report.ok
    assert not report.live
    assert not report.ready
    assert len(report.problems) == 2


def test_an_unknown_model_is_not_ready(make: Any, triton_without_texts: TritonProcess) -> None:
    client = make(triton_without_texts.grpc_address)
    with pytest.raises(ModelNotReadyError, match="rerank_text"):
        client.rerank("query", passages=["a"])
    report = client.health()
    assert not report.ok
    others = ("rerank_text", "search", "embed_query", "embed_passage", "embed_bulk")
    assert report.models == {"rerank": True, **dict.fromkeys(others, False)}
