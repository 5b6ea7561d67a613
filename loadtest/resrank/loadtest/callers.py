"""The calls themselves: drawn from a scenario's distributions, made with the client library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.client import HealthReport, ResRankClient
from resrank.core.errors import ResRankError
from resrank.core.names import Model
from resrank.core.scoring import normalize
from resrank.loadtest.dataset import Dataset
from resrank.loadtest.errors import LoadTestError
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.scenario import EmbeddingSource, EmbedRole, Scenario

_PREPARATION_S = 600.0
"""Budget for embedding the passages before the load starts: 256 take three seconds on two cores."""

_REHEARSAL_S = 60.0
"""Budget of the one call of each kind before the load: the first may find engines cold."""

_HEALTH_S = 5.0

_RANDOM_VECTORS = 4096
"""Random candidates to choose from: enough that no two calls are alike."""


@dataclass(frozen=True)
class DrawnCall:
    """A call that is ready to be made.

    Attributes:
        kind: Of what kind.
        make: Makes it within so many seconds, and raises what the client raises.
    """

    kind: CallKind
    make: Callable[[float], object]


class Callers:
    """Draws calls.

    Args:
        scenario: Says how they look.
        client: Makes them; it must not retry, which would hide outcomes.
        dataset: What they are made of.
        vectors: FP16 [n, d], candidates of ``rerank``; None where the mix has none.
    """

    def __init__(
        self, scenario: Scenario, client: ResRankClient, dataset: Dataset, vectors: NDArray[np.float16] | None
    ) -> None:
        self._scenario = scenario
        self._client = client
        self._dataset = dataset
        self._vectors = vectors
        shares = scenario.mix.shares()
        self.kinds = tuple(shares)
        self._weights = tuple(shares.values())

    def draw(self, rng: np.random.Generator) -> DrawnCall:
        """Draws a call of the mix."""
        return self.of_kind(self.kinds[int(rng.choice(len(self.kinds), p=self._weights))], rng)

    def of_kind(self, kind: CallKind, rng: np.random.Generator) -> DrawnCall:
        """Draws a call of one kind. Texts over a model's token maximum are cut, as an index's are."""
        scenario, client = self._scenario, self._client
        if kind is CallKind.EMBED:
            count = scenario.embed.texts.draw(rng)
            if scenario.embed.role is EmbedRole.QUERY:
                texts = [self._query(rng) for _ in range(count)]
                return DrawnCall(kind, lambda budget: client.embed_queries(texts, truncate=True, timeout_s=budget))
            texts = self._passages(count, rng)
            return DrawnCall(kind, lambda budget: client.embed_passages(texts, truncate=True, timeout_s=budget))
        query, count = self._query(rng), scenario.candidates.draw(rng)
        if kind is CallKind.RERANK:
            assert self._vectors is not None
            rows = rng.choice(len(self._vectors), count, replace=count > len(self._vectors))
            candidates = self._vectors[rows]
            return DrawnCall(kind, lambda budget: client.rerank(query, candidates, truncate=True, timeout_s=budget))
        if kind is CallKind.RERANK_TEXT:
            texts = self._passages(count, rng)
            return DrawnCall(kind, lambda budget: client.rerank(query, passages=texts, truncate=True, timeout_s=budget))
        k, mode, route = min(scenario.search.k, count), scenario.search.mode, scenario.search.route
        return DrawnCall(
            kind,
            lambda budget: client.search(
                query, k, candidates=count, mode=mode, route=route, truncate=True, timeout_s=budget
            ),
        )

    def rehearse(self) -> None:
        """Makes one call of each kind, so that what cannot work is known before the load.

        Raises:
            ResRankError: One failed.
        """
        for kind in self.kinds:
            try:
                self.of_kind(kind, np.random.default_rng(0)).make(_REHEARSAL_S)
            except ResRankError as error:
                raise LoadTestError(f"{kind}, called once before the load, failed: {error}") from error

    def _query(self, rng: np.random.Generator) -> str:
        words = self._scenario.query_words
        return self._dataset.query(rng, None if words is None else words.draw(rng))

    def _passages(self, count: int, rng: np.random.Generator) -> list[str]:
        passages = self._dataset.passages
        rows = rng.choice(len(passages), count, replace=count > len(passages))
        return [passages[row] for row in rows]


def prepare_callers(scenario: Scenario, client: ResRankClient, dataset: Dataset) -> Callers:
    """Asks the servers whether they are ready, makes the candidates, and makes one call of each kind.

    Raises:
        ResRankError: A server does not answer or is not ready, the index is empty or another encoder's, or a call
            failed.
    """
    require_ready(scenario, client.health(timeout_s=_HEALTH_S))
    vectors = None
    if CallKind.RERANK in scenario.mix.shares():
        if scenario.embeddings is EmbeddingSource.SERVER:
            embedded = client.embed_passages(dataset.passages, truncate=True, timeout_s=_PREPARATION_S)
        else:
            dimension = client.embed_queries(["a query"], timeout_s=_REHEARSAL_S).shape[1]
            shape = (max(_RANDOM_VECTORS, scenario.candidates.largest), dimension)
            embedded = normalize(np.random.default_rng(scenario.seed).standard_normal(shape, np.float32))
        vectors = embedded.astype(np.float16)
    callers = Callers(scenario, client, dataset, vectors)
    callers.rehearse()
    return callers


def require_ready(scenario: Scenario, report: HealthReport) -> None:
    """Refuses a stack that lacks what a scenario calls, and nothing else.

    Raises:
        LoadTestError: A server does not answer, a model that is called is not ready, or the index is empty or another
            encoder's.
    """
    if not report.live:
        raise LoadTestError(report.problems[0])
    kinds = scenario.mix.shares()
    by_server = scenario.search.route == "server"
    behind = (Model.RERANK_EMBEDDED,) if Model.RERANK_EMBEDDED in report.models else ()
    needed = {
        CallKind.RERANK: (Model.RERANK,),
        CallKind.RERANK_TEXT: (Model.RERANK_TEXT,),
        CallKind.SEARCH: (Model.SEARCH,) if by_server else (Model.EMBED_QUERY, Model.RERANK, *behind),
        CallKind.EMBED: (Model.EMBED_QUERY if scenario.embed.role is EmbedRole.QUERY else Model.EMBED_PASSAGE,),
    }
    for kind in kinds:
        for model in needed[kind]:
            if not report.models[model]:
                raise LoadTestError(f"{kind} needs model '{model}', which is not ready")
    if CallKind.SEARCH not in kinds:
        return
    if report.retrieval is None:
        if by_server:  # which asks the sidecar itself; whether it can, one call before the load tells
            return
        raise LoadTestError(
            next((text for text in report.problems if "sidecar" in text), "no retrieval sidecar answers")
        )
    if not report.retrieval.passages:
        raise LoadTestError("search needs an index, and the sidecar's is empty: fill it with resrank index build")
    if not report.ok and report.retrieval.encoder_sha256 != report.encoder_sha256:
        raise LoadTestError(report.problems[-1])
