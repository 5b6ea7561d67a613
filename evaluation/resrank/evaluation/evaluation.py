"""One checkpoint on one collection: every ranking, its measures, and how sure the differences are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from resrank.core.collection import Qrels
from resrank.core.errors import InvalidInputError
from resrank.core.fusion import CosineMap, joint_scores
from resrank.core.measures import MEASURES, check_measures, per_question, ranked
from resrank.core.progress import Progress
from resrank.core.run_files import NO_RANKING, Ranking
from resrank.core.scoring import ranking
from resrank.evaluation.baselines import Projectors, dense_scores, rocchio_scores
from resrank.evaluation.passes import Int64, Presented, Question, present, rankings
from resrank.evaluation.scorer import Float32, Scorer
from resrank.evaluation.sensitivity import (
    BlockResult,
    OrderSensitivity,
    SizeResult,
    block_sensitivity,
    order_sensitivity,
    shuffled_order,
    size_sensitivity,
)
from resrank.evaluation.significance import Difference, difference

Float64 = NDArray[np.float64]


class Row(StrEnum):
    """A line of the table: one way to order the candidates."""

    CANDIDATES = "candidates"
    DENSE = "dense"
    ROCCHIO = "rocchio"
    PROJECTORS = "projectors"
    QUERY_ALONE = "relations-to-the-query-alone"
    WITHOUT_TEXT = "without-the-query-text"
    RERANKED = "reranked"
    RERANKED_AS_FOUND = "reranked-as-found"
    SHUFFLED = "reranked-shuffled"
    DENSE_LEXICAL = "dense-lexical"
    RERANKED_LEXICAL = "reranked-lexical"


@dataclass(frozen=True)
class LexicalJoin:
    """How a search joins the words' share to a score: A(cos) + w·b without a reranker, s + w·b with one.

    Attributes:
        cosine_map: A, the checkpoint's.
        weight: w.
    """

    cosine_map: CosineMap
    weight: float


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Attributes:
        depth: Candidates that are reranked, the first ones as found.
        shuffles: Random orders that the reranker is shown the candidates in, at least 1.
        sizes: Numbers of candidates for the size sensitivity, ascending; none skips it.
        blocks: Numbers of blocks that the candidates of one pass are cut into, ascending; none skips it.
        measures: Names of ``ir-measures``; differences and sensitivities are of the first.
        seed: Of shuffles and resampling.

    Raises:
        InvalidInputError: A field breaks its rule.
    """

    depth: int = 100
    shuffles: int = 5
    sizes: tuple[int, ...] = (10, 20, 50, 100, 200)
    blocks: tuple[int, ...] = (2, 4)
    measures: tuple[str, ...] = MEASURES
    seed: int = 0

    def __post_init__(self) -> None:
        ascending = {"sizes": self.sizes, "blocks": self.blocks}
        numbers = ((field, number) for field, several in ascending.items() for number in several)
        for field, value in (("depth", self.depth), ("shuffles", self.shuffles), *numbers):
            if value < 1:
                raise InvalidInputError(field, "too small", limit=1, value=value)
        for field, several in ascending.items():
            if list(several) != sorted(set(several)):
                raise InvalidInputError(field, f"must ascend, got {', '.join(map(str, several))}")
        if not self.measures:
            raise InvalidInputError("measures", "name at least one")
        check_measures(self.measures)

    @property
    def longest(self) -> int:
        """Candidates that are needed of each question."""
        return max(self.depth, *self.sizes) if self.sizes else self.depth


@dataclass(frozen=True)
class RowResult:
    """One row.

    Attributes:
        runs: Question id to ranking; several where the row is a mean over shuffles.
        values: Measure to FP64 [Q], one value per judged question, the mean over the runs.
    """

    runs: tuple[Mapping[str, Ranking], ...]
    values: Mapping[str, Float64]

    def means(self) -> dict[str, float]:
        """Measure to mean over all judged questions."""
        return {measure: float(values.mean()) for measure, values in self.values.items()}


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found.

    Attributes:
        settings: What was measured.
        questions: All judged questions' ids, in the order of every array of values.
        rows: The rankings. Those that need the checkpoint's files are missing where these were not given,
            ``reranked-as-found`` where the candidates were found in dense order, and the two with words where the
            collection's words were not looked at.
        order: What shuffling does.
        sizes: What the number of candidates does.
        blocks: What cutting them into blocks does.
    """

    settings: EvaluationSettings
    questions: tuple[str, ...]
    rows: Mapping[Row, RowResult]
    order: OrderSensitivity
    sizes: tuple[SizeResult, ...]
    blocks: tuple[BlockResult, ...]

    @property
    def baselines(self) -> tuple[Row, ...]:
        """What every other row is compared with: dense, as found, and with words where that is neither of these."""
        found = self.rows.get(Row.DENSE_LEXICAL)
        as_found = self.rows[Row.CANDIDATES].runs[0]
        if found is None or all(found.runs[0][question].ids == as_found[question].ids for question in self.questions):
            return Row.DENSE, Row.CANDIDATES
        return Row.DENSE, Row.CANDIDATES, Row.DENSE_LEXICAL

    def compare(self, row: Row, baseline: Row) -> Difference:
        """The difference of two rows in the first measure."""
        measure = self.settings.measures[0]
        return difference(self.rows[row].values[measure], self.rows[baseline].values[measure], seed=self.settings.seed)


def evaluate_checkpoint(
    questions: Sequence[Question],
    qrels: Qrels,
    scorer: Scorer,
    settings: EvaluationSettings,
    *,
    projectors: Projectors | None = None,
    ablations: Mapping[Row, Scorer] | None = None,
    join: LexicalJoin | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Ranks every question's candidates in every way and judges the rankings.

    Args:
        questions: The judged questions with their candidates; those without any count as 0 in every row.
        qrels: The judgements of exactly these questions.
        scorer: The checkpoint.
        settings: What is measured.
        projectors: The checkpoint's, for the rows with a part left out; None leaves those out.
        ablations: The checkpoint with a part of its input left out, for a row each.
        join: How words count; None leaves out the rows with words, which need every question's ``lexical``.
        progress: Called as the work goes on.

    Raises:
        InvalidInputError: No question has candidates.
        ResRankError: Whatever the scorer raises.
    """
    answered = [question for question in questions if len(question.found)]
    if not answered:
        raise InvalidInputError("candidates", "no judged question has any")
    return _Bench(answered, qrels, scorer, settings, progress).run(projectors, ablations or {}, join)


class _Bench:
    """The questions that have candidates, and what every step needs."""

    def __init__(
        self,
        questions: Sequence[Question],
        qrels: Qrels,
        scorer: Scorer,
        settings: EvaluationSettings,
        progress: Progress,
    ) -> None:
        self._questions = questions
        self._qrels = qrels
        self._scorer = scorer
        self._settings = settings
        self._progress = progress

    def run(
        self, projectors: Projectors | None, ablations: Mapping[Row, Scorer], join: LexicalJoin | None
    ) -> Evaluation:
        settings, questions = self._settings, self._questions
        depth = settings.depth
        rows: dict[Row, RowResult] = {
            Row.CANDIDATES: self._row([Ranking(q.found.ids[:depth], q.found.scores[:depth]) for q in questions]),
            Row.DENSE: self._row([q.dense(depth) for q in questions]),
        }
        without_feedback = [q.dense_order(depth) for q in questions]
        if join is not None:
            cosines = [dense_scores(q.embedding, q.embeddings[:depth]) for q in questions]
            joined = [
                _with_words(q, join.cosine_map.apply(one), join) for q, one in zip(questions, cosines, strict=True)
            ]
            rows[Row.DENSE_LEXICAL] = self._row([q.rescored(one) for q, one in zip(questions, joined, strict=True)])
            without_feedback = [ranking(scores) for scores in joined]
        rows[Row.ROCCHIO] = self._row(
            [
                q.rescored(rocchio_scores(q.embedding, q.embeddings[:depth], order))
                for q, order in zip(questions, without_feedback, strict=True)
            ]
        )
        if projectors is not None:
            rows[Row.PROJECTORS] = self._row(
                [q.rescored(projectors.scores(q.embedding, q.embeddings[:depth])) for q in questions]
            )
        dense_order = [q.dense_order(depth) for q in questions]
        as_found = [np.arange(len(order)) for order in dense_order]
        for row, scorer in ablations.items():
            presented = self._present(row.value, dense_order, scorer)
            rows[row] = self._row(rankings(questions, presented))
        reranked = self._present("in dense order", dense_order)
        rows[Row.RERANKED] = self._row(rankings(questions, reranked))
        if join is not None:
            rows[Row.RERANKED_LEXICAL] = self._row(
                [q.rescored(_with_words(q, one.by_place(), join)) for q, one in zip(questions, reranked, strict=True)]
            )
        if not all(map(np.array_equal, as_found, dense_order)):
            rows[Row.RERANKED_AS_FOUND] = self._row(rankings(questions, self._present("as found", as_found)))
        shuffles = [
            self._present(
                f"shuffle {number + 1} of {settings.shuffles}",
                [shuffled_order(q, depth, shuffle=number, seed=settings.seed) for q in questions],
            )
            for number in range(settings.shuffles)
        ]
        shuffled = [rankings(questions, shuffle) for shuffle in shuffles]
        rows[Row.SHUFFLED] = self._row(*shuffled)
        return Evaluation(
            settings=settings,
            questions=tuple(self._qrels),
            rows=rows,
            order=order_sensitivity(shuffles, [self._judge(one) for one in shuffled], reranked),
            sizes=tuple(
                size_sensitivity(
                    self._scorer,
                    questions,
                    settings.sizes,
                    self._judge,
                    known={depth: reranked},
                    progress=self._progress,
                )
            ),
            blocks=tuple(
                block_sensitivity(
                    self._scorer,
                    questions,
                    depth,
                    settings.blocks,
                    self._judge,
                    known=reranked if depth <= self._scorer.max_passages else None,
                    progress=self._progress,
                )
            ),
        )

    def _present(self, what: str, orders: Sequence[Int64], scorer: Scorer | None = None) -> list[Presented]:
        scorer = scorer or self._scorer
        return present(scorer, self._questions, orders, what=f"reranking {what}", progress=self._progress)

    def _row(self, *runs: Sequence[Ranking]) -> RowResult:
        return judged_row([self._by_question(rankings) for rankings in runs], self._qrels, self._settings.measures)

    def _judge(self, rankings: Sequence[Ranking]) -> Float64:
        measure = self._settings.measures[0]
        return judged_row([self._by_question(rankings)], self._qrels, (measure,)).values[measure]

    def _by_question(self, rankings: Sequence[Ranking]) -> dict[str, Ranking]:
        found = {question.id: ranking for question, ranking in zip(self._questions, rankings, strict=True)}
        return {question: found.get(question, NO_RANKING) for question in self._qrels}


def _with_words(question: Question, scores: Float32, join: LexicalJoin) -> Float32:
    assert question.lexical is not None
    return joint_scores(scores, question.lexical[: len(scores)], 1.0, join.weight)  # shares: the best is 1


def judged_row(runs: Sequence[Mapping[str, Ranking]], qrels: Qrels, measures: Sequence[str]) -> RowResult:
    """Measures rankings.

    Args:
        runs: Question id to ranking, one or several.
        qrels: The judgements; the values come in its order of questions.
        measures: Names of ``ir-measures``.
    """
    values: dict[str, list[list[float]]] = {measure: [] for measure in measures}
    for run in runs:
        found = per_question(qrels, {question: ranked(ranking.ids) for question, ranking in run.items()}, measures)
        for measure in measures:
            values[measure].append(list(found[measure].values()))
    return RowResult(tuple(runs), {measure: np.mean(values[measure], axis=0) for measure in measures})
