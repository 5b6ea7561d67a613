"""What training reads of indexes: the passages of one that exists, and the nearest ones of a pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np

from resrank.core.scoring import normalize
from resrank.retrieval.local.schema import STORE_FILE
from resrank.retrieval.local.stored_texts import stored_texts
from resrank.training.lists import TrainingPassage
from resrank.training.mining import FloatMatrix, HalfMatrix, NegativeIndex, Rows
from resrank.training.passages import corpus_passages


def passages_at(path: Path) -> Iterator[TrainingPassage]:
    """Reads the passages of an index folder, which a sidecar may serve meanwhile, or of a corpus.

    Those with neither title nor text are passed over, as vectors can be stored without either.

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
        yield from (TrainingPassage(title, text) for title, text in texts if (title + text).strip())


class FlatIndex:
    """Exact search by products of whole batches; implements ``resrank.training.mining.NegativeIndex``."""

    def __init__(self, vectors: HalfMatrix) -> None:
        """Takes what is searched.

        Args:
            vectors: FP16 [P, d], none all zero.
        """
        self._unit = normalize(vectors.astype(np.float32))

    def nearest(self, queries: FloatMatrix, k: int) -> Rows:
        """Searches all queries at once: one at a time, thousands of synthetic lists took minutes."""
        _, rows = faiss.knn(normalize(queries), self._unit, k, metric=faiss.METRIC_INNER_PRODUCT)
        return np.asarray(rows, dtype=np.int32)


class FlatIndexes:
    """Makes :class:`FlatIndex`; implements ``resrank.training.mining.IndexFactory``."""

    name = "flat"

    @contextmanager
    def over(self, vectors: HalfMatrix) -> Iterator[NegativeIndex]:
        """Keeps the vectors in memory, see ``resrank.training.mining.IndexFactory.over``."""
        yield FlatIndex(vectors)
