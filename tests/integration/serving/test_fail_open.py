"""Searches and reranks whose models are full, late or dead: the order that retrieval found.

What of the caller's time each step is given is held by the unit tests: a busy machine wakes a client late.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.client import (
    AsyncResRankClient,
    DeadlineExceededError,
    InvalidInputError,
    OnFailure,
    QueueFullError,
    RerankResult,
    ResRankClient,
    SearchResult,
    ServerUnavailableError,
)
from resrank.core.outcomes import Outcome
from resrank.serving.load_metrics import PUBLISH_EVERY_S
from resrank.stack.cli.app import run
from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.triton_process import TritonProcess

from .conftest import Exported
from .test_search import PASSAGES, QUERY, fill

TIMEOUT_S = 0.7
"""A model's process may stand still for so long: after a second Triton 2.51 gives its requests up, and after some of
these itself."""
OPEN: dict[str, Any] = {"on_failure": "retrieval_order", "timeout_s": TIMEOUT_S}
SEARCH: dict[str, Any] = {"k": 12, "candidates": 16}  # one pass: the next one waits, and the one after that is shed
ROUTES = ("client", "server")


@dataclass(frozen=True)
class Stack:
    """A Triton whose reranker has room for one waiting request, a filled sidecar, and a client of both."""

    triton: TritonProcess
    sidecar: SidecarProcess
    client: ResRankClient

    def process(self, instance: str) -> psutil.Process:
        """The process of a model's instance."""
        (found,) = (child for child in psutil.Process(self.triton.pid).children() if instance in child.cmdline())
        return found

    @contextmanager
    def stopped(self, instance: str) -> Iterator[None]:
        """A model that stands still, and has caught up when it goes on."""
        process = self.process(instance)
        time.sleep(0.3)  # it may still be busy with telling the end of the last request
        process.suspend()
        try:
            yield
        finally:
            process.resume()
            until = time.monotonic() + 20
            while True:  # as long as calls that were given up fill its queue
                try:
                    self.client.search(QUERY, candidates=10)
                    break
                except QueueFullError:
                    assert time.monotonic() < until


@pytest.fixture(scope="module")
def stack(exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = exported("query_residual-linear-openvino")
    folder = tmp_path_factory.mktemp("fail-open")
    shutil.copytree(made.repository, folder / "repository")
    path = folder / "repository" / "reranker" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.parameters["max_queue_size"].string_value = "1"
    path.write_text(text_format.MessageToString(config))
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:  # pytest's own folders may be too deep for a socket
        socket = Path(sockets, "s")
        with (
            SidecarProcess(folder / "index", socket=socket) as sidecar,
            TritonProcess(folder / "repository", retrieval=f"unix:{socket}") as triton,
            ResRankClient(triton.grpc_address, retrieval=sidecar.address, max_attempts=2) as client,
        ):
            vectors = np.stack([made.reference.encode(text) for text in PASSAGES])
            fill(sidecar.address, client.encoder_sha256(), vectors)
            yield Stack(triton, sidecar, client)


def require_order(
    found: SearchResult, expected: SearchResult, *outcomes: Outcome, by_words: SearchResult | None = None
) -> None:
    """What was found is what a search without reranking finds, and says why.

    The server answers in the last tenth of the caller's time. On a busy machine that can come too late, and the client
    then finds by words alone; ``by_words`` is given where that is allowed.
    """
    if by_words is not None and found.mode is by_words.mode:
        expected = by_words
    assert found.failure is not None
    assert found.failure.outcome in outcomes
    assert (found.reranked, found.mode) == (False, expected.mode)
    assert [passage.id for passage in found.passages] == [passage.id for passage in expected.passages]
    for mine, other in zip(found.passages, expected.passages, strict=True):
        assert mine.score == pytest.approx(other.score, abs=1e-6)
        assert (mine.text, mine.candidate_rank, mine.rerank_score) == (other.text, other.candidate_rank, None)
    assert list(found.timings) == list(expected.timings)


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_changed_where_nothing_fails(stack: Stack, route: Any) -> None:
    plain, opened = (stack.client.search(QUERY, **SEARCH, route=route, **options) for options in ({}, OPEN))
    assert opened.failure is None
    assert opened.reranked
    assert opened.passages == plain.passages


@pytest.mark.parametrize("route", ROUTES)
def test_a_reranker_that_stands_still(stack: Stack, route: Any) -> None:
    by_words = stack.client.search(QUERY, **SEARCH, mode="lexical", rerank=False)
    for mode in ("hybrid", "dense", "lexical"):
        expected = stack.client.search(QUERY, **SEARCH, mode=mode, rerank=False)
        with stack.stopped("reranker_0_0"):
            found = stack.client.search(QUERY, **SEARCH, mode=mode, route=route, **OPEN)
        require_order(found, expected, Outcome.DEADLINE, by_words=by_words if route == "server" else None)
    assert stack.client.search(QUERY, **SEARCH, route=route, **OPEN).reranked


@pytest.mark.parametrize("route", ROUTES)
def test_an_encoder_that_stands_still(stack: Stack, route: Any) -> None:
    expected = stack.client.search(QUERY, **SEARCH, mode="lexical", rerank=False)
    assert expected.passages
    with stack.stopped("encoder_0_0"):
        found = stack.client.search(QUERY, **SEARCH, route=route, **OPEN)
    require_order(found, expected, Outcome.DEADLINE)
    with stack.stopped("encoder_0_0"), pytest.raises(DeadlineExceededError):
        stack.client.search(QUERY, **SEARCH, mode="dense", route=route, **OPEN)


def not_reranked(stack: Stack, reason: Outcome) -> float:
    """Of the ``search`` model, on Triton's metrics page."""
    with urlopen(f"http://{stack.triton.metrics_address}/metrics") as page:
        text = page.read().decode()
    (value,) = re.findall(
        rf'^resrank_not_reranked_total{{(?=[^}}]*model="search")[^}}]*reason="{reason}"[^}}]*}} (.*)$', text, re.M
    )
    return float(value)


@pytest.mark.parametrize("route", ROUTES)
def test_a_full_queue(stack: Stack, route: Any) -> None:
    expected = stack.client.search(QUERY, **SEARCH, rerank=False)
    reranked = stack.client.search(QUERY, **SEARCH)
    before = not_reranked(stack, Outcome.SHED)
    with ThreadPoolExecutor(16) as pool:
        options = {"on_failure": "retrieval_order", "timeout_s": 30.0, "route": route}
        futures = [pool.submit(stack.client.search, QUERY, **SEARCH, **options) for _ in range(48)]
        found = [future.result() for future in futures]
    shed = [result for result in found if result.failure is not None]
    assert shed
    if route == "server":
        time.sleep(4 * PUBLISH_EVERY_S)
        assert not_reranked(stack, Outcome.SHED) - before == len(shed)
    for result in shed:
        require_order(result, expected, Outcome.SHED)
    for result in found:
        if result.failure is None:
            assert [passage.id for passage in result.passages] == [passage.id for passage in reranked.passages]


@pytest.mark.parametrize("kind", ["embeddings", "texts"])
def test_candidates_of_the_callers_own_keep_their_order(stack: Stack, kind: str) -> None:
    texts = PASSAGES[:16]
    vectors = stack.client.embed_passages(texts)
    given: dict[str, Any] = {"passages": texts} if kind == "texts" else {"candidates": vectors}
    options = {**given, "lexical_scores": list(range(16)), **OPEN}
    assert stack.client.rerank(QUERY, **options).reranked
    with stack.stopped("reranker_0_0"):
        found = stack.client.rerank(QUERY, **options)
    assert found.failure is not None
    assert found.failure.outcome is Outcome.DEADLINE
    assert not found.reranked
    assert [(passage.rank, passage.index, passage.score) for passage in found.passages] == [
        (place + 1, place, 0.0) for place in range(16)
    ]
    assert [passage.lexical_score for passage in found.passages] == list(range(16))
    assert {passage.rerank_score for passage in found.passages} == {None}
    assert [passage.text for passage in found.passages] == (texts if kind == "texts" else [None] * 16)


def require_given(found: RerankResult, *, outcome: Outcome) -> None:
    """Of p3, nope and p1 those that there are, as they were named."""
    assert found.failure is not None
    assert (found.failure.outcome, found.reranked, found.missing_ids) == (outcome, False, ("nope",))
    assert [(passage.id, passage.index, passage.score) for passage in found.passages] == [
        ("p3", 0, 0.0),
        ("p1", 2, 0.0),
    ]
    assert [passage.text for passage in found.passages] == [PASSAGES[3], PASSAGES[1]]


def test_stored_passages_keep_the_order_of_their_ids(stack: Stack) -> None:
    options: dict[str, Any] = {"ids": ["p3", "nope", "p1"], "include_texts": True, **OPEN}
    assert stack.client.rerank_stored(QUERY, **options).reranked
    with stack.stopped("reranker_0_0"):
        require_given(stack.client.rerank_stored(QUERY, **options), outcome=Outcome.DEADLINE)


def test_ids_keep_their_order_without_a_sidecar_too(stack: Stack) -> None:
    with ResRankClient(stack.triton.grpc_address, retrieval="127.0.0.1:1", max_attempts=1) as alone:
        found = alone.rerank_stored(QUERY, ["p3", "nope", "p1"], include_texts=True, **OPEN)
        assert found.failure is not None
        assert (found.failure.outcome, found.reranked, found.missing_ids) == (Outcome.UNAVAILABLE, False, ())
        assert [(passage.id, passage.index, passage.text) for passage in found.passages] == [
            ("p3", 0, None),
            ("nope", 1, None),
            ("p1", 2, None),
        ]
        with pytest.raises(ServerUnavailableError):
            alone.rerank_stored(QUERY, ["p3", "p1"])


async def test_the_asyncio_clients_setting_holds_for_every_call(stack: Stack) -> None:
    address, retrieval = stack.triton.grpc_address, stack.sidecar.address
    async with AsyncResRankClient(
        address, retrieval=retrieval, on_failure=OnFailure.RETRIEVAL_ORDER, timeout_s=TIMEOUT_S
    ) as client:
        with stack.stopped("reranker_0_0"):
            found, ranked = await asyncio.gather(
                client.search(QUERY, **SEARCH), client.rerank(QUERY, passages=PASSAGES[:3])
            )
            assert not found.reranked
            assert not ranked.reranked
        # Late, or full where a call that was given up still waits for the reranker.
        late_or_full = (DeadlineExceededError, QueueFullError)
        with stack.stopped("reranker_0_0"), pytest.raises(late_or_full):
            await client.search(QUERY, **SEARCH, on_failure="error")


@pytest.mark.parametrize("route", ROUTES)
def test_the_callers_faults_stay_errors(stack: Stack, route: Any) -> None:
    with pytest.raises(InvalidInputError, match="QUERY: too many tokens"):
        stack.client.search("river " * 100, route=route, **OPEN)
    with pytest.raises(InvalidInputError, match=r"PASSAGES\[1\]: too many tokens"):
        stack.client.rerank(QUERY, passages=["moon", "river " * 200], **OPEN)
    with pytest.raises(InvalidInputError, match=r"on_failure: unknown \(limit error or retrieval_order, got ignore\)"):
        stack.client.search(QUERY, on_failure="ignore", route=route)


def test_the_command_shows_the_order_and_says_why(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    servers = ["--triton-url", stack.triton.grpc_address, "--retrieval-url", stack.sidecar.address]
    with stack.stopped("reranker_0_0"):
        code = run(
            ["search", QUERY, "--k", "2", "--timeout", str(TIMEOUT_S), "--on-failure", "retrieval_order", *servers]
        )
    shown = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "Passage" in shown
    assert (
        "In retrieval order, since the models failed: deadline: model 'rerank_embedded': 0.63 s of timeout_s of 0.7 s"
        in shown
    )


def test_a_triton_whose_reranker_was_killed_and_then_itself(stack: Stack) -> None:
    """Last of the file: it ends the Triton of the others."""
    by_both, by_words = (
        stack.client.search(QUERY, **SEARCH, mode=mode, rerank=False) for mode in ("hybrid", "lexical")
    )
    os.kill(stack.process("reranker_0_0").pid, signal.SIGKILL)
    for route in ROUTES:
        found = stack.client.search(QUERY, **SEARCH, route=route, **OPEN)  # type: ignore[arg-type]
        require_order(found, by_both, Outcome.DEADLINE, by_words=by_words if route == "server" else None)
    os.kill(stack.triton.pid, signal.SIGKILL)
    for route in ROUTES:
        found = stack.client.search(QUERY, **SEARCH, route=route, **OPEN)  # type: ignore[arg-type]
        require_order(found, by_words, Outcome.UNAVAILABLE)
        with pytest.raises(ServerUnavailableError):
            stack.client.search(QUERY, **SEARCH, mode="dense", route=route, **OPEN)  # type: ignore[arg-type]
    ranked = stack.client.rerank(QUERY, passages=PASSAGES[:3], **OPEN)
    assert ranked.failure is not None
    assert (ranked.failure.outcome, [passage.index for passage in ranked.passages]) == (Outcome.UNAVAILABLE, [0, 1, 2])
    stored = stack.client.rerank_stored(QUERY, ["p3", "nope", "p1"], include_texts=True, **OPEN)
    require_given(stored, outcome=Outcome.UNAVAILABLE)
    with (
        ResRankClient(stack.triton.grpc_address, max_attempts=1) as alone,
        pytest.raises(ServerUnavailableError),
    ):
        alone.search(QUERY, route="server", **OPEN)
