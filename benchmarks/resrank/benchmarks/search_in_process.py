"""A dense search whose three parts are called one after the other in this process: encode, retrieve, rerank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.in_process import RerankInProcess
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.scoring import Float32, normalize, ranking
from resrank.core.search import SearchMode
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.records import Encoder, Record, RecordBatch, SearchQuery

STAGES = ("encode", "retrieve", "rerank")


class SearchInProcess:
    """The repository's engines and the sidecar's own store, without a server.

    Attributes:
        spent_ms: Stage to milliseconds of each search so far.
    """

    def __init__(self, deployment: Deployment, store: LocalVectorStore) -> None:
        """Loads the engines.

        Args:
            deployment: What would be served.
            store: What is searched.

        Raises:
            EngineError: An engine is not installed or refuses its graph.
        """
        self._steps = RerankInProcess(deployment)
        self._store = store
        self.spent_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def search(self, query: str, k: int, candidates: int) -> tuple[list[str], Float32]:
        """Ids and scores FP32 [k], best first.

        Args:
            query: Text.
            k: How many are wanted.
            candidates: How many are reranked.
        """
        moments = [time.perf_counter()]
        embedding = self._steps.embed(query)
        moments.append(time.perf_counter())
        hits = self._store.search(
            SearchQuery(
                SearchMode.DENSE,
                candidates,
                embedding=normalize(embedding)[0],
                include_texts=True,
                include_embeddings=True,
            )
        )
        moments.append(time.perf_counter())
        assert hits.vectors is not None
        scores = self._steps.score(query, hits.vectors, embedding)
        best = ranking(scores)[:k]
        moments.append(time.perf_counter())
        for stage, milliseconds in zip(STAGES, 1e3 * np.diff(moments), strict=True):
            self.spent_ms[stage].append(float(milliseconds))
        return [hits.ids[place] for place in best], scores[best]


@contextmanager
def store_in_process(
    folder: Path, encoder_sha256: str, vectors: NDArray[np.floating[Any]]
) -> Iterator[LocalVectorStore]:
    """A store with the records of :func:`resrank.benchmarks.stored_vectors.store_vectors`, searched by one thread each.

    Args:
        folder: Where it is kept.
        encoder_sha256: Whose vectors they pretend to be.
        vectors: Floats [n, d].
    """
    encoder = Encoder(encoder_sha256, vectors.shape[1])
    threads = faiss.omp_get_max_threads()
    store = LocalVectorStore.open(folder)
    try:
        for start in range(0, len(vectors), MAX_MESSAGE_RECORDS):
            block = vectors[start : start + MAX_MESSAGE_RECORDS].astype(np.float16)
            records = tuple(Record(str(start + row), f"passage {start + row}", "") for row in range(len(block)))
            store.upsert(RecordBatch(encoder, records, block))
        faiss.omp_set_num_threads(1)  # as the sidecar searches
        yield store
    finally:
        faiss.omp_set_num_threads(threads)
        store.close()
