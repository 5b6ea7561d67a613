"""Candidates put before the reranker in a chosen order, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.progress import Progress
from resrank.core.run_files import Ranking
from resrank.core.scoring import ranking
from resrank.evaluation.baselines import dense_scores
from resrank.evaluation.scorer import CandidateVectors, Float16, Float32, Scorer

Int64 = NDArray[np.int64]

"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its candidates and all vectors.

    Attributes:
        id: Its id.
        text: The query.
        found: The candidates as they were found or given, best first.
        embedding: FP32 [d], e_q; of no meaning without candidates.
        embeddings: FP16 [N, d], e_i of each candidate.
        lexical: FP32 [N], each candidate's BM25 as a share of the best one in the whole collection, in [0, 1]; None
            where the collection's words were not looked at.
    """

    id: str
    text: str
    found: Ranking
    embedding: Float32
    embeddings: Float16
    lexical: Float32 | None = None

    def ranked(self, order: Int64, scores: Float32) -> Ranking:
        """Candidates by score descending, ties by the order in which they were given.

        Args:
            order: INT64 [n], places in ``found``.
            scores: FP32 [n], ``scores[j]`` of candidate ``order[j]``.
        """
        best_first = ranking(scores)
        return Ranking(tuple(self.found.ids[place] for place in order[best_first]), scores[best_first])

    def rescored(self, scores: Float32) -> Ranking:
        """The first candidates by a score of each.

        Args:
            scores: FP32 [n], of the first n candidates as found.
        """
        return self.ranked(np.arange(len(scores)), scores)

    def dense(self, depth: int) -> Ranking:
        """The first ``depth`` candidates by cosine with the query."""
        return self.rescored(dense_scores(self.embedding, self.embeddings[:depth]))

    def dense_order(self, depth: int) -> Int64:
        """The same as places in ``found``, INT64 [n]."""
        return ranking(dense_scores(self.embedding, self.embeddings[:depth]))


@dataclass(frozen=True, slots=True)
class Presented:
    """What the reranker made of one question's candidates in one order.

    Attributes:
        order: INT64 [n], places in the question's list, as they were read.
        scores: FP32 [n], ``scores[j]`` of candidate ``order[j]``.
    """

    order: Int64
    scores: Float32

    def by_place(self) -> Float32:
        """FP32 [n], the scores of the candidates by ascending place: comparable over orders of the same candidates."""
        return self.scores[np.argsort(self.order)]


def present(
    scorer: Scorer, questions: Sequence[Question], orders: Sequence[Int64], *, what: str, progress: Progress
) -> list[Presented]:
    """Scores each question's candidates in one order.

    Args:
        scorer: The checkpoint.
        questions: Each with at least one candidate in its order.
        orders: For each question, INT64 [n] places in its list.
        what: What ``progress`` is told that is being done.
        progress: Called after each question.
    """
    lists = [
        CandidateVectors(question.text, question.embeddings[order], question.embedding)
        for question, order in zip(questions, orders, strict=True)
    ]
    presented = []
    progress(what, 0, len(lists))
    for order, scores in zip(orders, scorer.score(lists), strict=True):
        presented.append(Presented(order, scores))
        progress(what, len(presented), len(lists))
    return presented


def rankings(questions: Sequence[Question], presented: Sequence[Presented]) -> list[Ranking]:
    """The reranked order of each question's candidates."""
    return [question.ranked(result.order, result.scores) for question, result in zip(questions, presented, strict=True)]
