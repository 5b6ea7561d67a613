"""``rerank`` as a client sees it against its two engines called directly, one after the other, in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.in_process import RerankInProcess
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.workload import CANDIDATES, RerankWorkload, rerank_workload
from resrank.client import ResRankClient
from resrank.core.addresses import NO_PROXY
from resrank.core.names import Model, Tensor
from resrank.core.progress import Notify
from resrank.core.scoring import Float32
from resrank.stack.triton_process import TritonProcess

TARGET = 1.15
"""How much slower than its engines a ``rerank`` with text may be."""

SLOTS_ALONE_LIMIT_MS = 15.0
"""For a reranker without text, whose engines take less time than a request's way to them and back."""

_TIMEOUT_S = 60.0
_SCORE_TOLERANCE = 1e-3  # the same engines on the same inputs: only their batches' padding could differ


def run(deployment: Deployment, *, runs: int = 50, notify: Notify = lambda _: None) -> Measurement:
    """Measures one request of a 24-token query and 100 candidates, one at a time.

    The engines are those of the repository, with its options. Their inputs are prepared beforehand, so that the
    baseline is engine time alone: what the ensemble adds is tokenization, layout, scoring, Triton and gRPC.

    Args:
        deployment: What is served.
        runs: Timed requests of each side.
        notify: Called with one line per step.

    Returns:
        Milliseconds of this project's client, of a plain ``tritonclient`` program, and of the two engines. Judged is
        the ratio to the engines, or, where the reranker reads no text, the time itself.

    Raises:
        BenchmarkError: The checkpoint is too small for the request, or the sides' scores differ.
        EngineError: An engine is not installed or refuses its graph.
        StackError: Triton cannot be started.
    """
    workload = rerank_workload(deployment)
    notify("loading the engines")
    engines = DirectEngines(deployment, workload)
    notify("starting Triton")
    with (
        TritonProcess(deployment.repository) as triton,
        ResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S) as client,
        triton_grpc.InferenceServerClient(triton.grpc_address, channel_args=NO_PROXY) as plain,
    ):
        _require_equal(engines.scores(), _scores_of(client, workload))
        notify(f"timing {runs} requests of each")
        spent = interleave(
            {
                "ResRankClient": lambda _: client.rerank(workload.query, workload.candidates),
                "tritonclient": lambda _: _infer(plain, workload),
                engines.label: lambda _: engines.run(),
            },
            runs=runs,
            warm_up=5,
        )
    ours, plain_side, direct = (Side.of(label, times) for label, times in spent.items())
    reads_text = deployment.spec.reranker.prompt is not None
    return Measurement(
        name="rerank",
        unit="ms",
        measured=ours,
        baseline=direct if reads_text else Side.of("limit", [SLOTS_ALONE_LIMIT_MS]),
        bound=Bound.AT_MOST,
        target=TARGET if reads_text else 1.0,
        others=(plain_side,) if reads_text else (plain_side, direct),
        facts={
            "positions": workload.reranker_inputs[Tensor.INPUT_IDS].shape[1],
            "ratio to the engines": ours.median / direct.median,
            "tritonclient's": plain_side.median / direct.median,
            "added by the ensemble, ms": ours.median - direct.median,
        },
    )


class DirectEngines:
    """Encoder (where the scores need the query's vector) and reranker of a repository, in this process."""

    def __init__(self, deployment: Deployment, workload: RerankWorkload) -> None:
        """Loads the engines that the ensemble would run.

        Raises:
            EngineError: An engine is not installed or refuses its graph.
        """
        self._steps = RerankInProcess(deployment)
        self._workload = workload
        self._encodes = deployment.spec.fusion.query_residual
        self.label = "engines directly" if self._encodes else "reranker alone"

    def run(self) -> None:
        """Computes the query's embedding, where it is needed, and what the reranker says."""
        if self._encodes:
            self._steps.encoder.run(self._workload.encoder_inputs)
        self._steps.reranker.run(self._workload.served_reranker_inputs)

    def scores(self) -> Float32:
        """FP32 [N], what the ensemble should answer."""
        query = self._workload.query
        return self._steps.score(query, self._workload.candidates, self._steps.embed(query))


def _scores_of(client: ResRankClient, workload: RerankWorkload) -> Float32:
    scores = np.empty(CANDIDATES, np.float32)
    for passage in client.rerank(workload.query, workload.candidates).passages:
        scores[passage.index] = passage.score
    return scores


def _infer(client: Any, workload: RerankWorkload) -> Float32:
    """What a program does that knows nothing but the model's inputs and outputs."""
    query = triton_grpc.InferInput(Tensor.QUERY, [1, 1], "BYTES")
    query.set_data_from_numpy(np.array([[workload.query.encode()]], dtype=object))
    candidates = triton_grpc.InferInput(Tensor.CANDIDATES, [1, *workload.candidates.shape], "FP16")
    candidates.set_data_from_numpy(workload.candidates[None])
    result = client.infer(Model.RERANK, [query, candidates], client_timeout=_TIMEOUT_S)
    scores: Float32 = result.as_numpy(Tensor.SCORES)[0]
    return scores


def _require_equal(expected: Float32, found: Float32) -> None:
    difference = float(np.abs(expected - found).max())
    if not difference <= _SCORE_TOLERANCE:
        raise BenchmarkError(
            f"Triton's scores and the engines' differ by {difference:.1e} (limit {_SCORE_TOLERANCE}): "
            "the two sides do not compute the same"
        )
