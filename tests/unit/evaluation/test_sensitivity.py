"""Order, size and blocks, with scorers that a test can see through."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from resrank.core.measures import per_question, ranked
from resrank.core.run_files import Ranking
from resrank.evaluation.passes import present
from resrank.evaluation.sensitivity import (
    block_sensitivity,
    order_sensitivity,
    shuffled_order,
    size_sensitivity,
)
from support.scorers import FirstComponentScorer, question

# Found in another order than the dense one: a passage's score is the number behind its letter, in tenths.
FIRST = question("one", a=0.3, b=0.9, c=0.5, d=0.1, e=0.7, f=0.8)
SECOND = question("two", g=0.2, h=0.4)
QRELS = {"one": {"f": 1}, "two": {"g": 1}}


def reciprocal_ranks(rankings: list[Ranking]) -> np.ndarray:
    run = {id_: ranked(ranking.ids) for id_, ranking in zip(QRELS, rankings, strict=True)}
    return np.array(list(per_question(QRELS, run, ("RR",))["RR"].values()))


def silent(what: str, done: int, total: int) -> None:
    pass


def naive_kendall(one: np.ndarray, other: np.ndarray) -> float:
    pairs = list(combinations(range(len(one)), 2))
    return sum(np.sign(one[i] - one[j]) * np.sign(other[i] - other[j]) for i, j in pairs) / len(pairs)


def test_shuffles_depend_on_question_number_and_seed_alone() -> None:
    order = shuffled_order(FIRST, 100, shuffle=0, seed=0)
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        order, shuffled_order(question("one", x=0.1, **dict.fromkeys("bcdef", 0.2)), 100, shuffle=0, seed=0)
    )
    others = [
        shuffled_order(FIRST, 100, shuffle=1, seed=0),
        shuffled_order(FIRST, 100, shuffle=0, seed=1),
        shuffled_order(question("other", **dict.fromkeys("abcdef", 0.2)), 100, shuffle=0, seed=0),
    ]
    assert len({tuple(one) for one in [order, *others]}) == 4
    assert sorted(shuffled_order(FIRST, 4, shuffle=0, seed=0)) == [0, 1, 2, 3]  # the first ones as found


def test_a_scorer_that_knows_no_order_is_not_sensitive_to_it() -> None:
    scorer = FirstComponentScorer()
    questions = [FIRST, SECOND]
    shuffles = [
        present(
            scorer, questions, [shuffled_order(q, 10, shuffle=n, seed=0) for q in questions], what="", progress=silent
        )
        for n in range(3)
    ]
    dense = present(scorer, questions, [q.dense_order(10) for q in questions], what="", progress=silent)

    found = order_sensitivity(shuffles, [np.array([0.5, 1.0])] * 3, dense)

    assert found.means == (0.75, 0.75, 0.75)
    assert (found.std, found.question_std) == (0, 0)
    assert found.kendall == pytest.approx(1)
    assert found.kendall_to_dense == pytest.approx(1)


def test_order_sensitivity_against_loops() -> None:
    scorer = FirstComponentScorer(max_passages=6, penalty=0.07)
    questions = [FIRST, SECOND]
    shuffles = [
        present(
            scorer, questions, [shuffled_order(q, 10, shuffle=n, seed=0) for q in questions], what="", progress=silent
        )
        for n in range(3)
    ]
    dense = present(scorer, questions, [q.dense_order(10) for q in questions], what="", progress=silent)
    values = [np.array([1.0, 0.5]), np.array([0.25, 0.5]), np.array([0.5, 1.0])]

    found = order_sensitivity(shuffles, values, dense)

    def scores(result: object, count: int) -> np.ndarray:
        by_place = np.empty(count)
        by_place[result.order] = result.scores  # type: ignore[attr-defined]
        return by_place

    sizes = (6, 2)
    taus = [
        naive_kendall(scores(a[q], size), scores(b[q], size))
        for a, b in combinations(shuffles, 2)
        for q, size in enumerate(sizes)
    ]
    to_dense = [naive_kendall(scores(a[q], n), scores(dense[q], n)) for a in shuffles for q, n in enumerate(sizes)]
    assert found.means == (0.75, 0.375, 0.75)
    assert found.std == pytest.approx(np.sqrt((0.125**2 + 0.25**2 + 0.125**2) / 2))
    assert found.question_std == pytest.approx((np.std([1, 0.25, 0.5], ddof=1) + np.std([0.5, 0.5, 1], ddof=1)) / 2)
    assert found.kendall == pytest.approx(np.mean(taus))
    assert found.kendall < 0.9  # the penalty shows
    assert found.kendall_to_dense == pytest.approx(np.mean(to_dense))


def test_one_shuffle_has_no_spread() -> None:
    dense = present(FirstComponentScorer(), [FIRST], [FIRST.dense_order(10)], what="", progress=silent)
    found = order_sensitivity([dense], [np.array([1.0])], dense)
    assert (found.std, found.question_std, found.kendall) == (None, None, None)
    assert found.kendall_to_dense == pytest.approx(1)


def test_sizes_by_hand() -> None:
    scorer = FirstComponentScorer(max_passages=4, penalty=0.01)
    found = size_sensitivity(scorer, [FIRST, SECOND], (2, 3, 8, 20), reciprocal_ranks, known={}, progress=silent)

    # f is found last: absent among the first two and three, second in dense order among all; g is second of two.
    assert [size.size for size in found] == [2, 3, 8]  # 20 candidates nobody has
    assert [size.passes for size in found] == [1, 1, 2]
    assert [size.dense for size in found] == pytest.approx([0.25, 0.25, 0.5])
    assert [size.reranked for size in found] == pytest.approx([0.25, 0.25, 0.5])
    # Of a and b, read as b, a: with c between them, a loses 0.01; among all six, read as b f e c | a d, it wins 0.01.
    assert [size.score_shift for size in found] == pytest.approx([0, 0.0025, 0.0025], abs=1e-6)


def test_what_is_known_is_not_scored_again() -> None:
    scorer = FirstComponentScorer(max_passages=10)
    known = present(scorer, [FIRST], [FIRST.dense_order(6)], what="", progress=silent)
    scorer.passes.clear()

    def judge(rankings: list[Ranking]) -> np.ndarray:
        return np.array([ranking.ids.index("b") for ranking in rankings], float)

    size_sensitivity(scorer, [FIRST], (3, 6), judge, known={6: known}, progress=silent)
    assert scorer.passes == [3]
    scorer.passes.clear()
    block_sensitivity(scorer, [FIRST], 6, (2, 4), judge, known=known, progress=silent)
    assert scorer.passes == [3, 3, 2, 2, 1, 1]


def test_blocks_by_hand() -> None:
    scorer = FirstComponentScorer(max_passages=6, penalty=0.15)
    found = block_sensitivity(scorer, [FIRST, SECOND], 100, (2, 4), reciprocal_ranks, known=None, progress=silent)

    # In dense order b f e c a d. In two blocks, f is 0.8 - 0.15 and c, first of the second block, keeps its 0.5.
    orders = [[0.9, 0.8, 0.7, 0.5, 0.3, 0.1], [0.4, 0.2]]
    whole = [np.array(one) - 0.15 * np.arange(len(one)) for one in orders]
    halves = [
        np.concatenate(
            [np.array(one[:cut]) - 0.15 * np.arange(cut), np.array(one[cut:]) - 0.15 * np.arange(len(one) - cut)]
        )
        for one, cut in zip(orders, (3, 1), strict=True)
    ]
    assert [block.blocks for block in found] == [1, 2, 4]
    assert [block.passages for block in found] == [6, 6, 6]
    assert found[0].kendall == pytest.approx(1)
    assert found[0].score_shift == 0
    assert found[1].kendall == pytest.approx(np.mean([naive_kendall(a, b) for a, b in zip(whole, halves, strict=True)]))
    shifts = [np.abs(a - b).mean() for a, b in zip(whole, halves, strict=True)]
    assert found[1].score_shift == pytest.approx(np.mean(shifts), abs=1e-3)  # fp16 vectors
    assert found[0].mean == pytest.approx(0.5)
    ranks = [
        sorted(one, reverse=True).index(one[place]) + 1 for one, place in zip(map(list, halves), (1, 1), strict=True)
    ]
    assert found[1].mean == pytest.approx(np.mean([1 / rank for rank in ranks]))
    # In four blocks of a list of two, there are two.
    assert all(before.score_shift <= after.score_shift for before, after in pairwise(found))


def test_blocks_take_no_more_than_one_pass_takes() -> None:
    scorer = FirstComponentScorer(max_passages=4)

    def judge(rankings: list[Ranking]) -> np.ndarray:
        return np.array([len(ranking) for ranking in rankings], float)

    found = block_sensitivity(scorer, [FIRST], 6, (2, 4), judge, known=None, progress=silent)
    assert [block.passages for block in found] == [4, 4, 4]
    assert found[0].mean == 4
    assert block_sensitivity(scorer, [FIRST], 6, (), judge, known=None, progress=silent) == []
