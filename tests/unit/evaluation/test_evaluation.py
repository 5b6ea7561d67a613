"""The table as a whole: rows, what is compared with what, and questions without candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resrank.core.checkpoint import FusionSpec, Projector
from resrank.core.errors import InvalidInputError
from resrank.core.fusion import IDENTITY, CosineMap
from resrank.core.run_files import NO_RANKING, Ranking
from resrank.evaluation.baselines import Projectors
from resrank.evaluation.evaluation import EvaluationSettings, LexicalJoin, Row, evaluate_checkpoint
from resrank.evaluation.passes import Question
from support.scorers import FirstComponentScorer, question

SETTINGS = EvaluationSettings(depth=5, shuffles=4, sizes=(2, 8), measures=("RR", "R@5"))
QRELS = {"one": {"b": 1}, "none": {"z": 1}, "two": {"h": 1}}
# b is the nearest and found last; f is beyond the depth.
QUESTIONS = [
    question("one", a=0.3, c=0.5, d=0.1, e=0.7, b=0.9, f=0.95),
    Question("none", "Nothing?", NO_RANKING, np.ones(2, np.float32), np.empty((0, 2), np.float16)),
    question("two", g=0.2, h=0.4),
]


def test_every_order_of_the_same_candidates_by_hand() -> None:
    found = evaluate_checkpoint(QUESTIONS, QRELS, FirstComponentScorer(), SETTINGS)

    assert found.questions == ("one", "none", "two")
    rankings = {row: {q: ranking.ids for q, ranking in result.runs[0].items()} for row, result in found.rows.items()}
    dense = {"one": ("b", "e", "c", "a", "d"), "none": (), "two": ("h", "g")}
    assert rankings[Row.CANDIDATES] == {"one": ("a", "c", "d", "e", "b"), "none": (), "two": ("g", "h")}
    assert rankings[Row.DENSE] == rankings[Row.RERANKED] == rankings[Row.RERANKED_AS_FOUND] == dense
    assert len(found.rows[Row.SHUFFLED].runs) == 4
    assert [run["one"].ids for run in found.rows[Row.SHUFFLED].runs] == [dense["one"]] * 4
    np.testing.assert_allclose(found.rows[Row.CANDIDATES].values["RR"], [0.2, 0, 0.5])
    np.testing.assert_allclose(found.rows[Row.DENSE].values["RR"], [1, 0, 1])
    assert found.rows[Row.DENSE].means() == pytest.approx({"RR": 2 / 3, "R@5": 2 / 3})
    np.testing.assert_allclose(found.rows[Row.RERANKED].runs[0]["one"].scores, [0.9, 0.7, 0.5, 0.3, 0.1], atol=1e-3)


def test_a_scorer_that_copies_the_order_shows_in_the_shuffled_row() -> None:
    found = evaluate_checkpoint(QUESTIONS, QRELS, FirstComponentScorer(max_passages=9, penalty=9.0), SETTINGS)

    assert found.compare(Row.RERANKED, Row.DENSE).ties == 3
    np.testing.assert_allclose(found.rows[Row.RERANKED_AS_FOUND].values["RR"], [0.2, 0, 0.5])
    # Both relevant passages stand wherever chance put them: the means over the shuffles.
    placed = [
        [run[q].ids.index(gold) + 1 for run in found.rows[Row.SHUFFLED].runs]
        for q, gold in (("one", "b"), ("two", "h"))
    ]
    expected = [np.mean([1 / rank for rank in ranks]) for ranks in placed]
    np.testing.assert_allclose(found.rows[Row.SHUFFLED].values["RR"], [expected[0], 0, expected[1]])
    assert found.compare(Row.SHUFFLED, Row.DENSE).mean < 0
    assert found.order.means == pytest.approx([np.mean([1 / ranks[n] for ranks in placed] + [0]) for n in range(4)])


def test_candidates_found_in_dense_order_have_no_row_of_their_own() -> None:
    questions = [question("one", b=0.9, e=0.7, c=0.5)]
    found = evaluate_checkpoint(questions, {"one": {"b": 1}}, FirstComponentScorer(), SETTINGS)
    assert Row.RERANKED_AS_FOUND not in found.rows
    assert Row.PROJECTORS not in found.rows


def test_the_row_without_the_llm_is_there_when_the_projectors_are() -> None:
    fusion = FusionSpec(projector=Projector.LINEAR, input_scale=1.0, residual_gate=100.0, query_residual=True)
    flipped = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)  # which makes no difference to cosines
    found = evaluate_checkpoint(
        QUESTIONS,
        QRELS,
        FirstComponentScorer(),
        SETTINGS,
        projectors=Projectors(flipped, np.eye(2, dtype=np.float32), fusion),
    )
    assert found.rows[Row.PROJECTORS].runs[0]["one"].ids == ("b", "e", "c", "a", "d")


def test_words_count_beside_cosines_and_beside_the_rerankers_scores() -> None:
    shares = {"one": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "none": [], "two": [0.0, 0.5]}
    questions = [replace(q, lexical=np.array(shares[q.id], np.float32)) for q in QUESTIONS]
    # Cosines spread by 2 and moved by 1: the order by A(cos) + 1.5 b is that by cos + 0.75 b.
    join = LexicalJoin(CosineMap(2.0, 0.5, 0.0), 1.5)
    found = evaluate_checkpoint(questions, QRELS, FirstComponentScorer(), SETTINGS, join=join)

    # By hand: a 0.3 + 0.75 = 1.05 stands before b 0.9.
    assert found.rows[Row.DENSE_LEXICAL].runs[0]["one"].ids == ("a", "b", "e", "c", "d")
    # The scorer's scores are the cosines themselves, to which 1.5 b is added.
    assert found.rows[Row.RERANKED_LEXICAL].runs[0]["one"].ids == ("a", "b", "e", "c", "d")
    np.testing.assert_allclose(found.rows[Row.RERANKED_LEXICAL].runs[0]["one"].scores[0], 1.8, atol=1e-3)
    assert found.rows[Row.RERANKED_LEXICAL].runs[0]["two"].ids == ("h", "g")
    assert found.baselines == (Row.DENSE, Row.CANDIDATES, Row.DENSE_LEXICAL)


def test_what_was_found_by_cosines_and_words_is_one_baseline_with_itself() -> None:
    one = replace(question("one", b=0.9, e=0.7), lexical=np.zeros(2, np.float32))
    found = evaluate_checkpoint(
        [one], {"one": {"b": 1}}, FirstComponentScorer(), SETTINGS, join=LexicalJoin(IDENTITY, 0.3)
    )
    assert found.baselines == (Row.DENSE, Row.CANDIDATES)


def test_feedback_starts_from_the_order_by_cosines_and_words() -> None:
    # Three passages to the left of the query and three to the right; words say right.
    first, second = np.cos(np.radians([40, 41, 42])), np.sin(np.radians([40, 41, 42]))
    vectors = np.stack([np.tile(first, 2), np.concatenate([second, -second])], axis=1).astype(np.float16)
    found = Ranking(("l1", "l2", "l3", "r1", "r2", "r3"), np.arange(6, 0, -1, dtype=np.float32))
    shares = np.array([0, 0, 0, 1, 1, 1], np.float32)
    one = Question("one", "Which?", found, np.array([1.0, 0.0], np.float32), vectors, shares)
    with_words = evaluate_checkpoint(
        [one], {"one": {"r1": 1}}, FirstComponentScorer(), EvaluationSettings(), join=LexicalJoin(IDENTITY, 0.3)
    )
    alone = evaluate_checkpoint([one], {"one": {"r1": 1}}, FirstComponentScorer(), EvaluationSettings())
    assert with_words.rows[Row.ROCCHIO].runs[0]["one"].ids[0][0] == "r"
    assert alone.rows[Row.ROCCHIO].runs[0]["one"].ids[0][0] == "l"


def test_a_scorer_that_reads_less_has_a_row_of_its_own() -> None:
    less = FirstComponentScorer(max_passages=9, penalty=9.0)
    found = evaluate_checkpoint(
        [question("one", b=0.9, e=0.95)],
        {"one": {"b": 1}},
        FirstComponentScorer(),
        SETTINGS,
        ablations={Row.QUERY_ALONE: less},
    )
    assert found.rows[Row.QUERY_ALONE].runs[0]["one"].ids == ("e", "b")
    assert less.passes == [2]


def test_one_pass_of_each_order_and_no_more() -> None:
    scorer = FirstComponentScorer(max_passages=5)
    evaluate_checkpoint(QUESTIONS[:1], {"one": {"b": 1}}, scorer, replace(SETTINGS, sizes=(2, 5)))
    # dense order, as found, four shuffles, the first two; all five are known; two blocks and four.
    assert scorer.passes == [5, 5, 5, 5, 5, 5, 2, 3, 2, 2, 1, 1, 1]


def test_progress_ends_where_it_said() -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(what: str, done: int, total: int) -> None:
        told.setdefault(what, []).append((done, total))

    evaluate_checkpoint(QUESTIONS, QRELS, FirstComponentScorer(), SETTINGS, progress=progress)
    assert "reranking shuffle 4 of 4" in told
    assert all(steps[0][0] == 0 and steps[-1][0] == steps[-1][1] for steps in told.values())


def test_no_candidates_at_all_are_an_error() -> None:
    with pytest.raises(InvalidInputError, match="no judged question has any"):
        evaluate_checkpoint(QUESTIONS[1:2], {"none": {"z": 1}}, FirstComponentScorer(), SETTINGS)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"depth": 0}, r"depth: too small \(limit 1, got 0\)"),
        ({"shuffles": 0}, r"shuffles: too small"),
        ({"sizes": (10, 0)}, r"sizes: too small"),
        ({"sizes": (20, 10)}, r"sizes: must ascend, got 20, 10"),
        ({"sizes": (10, 10)}, r"sizes: must ascend"),
        ({"blocks": (4, 2)}, r"blocks: must ascend, got 4, 2"),
        ({"measures": ()}, r"measures: name at least one"),
        ({"measures": ("Niceness",)}, r"measures: not known"),
    ],
)
def test_settings_that_cannot_be_are_named(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        EvaluationSettings(**fields)  # type: ignore[arg-type]


def test_as_many_candidates_are_needed_as_the_largest_number_says() -> None:
    assert EvaluationSettings().longest == 200
    assert EvaluationSettings(depth=300).longest == 300
    assert EvaluationSettings(sizes=()).longest == 100
