"""Candidates as retrieval finds them: hard negatives, with the relevant passages that really are among them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.training.lists import CandidateList, LabelKind
from resrank.training.pool import JudgedQuestion, PassagePool

logger = logging.getLogger(__name__)

HalfMatrix = NDArray[np.float16]
FloatMatrix = NDArray[np.float32]
Rows = NDArray[np.int32]
"""Rows of a pool for each question, best first; int32 [questions, depth]."""

_Matrix = TypeVar("_Matrix", NDArray[np.float16], NDArray[np.float32])
_CACHE_FORMAT = "mined-rows-1"


class NegativeIndex(Protocol):
    """Finds the passages of a pool that are nearest to a query."""

    def nearest(self, queries: FloatMatrix, k: int) -> Rows:
        """Searches.

        Args:
            queries: fp32 [Q, d], none all zero.
            k: At most the size of the pool.

        Returns:
            Rows of the k passages with the greatest cosines, best first, int32 [Q, k].
        """


class IndexFactory(Protocol):
    """Makes the index that is searched."""

    @property
    def name(self) -> str:
        """Tells kinds of indexes apart; candidates mined with one are not reused for another."""

    def over(self, vectors: HalfMatrix) -> AbstractContextManager[NegativeIndex]:
        """An index over passage vectors, fp16 [P, d], usable inside a ``with``."""


class TextEncoder(Protocol):
    """Turns texts into vectors, with the encoder as it is before training."""

    @property
    def identity(self) -> str:
        """Digest of all that decides the vectors; mined candidates are reused as long as it is the same."""

    def encode_passages(self, texts: Sequence[str]) -> HalfMatrix:
        """Encodes passages, fp16 [len(texts), d], rounded as an index stores them."""

    def encode_queries(self, texts: Sequence[str]) -> FloatMatrix:
        """Encodes queries, fp32 [len(texts), d]."""


class Retriever:
    """Retrieves candidates for questions, and remembers on disk what it found."""

    def __init__(self, encoder: TextEncoder, indexes: IndexFactory, cache: Path | None = None) -> None:
        """Takes what retrieves.

        Args:
            encoder: Makes the vectors.
            indexes: Makes the index that is searched.
            cache: Folder to remember results in; None for none.
        """
        self._encoder = encoder
        self._indexes = indexes
        self._cache = cache
        self._encoded: tuple[str, HalfMatrix] | None = None

    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        """Finds each query's candidates.

        Args:
            pool: What is searched.
            queries: The questions.
            depth: Candidates for each; a smaller pool gives all it has.

        Returns:
            Rows of the pool, best first, int32 [len(queries), min(depth, len(pool))].

        Raises:
            InvalidInputError: The encoder's vectors are not finite, or zero.
        """
        depth = min(depth, len(pool))
        file = self._cache and self._cache / f"mined-{self._digest(pool, queries, depth)}.npy"
        if file and (known := _read_rows(file, (len(queries), depth), len(pool))) is not None:
            return known
        with self.index(pool) as index:
            rows = index.nearest(self.query_vectors(queries), depth)
        if file:
            _write_rows(file, rows)
        return rows

    def index(self, pool: PassagePool) -> AbstractContextManager[NegativeIndex]:
        """An index over a pool's vectors, usable inside a ``with``."""
        return self._indexes.over(self.vectors(pool))

    def query_vectors(self, texts: Sequence[str]) -> FloatMatrix:
        """Questions' vectors, fp32 [len(texts), d]."""
        return _usable(self._encoder.encode_queries(texts), "query")

    def vectors(self, pool: PassagePool) -> HalfMatrix:
        """A pool's vectors, fp16 [P, d]; the last pool's are kept: two splits of a collection have one corpus."""
        if self._encoded is None or self._encoded[0] != pool.sha256:
            self._encoded = pool.sha256, _usable(self._encoder.encode_passages(pool.texts()), "passage")
        return self._encoded[1]

    def _digest(self, pool: PassagePool, queries: Sequence[str], depth: int) -> str:
        """Hex digest of everything that the rows depend on."""
        digest = hashlib.sha256()
        for part in (_CACHE_FORMAT, self._encoder.identity, self._indexes.name, pool.sha256, str(depth), *queries):
            digest.update(hashlib.sha256(part.encode()).digest())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Mined:
    """Lists made of retrieved candidates.

    Attributes:
        lists: Those with something to learn, in the questions' order.
        without_relevant: Questions left out since none of their relevant passages was retrieved.
        nothing_to_rank: Questions left out since all that was retrieved has the same grade.
    """

    lists: tuple[CandidateList, ...]
    without_relevant: int
    nothing_to_rank: int


def mine(questions: Sequence[JudgedQuestion], pool: PassagePool, rows: Sequence[Sequence[int]], source: str) -> Mined:
    """Makes lists of exactly what was retrieved.

    Relevant passages further down are not added: beside passages that the retriever likes, they would be the ones it
    likes least, and the model would learn to rank against it.

    Args:
        questions: With their judgements.
        pool: What was searched.
        rows: Of each question's candidates, best first.
        source: Name that the lists carry.

    Returns:
        The lists, and how many questions gave none.
    """
    lists = []
    without_relevant = nothing_to_rank = 0
    for question, found in zip(questions, rows, strict=True):
        labels = tuple(question.grades.get(row, 0.0) for row in found)
        if not any(labels):
            without_relevant += 1
        elif len(set(labels)) == 1:
            nothing_to_rank += 1
        else:
            passages = tuple(pool.passages[row] for row in found)
            lists.append(CandidateList(question.id, question.query, passages, labels, LabelKind.GRADES, source))
    return Mined(tuple(lists), without_relevant, nothing_to_rank)


def _usable(vectors: _Matrix, what: str) -> _Matrix:
    """The vectors, when each has a direction."""
    wrong = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
    if len(wrong):
        raise InvalidInputError(
            "encoder", f"gives a vector of zeros or with NaN or Inf for {len(wrong)} texts, first for {what} {wrong[0]}"
        )
    return vectors


def _read_rows(file: Path, shape: tuple[int, int], pool_size: int) -> Rows | None:
    """What was written earlier, or None when there is nothing or it is damaged."""
    try:
        with file.open("rb") as stream:
            rows: Rows = np.load(stream, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged and made anew: %s", file, error)
        return None
    if rows.shape != shape or rows.dtype != np.int32 or not ((rows >= 0) & (rows < pool_size)).all():
        logger.warning("%s is damaged and made anew: its rows are not those of this pool", file)
        return None
    return rows


def _write_rows(file: Path, rows: Rows) -> None:
    """Writes so that a reader finds all or nothing; a disk that refuses only costs the next run its time."""
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            np.save(stream, rows)
        aside.replace(file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        logger.warning("mined candidates are not remembered in %s: %s", file.parent, error.strerror)
