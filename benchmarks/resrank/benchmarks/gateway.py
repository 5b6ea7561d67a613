"""Reranking 100 stored passages by id over HTTP against the same call of the gRPC client."""

from __future__ import annotations

import json
import tempfile
from http.client import HTTPConnection
from pathlib import Path

from resrank.benchmarks.corpus_sample import QUERIES, fill_with_sample
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.client import ResRankClient
from resrank.core.progress import Notify
from resrank.stack.local_stack import LocalStack

TARGET_RATIO = 1.3
TARGET_ADDED_MS = 5.0
"""Either will do: where the call itself is short, a ratio says little."""

_CANDIDATES = 100
_PASSAGES = 2000
_TIMEOUT_S = 60.0
_SCORE_TOLERANCE = 1e-3  # the same engines; only what is computed together can differ


def run(deployment: Deployment, *, runs: int = 100, notify: Notify = lambda _: None) -> Measurement:
    """Measures one request at a time, over an index of 2,000 passages of random vectors.

    Args:
        deployment: What is served.
        runs: Timed requests of each side.
        notify: Called with one line per step.

    Returns:
        Milliseconds of both sides. Judged is the larger of both targets: 1.3 times the client's median, or 5 ms more.

    Raises:
        BenchmarkError: The two sides found different orders or scores.
        StackError: A server cannot be started.
    """
    ids = [f"passage-{number}" for number in range(_CANDIDATES)]
    notify("starting Triton, the sidecar and the gateway")
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(deployment.repository, Path(folder), http=True) as stack,
        ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_TIMEOUT_S) as client,
    ):
        dimension = deployment.spec.encoder.embedding_dim
        fill_with_sample(stack.sidecar.address, client.encoder_sha256(), dimension, _PASSAGES)
        assert stack.gateway is not None
        http = HttpReranking(stack.gateway.host, stack.gateway.port)
        sides = {
            "gateway": lambda number: http.rerank(QUERIES[number % len(QUERIES)], ids),
            "ResRankClient": lambda number: client.rerank_stored(QUERIES[number % len(QUERIES)], ids, truncate=True),
        }
        expected = [(p.id, p.score) for p in client.rerank_stored(QUERIES[0], ids, truncate=True).passages]
        _require_equal(http.rerank(QUERIES[0], ids), expected)
        notify(f"timing {runs} requests of each")
        spent = interleave(sides, runs=runs, warm_up=10)
        http.close()
    ours, theirs = (Side.of(label, times) for label, times in spent.items())
    return Measurement(
        name="gateway",
        unit="ms",
        measured=ours,
        baseline=theirs,
        bound=Bound.AT_MOST,
        target=max(TARGET_RATIO, 1.0 + TARGET_ADDED_MS / theirs.median),
        facts={"candidates": _CANDIDATES, "added by the gateway, ms": ours.median - theirs.median},
    )


class HttpReranking:
    """Asks over one connection that is kept, as any client's pool does."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)

    def rerank(self, query: str, ids: list[str]) -> list[tuple[str, float]]:
        """Ids and scores, best first.

        Raises:
            BenchmarkError: The answer is none.
        """
        body = json.dumps({"query": query, "document_ids": ids})
        self._connection.request("POST", "/v2/rerank", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise BenchmarkError(f"the gateway answered {answer.status}: {content[:300].decode(errors='replace')}")
        return [(result["id"], result["score"]) for result in json.loads(content)["results"]]

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


def _require_equal(found: list[tuple[str, float]], expected: list[tuple[str | None, float]]) -> None:
    same = [id_ for id_, _ in found] == [id_ for id_, _ in expected]
    close = all(abs(one - other) <= _SCORE_TOLERANCE for (_, one), (_, other) in zip(found, expected, strict=False))
    if not same or not close:
        raise BenchmarkError("the gateway and the client found different orders or scores")
