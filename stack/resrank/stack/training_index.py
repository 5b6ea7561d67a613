"""Hard negatives from this project's own index: the store that serves retrieval, in a folder gone afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.search import SearchMode
from resrank.retrieval.local_store import LocalVectorStore
from resrank.retrieval.records import Encoder, FloatVector, Record, RecordBatch, SearchQuery
from resrank.retrieval.schema import STORE_FILE
from resrank.retrieval.stored_texts import stored_texts
from resrank.training.lists import TrainingPassage
from resrank.training.mining import FloatMatrix, HalfMatrix, NegativeIndex, Rows
from resrank.training.passages import corpus_passages

_NO_ENCODER = "0" * 64  # nobody but this process ever asks whose vectors these are


def passages_at(path: Path) -> Iterator[TrainingPassage]:
    """Reads the passages of an index folder, which a sidecar may serve meanwhile, or of a corpus.

    Args:
        path: An index folder, or what :func:`resrank.training.passages.corpus_passages` reads.

    Raises:
        IndexFolderError: The index cannot be read.
        InvalidInputError: The path is neither.
    """
    texts = stored_texts(path) if (path / STORE_FILE).is_file() else None
    if texts is None:
        yield from corpus_passages(path)
    else:
        yield from (TrainingPassage(title, text) for title, text in texts)


class StoreIndex:
    """Searches a store whose records are named by their rows; implements ``resrank.training.mining.NegativeIndex``."""

    def __init__(self, store: LocalVectorStore) -> None:
        """Takes an open store.

        Args:
            store: Its record ids are row numbers.
        """
        self._store = store

    def nearest(self, queries: FloatMatrix, k: int) -> Rows:
        """Searches, several queries at once, since the store takes one at a time and uses one core for it."""
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)

        def rows_of(query: FloatVector) -> list[int]:
            return [int(row) for row in self._store.search(SearchQuery(SearchMode.DENSE, k, embedding=query)).ids]

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return np.array(list(threads.map(rows_of, unit)), np.int32).reshape(len(queries), k)


class StoreIndexes:
    """Makes :class:`StoreIndex`; implements ``resrank.training.mining.IndexFactory``."""

    name = "store"

    @contextmanager
    def over(self, vectors: HalfMatrix) -> Iterator[NegativeIndex]:
        """Fills a store in a temporary folder, see ``resrank.training.mining.IndexFactory.over``."""
        encoder = Encoder(_NO_ENCODER, vectors.shape[1])
        with (
            tempfile.TemporaryDirectory(prefix="resrank-training-index-") as folder,
            closing(LocalVectorStore.open(Path(folder))) as store,
        ):
            for start in range(0, len(vectors), MAX_MESSAGE_RECORDS):
                block = vectors[start : start + MAX_MESSAGE_RECORDS]
                # Without the texts, which only lexical search would read.
                records = tuple(Record(str(row), "", "") for row in range(start, start + len(block)))
                store.upsert(RecordBatch(encoder, records, block))
            yield StoreIndex(store)
