"""The steps of ``rerank`` and of a search in this process: what the servers are held against."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.deployment import Deployment
from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec, write_spec
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout
from resrank.core.scoring import Float32
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer
from resrank.export.rerank_chain import encodes_first, reranker_inputs
from resrank.serving.batching import BatchingPolicy
from resrank.serving.engine_host import EncoderGraph, RerankerGraph
from resrank.serving.engines import Engine, load_engine
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.residual_scoring import ResidualScoringStep
from resrank.serving.step import Arrays, Step, StepRequest
from resrank.stack.tuning.repository import read_config


class PassLayout:
    """Queries and candidates to what the reranker's engine reads, by the code of ``rerank_prompt``.

    Attributes:
        prompt: Where text and slots stand.
    """

    def __init__(self, deployment: Deployment, *, max_passages: int | None = None) -> None:
        """Reads the reranker's tokenizer, where it has one.

        Args:
            deployment: Whose prompt.
            max_passages: Most candidates of one pass; None for the checkpoint's own limit.
        """
        spec = _with_limit(deployment.spec, max_passages)
        self._inputs = reranker_inputs(spec)
        self._asks_vector = encodes_first(spec)
        self._longest = spec.reranker.max_query_tokens, spec.reranker.max_passages
        reranker = deployment.checkpoint / RERANKER_DIR
        self.prompt: PromptLayout = PromptTokenizer(reranker, spec.reranker).layout
        with tempfile.TemporaryDirectory() as folder:
            write_spec(spec, Path(folder))
            if spec.reranker.prompt is not None:
                shutil.copy(reranker / "tokenizer.json", folder)
            self._step = PromptingStep(Path(folder))

    def lay_out(self, query: str, candidates: NDArray[np.float16], embedding: Float32) -> Arrays:
        """Outputs of ``rerank_prompt`` for one request.

        Args:
            query: The query's text.
            candidates: FP16 [N, d].
            embedding: FP32 [1, d], the query's.
        """
        inputs: dict[Tensor, NDArray[Any]] = {
            Tensor.QUERY: np.array([[query.encode()]], dtype=object),
            Tensor.CANDIDATES: candidates[None],
        }
        if self._asks_vector:
            inputs[Tensor.QUERY_EMBEDDING] = embedding
        return _outputs(self._step, inputs)

    def engine_inputs(self, laid_out: Arrays) -> dict[str, NDArray[Any]]:
        """Those of them that the reranker reads, without padding."""
        return {tensor.value: laid_out[tensor] for tensor in self._inputs}

    def served_inputs(self, laid_out: Arrays) -> dict[str, NDArray[Any]]:
        """The same, padded by the engine's host."""
        row = {tensor: laid_out[tensor][0] for tensor in self._inputs}
        policy = BatchingPolicy.on_cpu(max_rows=1, max_tokens=self.prompt.length(*self._longest))
        return RerankerGraph().join([row], [laid_out[Tensor.INPUT_IDS].shape[1]], policy)


class RerankInProcess:
    """A repository's engines and the steps around them, called one after the other.

    Attributes:
        encoder: The encoder's engine.
        reranker: The reranker's engine.
    """

    def __init__(self, deployment: Deployment, *, max_passages: int | None = None) -> None:
        """Loads them.

        Args:
            deployment: What would be served.
            max_passages: Most candidates of one pass; None for the checkpoint's own limit.

        Raises:
            EngineError: An engine is not installed or refuses its graph.
        """
        spec = deployment.spec
        self._queries = EncoderTokenizer(deployment.checkpoint / ENCODER_DIR, spec.encoder, for_queries=True)
        self._query_policy = BatchingPolicy.on_cpu(max_rows=1, max_tokens=spec.encoder.max_query_tokens)
        self._reads_query = spec.fusion.query_residual
        self._layout = PassLayout(deployment, max_passages=max_passages)
        with tempfile.TemporaryDirectory() as folder:
            write_spec(spec, Path(folder))
            self._scoring = ResidualScoringStep(Path(folder), _parameters(deployment, Model.RESIDUAL_SCORING))
        self.encoder: Engine = load_engine(deployment.graph(Model.ENCODER), deployment.engine_options(Model.ENCODER))
        self.reranker: Engine = load_engine(deployment.graph(Model.RERANKER), deployment.engine_options(Model.RERANKER))

    def embed(self, query: str) -> Float32:
        """FP32 [1, d] of a query."""
        tokens = self._queries.encode([query.encode()])
        row = {Tensor.INPUT_IDS: tokens.input_ids[0], Tensor.ATTENTION_MASK: tokens.attention_mask[0]}
        inputs = EncoderGraph().join([row], [tokens.input_ids.shape[1]], self._query_policy)
        embedding: Float32 = self.encoder.run(inputs)[Tensor.EMBEDDING]
        return embedding

    def score(self, query: str, candidates: NDArray[np.float16], embedding: Float32) -> Float32:
        """What ``rerank`` answers, FP32 [N].

        Args:
            query: The query's text.
            candidates: FP16 [N, d], in any order.
            embedding: FP32 [1, d], the query's.
        """
        laid_out = self._layout.lay_out(query, candidates, embedding)
        found = self.reranker.run(self._layout.served_inputs(laid_out))
        width = laid_out[Tensor.CANDIDATES].shape[1]
        said = {
            Tensor(name): array if name == Tensor.QUERY_STATE else array[:, :width] for name, array in found.items()
        }
        beside = {
            tensor: laid_out[tensor]
            for tensor in (Tensor.CANDIDATES, Tensor.CANDIDATE_COUNT, Tensor.CANDIDATE_PLACES)
            if tensor in laid_out
        }
        vector = {Tensor.QUERY_EMBEDDING: embedding} if self._reads_query else {}
        scores: Float32 = _outputs(self._scoring, {**said, **beside, **vector})[Tensor.SCORES][0]
        return scores


def _with_limit(spec: CheckpointSpec, max_passages: int | None) -> CheckpointSpec:
    if max_passages is None:
        return spec
    return spec.model_copy(update={"reranker": spec.reranker.model_copy(update={"max_passages": max_passages})})


def _parameters(deployment: Deployment, model: Model) -> Mapping[str, str]:
    config = read_config(deployment.repository, model)
    return {name: value.string_value for name, value in config.parameters.items()}


def _outputs(step: Step, inputs: Arrays) -> Arrays:
    """Raises what the step would answer to its one caller."""
    (outcome,) = step.run([StepRequest(inputs)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
