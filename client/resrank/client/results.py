"""What the client's methods return: frozen, and the same sync and asyncio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.fail_open import Failure
from resrank.core.metadata import Metadata


@dataclass(frozen=True)
class RankedPassage:
    """One passage at its place in a ranking.

    Attributes:
        rank: Place after ranking, from 1.
        index: Place among the candidates as they were given to the reranker, from 0.
        score: What the ranking is by: the reranker's score, where candidates come with BM25 plus its weighted share
            (:mod:`resrank.core.fusion`); the retriever's own score in a search without reranking; 0 of the caller's own
            candidates where the reranker failed and their order was kept.
        id: The passage's id in the index; None when the caller brought the candidates.
        title: The passage's title; None when unknown.
        text: The passage's text; None when unknown.
        candidate_rank: Place in retrieval order before reranking, from 1.
        candidate_score: The retriever's score: a cosine (dense), BM25 (lexical), or what hybrid's fusion made of both;
            None when the caller brought the candidates.
        dense_score: Cosine of query and passage, whichever way found it; None where no embedding was searched with.
        lexical_score: BM25, likewise; None where no words were searched for, and the caller brought none.
        rerank_score: The reranker's alone; None without reranking.
        metadata: The passage's, by name; None where it was not asked for.
    """

    rank: int
    index: int
    score: float
    id: str | None
    title: str | None
    text: str | None
    candidate_rank: int
    candidate_score: float | None
    dense_score: float | None = None
    lexical_score: float | None = None
    rerank_score: float | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True)
class RerankResult:
    """Candidates in their new order.

    Attributes:
        passages: By score descending, ties by input index. All candidates, or the best of the first pass when a second
            one was asked for and needed.
        timings: Milliseconds as the client saw them: ``retrieve``, where stored passages were asked for, ``rerank``
            and, when there was one, ``second_pass``; ``total``.
        truncated: Of texts, places in the caller's list of those that were read only in part.
        missing_ids: Of stored passages that were asked for, those that the index does not have, in the caller's order.
        reranked: False where the reranker failed and ``on_failure=retrieval_order`` kept the order given.
        failure: Why; None where all went well.
        triton: Of stored passages behind an alias, the Triton that it names; empty for the client's own.
        tokens_read: Tokens of query and texts that the encoder read for it: what it knew already is not among them.
    """

    passages: tuple[RankedPassage, ...]
    timings: Mapping[str, float]
    missing_ids: tuple[str, ...] = ()
    reranked: bool = True
    failure: Failure | None = None
    truncated: tuple[int, ...] = ()
    triton: str = ""
    tokens_read: int = 0


@dataclass(frozen=True)
class SearchResult:
    """The best passages for a query.

    Attributes:
        query: The query as it was given.
        mode: ``hybrid``, ``dense`` or ``lexical``: how the candidates were found; ``lexical`` in place of ``hybrid``
            where the encoder failed.
        reranked: Whether the reranker ordered them.
        passages: By score descending, ties by the candidate's rank.
        timings: Milliseconds: ``embed_query``, ``retrieve``, ``rerank`` (those that the search took, in this order), as
            the side that did them saw them, and ``total`` as the client saw it.
        failure: What the search did without, by ``on_failure=retrieval_order``, and why; None where all went well.
        collection: Where they were found: what an alias stood for.
        triton: The Triton that the alias names, which did all of it; empty for the client's own.
    """

    query: str
    mode: str
    reranked: bool
    passages: tuple[RankedPassage, ...]
    timings: Mapping[str, float]
    failure: Failure | None = None
    collection: str = DEFAULT_COLLECTION
    triton: str = ""


@dataclass(frozen=True)
class RetrievalHealth:
    """What the sidecar says about its index.

    Attributes:
        encoder_sha256: The encoder that made the index's vectors; None for an index that has none yet.
        embedding_dim: Their dimension; None for an index that has none yet.
        passages: In the index.
    """

    encoder_sha256: str | None
    embedding_dim: int | None
    passages: int


@dataclass(frozen=True)
class HealthReport:
    """Whether the servers behind a client can do their work.

    Attributes:
        live: Triton answers.
        ready: Triton and all its models are ready.
        models: Readiness of each model that the client calls.
        encoder_sha256: The encoder behind Triton's ``embed_*`` models.
        retrieval: The sidecar's answer; None when the client has no sidecar or it does not answer.
        problems: What is wrong, one sentence each; empty when ``ok``.
    """

    live: bool
    ready: bool
    models: Mapping[str, bool]
    encoder_sha256: str | None
    retrieval: RetrievalHealth | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every configured server is ready and the index belongs to the encoder."""
        return not self.problems
