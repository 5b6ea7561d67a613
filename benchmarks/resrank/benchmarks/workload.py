"""The reranking request that is timed: one query of 24 tokens and 100 candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR
from resrank.core.errors import InvalidInputError
from resrank.core.names import Tensor
from resrank.core.prompt import pad_candidates
from resrank.core.scoring import normalize
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer
from resrank.serving.batching import BatchingPolicy
from resrank.serving.engine_host import RerankerGraph

CANDIDATES = 100
QUERY_TOKENS = 24

_TEXT = (
    "In which year did the author of the first published algorithm intended for a machine, who was the only "
    "legitimate child of a famous English poet, begin her correspondence with the inventor of that machine?"
)


@dataclass(frozen=True)
class RerankWorkload:
    """One request, as text for the servers and as tensors for the engines.

    Attributes:
        query: The query's text.
        candidates: FP16 [100, d], random vectors of length 1.
        encoder_inputs: Tensors of ``encoder`` for the query.
        reranker_inputs: Tensors of ``reranker`` for query and candidates, without padding.
        served_reranker_inputs: The same, padded by the engine's host; places behind the candidates repeat the last.
    """

    query: str
    candidates: NDArray[np.float16]
    encoder_inputs: dict[str, NDArray[Any]]
    reranker_inputs: dict[str, NDArray[Any]]
    served_reranker_inputs: dict[str, NDArray[Any]]


def rerank_workload(deployment: Deployment) -> RerankWorkload:
    """Prepares the request for a deployment's tokenizers and sizes.

    Raises:
        BenchmarkError: The checkpoint takes fewer candidates or tokens in one pass.
    """
    spec = deployment.spec
    for field, limit, wanted in (
        ("reranker.max_passages", spec.reranker.max_passages, CANDIDATES),
        ("reranker.max_query_tokens", spec.reranker.max_query_tokens, QUERY_TOKENS),
    ):
        if limit < wanted:
            raise BenchmarkError(f"the benchmark needs {field} of {wanted} or more, the checkpoint has {limit}")
    prompts = PromptTokenizer(deployment.checkpoint / RERANKER_DIR, spec.reranker)
    query = query_of(prompts, QUERY_TOKENS)
    vectors = np.random.default_rng(0).standard_normal((CANDIDATES, spec.encoder.embedding_dim), np.float32)
    candidates = normalize(vectors).astype(np.float16)
    queries = EncoderTokenizer(deployment.checkpoint / ENCODER_DIR, spec.encoder, for_queries=True)
    tokens = queries.encode([query.encode()])
    prompt = prompts.layout.batch(prompts.encode([query.encode()]), [CANDIDATES])
    reranker_inputs: dict[str, NDArray[Any]] = {
        Tensor.INPUT_IDS: prompt.input_ids,
        Tensor.PASSAGE_POSITIONS: prompt.passage_positions,
        Tensor.LAST_POSITION: prompt.last_position,
        Tensor.CANDIDATES: pad_candidates(candidates[None], prompt.passage_positions.shape[1]),
    }
    positions = prompt.input_ids.shape[1]
    longest = prompts.layout.length(spec.reranker.max_query_tokens, spec.reranker.max_passages)
    policy = BatchingPolicy.on_cpu(max_rows=1, max_tokens=longest)
    row = {Tensor(name): array[0] for name, array in reranker_inputs.items()}
    return RerankWorkload(
        query,
        candidates,
        {Tensor.INPUT_IDS: tokens.input_ids, Tensor.ATTENTION_MASK: tokens.attention_mask},
        reranker_inputs,
        RerankerGraph().join([row], [positions], policy),
    )


def query_of(tokenizer: PromptTokenizer, tokens: int) -> str:
    """A query of exactly so many tokens, whatever the tokenizer: the longest such beginning of a fixed question.

    Args:
        tokenizer: The reranker's.
        tokens: How many, without the prompt around the query.

    Raises:
        BenchmarkError: No beginning of it has that many.
    """
    for end in range(len(_TEXT), 0, -1):
        try:
            (ids,) = tokenizer.encode([_TEXT[:end].encode()])
        except InvalidInputError:  # longer than the tokenizer's limit
            continue
        if len(ids) == tokens:
            return _TEXT[:end]
    raise BenchmarkError(f"no beginning of the benchmark's question has exactly {tokens} tokens")
