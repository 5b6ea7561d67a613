"""How far scores depend on what should not matter: the candidates' order, their number, the cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from resrank.core.progress import Progress
from resrank.core.run_files import Ranking
from resrank.evaluation.passes import Int64, Presented, Question, present, rankings
from resrank.evaluation.scorer import Float32, Scorer

Float64 = NDArray[np.float64]

Judge = Callable[[Sequence[Ranking]], Float64]
"""Values of the first measure, FP64 [Q], of one ranking per question."""


@dataclass(frozen=True, slots=True)
class OrderSensitivity:
    """What shuffling the candidates does.

    Attributes:
        means: Mean of the first measure for each shuffle.
        std: Standard deviation of these means (n - 1); None with one shuffle.
        question_std: A question's standard deviation over the shuffles, averaged over the questions; None with one.
        kendall: Kendall's tau-b between the scores of two shuffles, averaged over questions and pairs; None where no
            question has two candidates, or with one shuffle.
        kendall_to_dense: The same between each shuffle and the dense order.
    """

    means: tuple[float, ...]
    std: float | None
    question_std: float | None
    kendall: float | None
    kendall_to_dense: float | None


@dataclass(frozen=True, slots=True)
class SizeResult:
    """The first candidates alone.

    Attributes:
        size: How many, where a list has so many.
        passes: Blocks that the longest list takes.
        dense: Mean of the first measure in dense order.
        reranked: The same reranked, read in dense order.
        score_shift: Mean absolute difference of the scores of the smallest size's candidates from those that they have
            there: what a threshold on scores would have to allow for.
    """

    size: int
    passes: int
    dense: float
    reranked: float
    score_shift: float


@dataclass(frozen=True, slots=True)
class BlockResult:
    """The candidates of one pass, cut into consecutive blocks whose scores are merged.

    Attributes:
        blocks: How many; 1 is the pass it is compared with.
        passages: Candidates of the longest list.
        mean: Of the first measure.
        kendall: Kendall's tau-b with the scores of one pass, averaged over questions; None where no question has two
            candidates.
        score_shift: Mean absolute difference of the scores from those of one pass.
    """

    blocks: int
    passages: int
    mean: float
    kendall: float | None
    score_shift: float


def shuffled_order(question: Question, depth: int, *, shuffle: int, seed: int) -> Int64:
    """A random order of a question's first candidates, which depends on nothing but the arguments.

    Args:
        question: The question; its id counts.
        depth: How many candidates at most.
        shuffle: Which shuffle, from 0.
        seed: Of the evaluation.

    Returns:
        INT64 [n] places.
    """
    rng = np.random.default_rng((seed, shuffle, crc32(question.id.encode())))
    return rng.permutation(min(depth, len(question.found)))


def order_sensitivity(
    shuffles: Sequence[Sequence[Presented]], values: Sequence[Float64], in_dense_order: Sequence[Presented]
) -> OrderSensitivity:
    """Compares shuffles of the same candidates.

    Args:
        shuffles: For each shuffle, one result per question.
        values: For each shuffle, FP64 [Q] of the first measure.
        in_dense_order: Read in dense order, one result per question.
    """
    scores = [[result.by_place() for result in shuffle] for shuffle in shuffles]
    dense = [result.by_place() for result in in_dense_order]
    several = len(shuffles) > 1
    means = [float(value.mean()) for value in values]
    return OrderSensitivity(
        means=tuple(means),
        std=float(np.std(means, ddof=1)) if several else None,
        question_std=float(np.std(values, axis=0, ddof=1).mean()) if several else None,
        kendall=_mean_kendall([pair for two in combinations(scores, 2) for pair in zip(*two, strict=True)]),
        kendall_to_dense=_mean_kendall([pair for one in scores for pair in zip(one, dense, strict=True)]),
    )


def size_sensitivity(
    scorer: Scorer,
    questions: Sequence[Question],
    sizes: Sequence[int],
    judge: Judge,
    *,
    known: dict[int, Sequence[Presented]],
    progress: Progress,
) -> list[SizeResult]:
    """Reranks the first candidates alone, for growing numbers of them.

    Args:
        scorer: The checkpoint.
        questions: Each with at least one candidate.
        sizes: How many of the candidates as found, ascending. Sizes that give no list more than the size before are
            left out.
        judge: Gives the first measure.
        known: What is known already: size to one result per question, read in dense order.
        progress: Called as the work goes on.
    """
    results: list[SizeResult] = []
    smallest: list[Float32] = []
    longest = max(len(question.found) for question in questions)
    for number, size in enumerate(sizes):
        if number and sizes[number - 1] >= longest:
            break
        orders = [question.dense_order(size) for question in questions]
        presented = known.get(size) or present(
            scorer, questions, orders, what=f"the first {size} candidates", progress=progress
        )
        scores = [result.by_place() for result in presented]
        smallest = smallest or scores
        # Places ascend in both, and the smaller set is the beginning of the larger one.
        shifts = [np.abs(now[: len(before)] - before).mean() for now, before in zip(scores, smallest, strict=True)]
        results.append(
            SizeResult(
                size=size,
                passes=-(-min(size, longest) // scorer.max_passages),
                dense=float(judge([q.dense(size) for q in questions]).mean()),
                reranked=float(judge(rankings(questions, presented)).mean()),
                score_shift=float(np.mean(shifts)),
            )
        )
    return results


def block_sensitivity(
    scorer: Scorer,
    questions: Sequence[Question],
    depth: int,
    blocks: Sequence[int],
    judge: Judge,
    *,
    known: Sequence[Presented] | None,
    progress: Progress,
) -> list[BlockResult]:
    """Cuts the candidates of one pass, in dense order, into blocks that are scored apart.

    Args:
        scorer: The checkpoint.
        questions: Each with at least one candidate.
        depth: How many of the candidates as found; no more are taken than one pass takes.
        blocks: Into how many they are cut, to see what a longer list loses.
        judge: Gives the first measure.
        known: The one pass's results, when they are known already.
        progress: Called as the work goes on.

    Returns:
        One pass first; nothing where there is nothing to cut into.
    """
    if not blocks:
        return []
    depth = min(depth, scorer.max_passages)
    orders = [question.dense_order(depth) for question in questions]
    whole = known or present(scorer, questions, orders, what=f"{depth} candidates in one pass", progress=progress)
    results = []
    for count in (1, *(count for count in blocks if count > 1)):
        merged = whole if count == 1 else _in_blocks(scorer, questions, orders, count, progress)
        pairs = [(one.scores, other.scores) for one, other in zip(merged, whole, strict=True)]
        results.append(
            BlockResult(
                blocks=count,
                passages=max(map(len, orders)),
                mean=float(judge(rankings(questions, merged)).mean()),
                kendall=_mean_kendall(pairs),
                score_shift=float(np.mean([np.abs(one - other).mean() for one, other in pairs])),
            )
        )
    return results


def _in_blocks(
    scorer: Scorer, questions: Sequence[Question], orders: Sequence[Int64], count: int, progress: Progress
) -> list[Presented]:
    parts = [
        (question, part)
        for question, order in zip(questions, orders, strict=True)
        for part in np.array_split(order, min(count, len(order)))
    ]
    scored = iter(
        present(
            scorer,
            [question for question, _ in parts],
            [part for _, part in parts],
            what=f"{count} blocks",
            progress=progress,
        )
    )
    return [
        Presented(order, np.concatenate([next(scored).scores for _ in range(min(count, len(order)))]))
        for order in orders
    ]


def _mean_kendall(pairs: Sequence[tuple[Float32, Float32]]) -> float | None:
    taus = [float(stats.kendalltau(one, other).statistic) for one, other in pairs if len(one) > 1]
    defined = [tau for tau in taus if not np.isnan(tau)]  # undefined where all scores of a list are equal
    return float(np.mean(defined)) if defined else None
