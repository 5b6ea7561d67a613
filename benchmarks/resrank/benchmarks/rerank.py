"""``rerank`` as a client sees it against its two engines called directly, one after the other, in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.workload import CANDIDATES, RerankWorkload, rerank_workload
from resrank.client import ResRankClient
from resrank.core.addresses import NO_PROXY
from resrank.core.checkpoint import Norm
from resrank.core.names import Model, Tensor
from resrank.core.progress import Notify
from resrank.core.scoring import Float32, score
from resrank.serving.engines import Engine, load_engine
from resrank.stack.triton_process import TritonProcess

TARGET = 1.15

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
        Milliseconds of this project's client, of a plain ``tritonclient`` program, and of the two engines.

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
    return Measurement(
        name="rerank",
        unit="ms",
        measured=ours,
        baseline=direct,
        bound=Bound.AT_MOST,
        target=TARGET,
        others=(plain_side,),
        facts={
            "positions": workload.reranker_inputs[Tensor.INPUT_IDS].shape[1],
            "tritonclient's ratio": plain_side.median / direct.median,
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
        self._fusion = deployment.spec.fusion
        self._workload = workload
        self._encoder: Engine | None = None
        if self._fusion.query_residual:
            self._encoder = load_engine(deployment.graph(Model.ENCODER), deployment.engine_options(Model.ENCODER))
        self._reranker = load_engine(deployment.graph(Model.RERANKER), deployment.engine_options(Model.RERANKER))
        self.label = "reranker alone" if self._encoder is None else "engines directly"

    def run(self) -> tuple[Float32 | None, dict[str, NDArray[Any]]]:
        """Computes the query's embedding, FP32 [1, d] or None, and the reranker's states."""
        embedding = None
        if self._encoder is not None:
            embedding = self._encoder.run(self._workload.encoder_inputs)[Tensor.EMBEDDING]
        return embedding, self._reranker.run(self._workload.served_reranker_inputs)

    def scores(self) -> Float32:
        """FP32 [N], what the ensemble should answer."""
        embedding, states = self.run()
        scores: Float32 = score(
            states[Tensor.PASSAGE_STATES][:, :CANDIDATES],
            states[Tensor.QUERY_STATE],
            self._workload.candidates[None],
            embedding,
            gate=self._fusion.residual_gate,
            normalize_states=self._fusion.state_norm is Norm.L2,
        )[0]
        return scores


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
