"""The reranking request that is timed: one query of 24 tokens and 100 candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.in_process import PassLayout
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR
from resrank.core.names import Tensor
from resrank.core.scoring import normalize
from resrank.core.tokenization import EncoderTokenizer, load_tokenizer

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
    query = query_of(deployment, QUERY_TOKENS)
    # The last one stands in for the query's own vector: what an engine computes does not depend on it.
    vectors = np.random.default_rng(0).standard_normal((CANDIDATES + 1, spec.encoder.embedding_dim), np.float32)
    units = normalize(vectors)
    candidates = units[:CANDIDATES].astype(np.float16)
    queries = EncoderTokenizer(deployment.checkpoint / ENCODER_DIR, spec.encoder, for_queries=True)
    tokens = queries.encode([query.encode()])
    layout = PassLayout(deployment)
    laid_out = layout.lay_out(query, candidates, units[CANDIDATES:])
    return RerankWorkload(
        query,
        candidates,
        {Tensor.INPUT_IDS: tokens.input_ids, Tensor.ATTENTION_MASK: tokens.attention_mask},
        layout.engine_inputs(laid_out),
        layout.served_inputs(laid_out),
    )


def query_of(deployment: Deployment, tokens: int) -> str:
    """A query of exactly so many tokens, whatever the tokenizer: the longest such beginning of a fixed question.

    Args:
        deployment: Whose reranker's tokens count; the encoder's, where the reranker reads no text.
        tokens: How many, without the prompt or the special tokens around the query.

    Raises:
        BenchmarkError: No beginning of it has that many.
    """
    reads_text = deployment.spec.reranker.prompt is not None
    tokenizer = load_tokenizer(deployment.checkpoint / (RERANKER_DIR if reads_text else ENCODER_DIR))
    for end in range(len(_TEXT), 0, -1):
        if len(tokenizer.encode(_TEXT[:end], add_special_tokens=False).ids) == tokens:
            return _TEXT[:end]
    raise BenchmarkError(f"no beginning of the benchmark's question has exactly {tokens} tokens")
