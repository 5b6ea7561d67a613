"""A checkpoint scored by the deployed engines, over the same calls that a search makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton_grpc
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from resrank.client import ResRankClient
from resrank.core.addresses import channel_options
from resrank.core.errors import QueueFullError, ResRankError
from resrank.core.fusion import read_cosine_map, read_lexical_weight
from resrank.core.names import Model, Parameter
from resrank.evaluation.evaluation import LexicalJoin
from resrank.evaluation.scorer import CandidateVectors, Float32

_IN_FLIGHT = 4  # enough that the engine never waits for the client, few enough for everybody else's requests
_TIMEOUT_S = 600.0  # nobody waits for one request; a 4B reranker on two cores takes a minute
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class ServedCheckpoint:
    """What a Triton says about the checkpoint it serves.

    Attributes:
        sha256: The checkpoint's digest.
        encoder_sha256: The encoder's identity.
        max_passages: Candidates that one pass takes.
        engines: ``encoder`` and ``reranker`` to the engine that runs them and its precision.
        join: How words count beside scores.
    """

    sha256: str
    encoder_sha256: str
    max_passages: int
    engines: Mapping[str, str]
    join: LexicalJoin


class StackScorer:
    """Implements :class:`~resrank.evaluation.scorer.Scorer` by :class:`resrank.client.ResRankClient`.

    Every query is embedded by itself and every list is one call of ``rerank``, as in a search; a few are under way at
    once. Where the server sheds load this waits, since whoever searches goes first.

    Attributes:
        served: What is served.
    """

    def __init__(self, triton: str) -> None:
        """Asks the server what it serves.

        Args:
            triton: ``host:port`` of its gRPC endpoint.

        Raises:
            ResRankError: It does not answer, or its repository is none of ``resrank export``.
        """
        self._client = ResRankClient(triton, timeout_s=_TIMEOUT_S, max_in_flight=_IN_FLIGHT)
        try:
            self._client.encoder_sha256()  # says in this project's words when no server answers
            self.served = _served(triton)
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def max_passages(self) -> int:
        """Candidates that one pass takes."""
        return self.served.max_passages

    def embed_queries(self, texts: Sequence[str]) -> Float32:
        """Embeds queries, FP32 [len(texts), d]."""
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            return np.concatenate(list(pool.map(self._embed, texts)))

    def score(self, lists: Sequence[CandidateVectors]) -> Iterator[Float32]:
        """Scores candidates, see :meth:`resrank.evaluation.scorer.Scorer.score`."""
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            yield from pool.map(self._rerank, lists)

    def _embed(self, text: str) -> Float32:
        return _patient()(self._client.embed_queries, [text], truncate=True)

    def _rerank(self, candidates: CandidateVectors) -> Float32:
        result = _patient()(self._client.rerank, candidates.query, candidates.embeddings, truncate=True)
        scores = np.empty(len(candidates.embeddings), np.float32)
        for passage in result.passages:
            scores[passage.index] = passage.score
        return scores


def _patient() -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(QueueFullError),
        wait=wait_random_exponential(max=10.0),
        stop=stop_after_delay(_PATIENCE_S),
        reraise=True,
    )


def _texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {key: value.string_value for key, value in parameters.items()}


def _served(triton: str) -> ServedCheckpoint:
    try:
        with triton_grpc.InferenceServerClient(triton, channel_args=channel_options(triton)) as server:
            configs = {
                model: server.get_model_config(model.value).config.parameters
                for model in (Model.RERANK, Model.ENCODER, Model.RERANKER)
            }
    except triton_grpc.InferenceServerException as error:
        raise ResRankError(f"{triton} does not tell its models' configs: {error.message()}") from error

    def told(model: Model, key: Parameter) -> str:
        value: str = configs[model][key].string_value
        if not value:
            raise ResRankError(
                f"model '{model}' at {triton} has no parameter '{key}': "
                "its repository was not written by `resrank export`"
            )
        return value

    rerank = _texts(configs[Model.RERANK])
    return ServedCheckpoint(
        sha256=told(Model.RERANK, Parameter.CHECKPOINT_SHA256),
        encoder_sha256=told(Model.RERANK, Parameter.ENCODER_SHA256),
        max_passages=int(told(Model.RERANK, Parameter.MAX_PASSAGES)),
        engines={
            model.value: f"{told(model, Parameter.ENGINE)} {told(model, Parameter.PRECISION)}"
            for model in (Model.ENCODER, Model.RERANKER)
        },
        join=LexicalJoin(read_cosine_map(rerank), read_lexical_weight(rerank)),
    )
