"""Measures agree with hand-worked examples, and what cannot be computed is refused by name."""

from __future__ import annotations

import math

import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.measures import MEASURES, check_measures, evaluate, per_question, ranked


def test_ndcg_recall_precision_and_reciprocal_rank_by_hand() -> None:
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    run = {"q1": ranked(["x", "a", "y", "b"]), "q2": ranked(["c"])}

    found = evaluate(qrels, run, ("nDCG@10", "AP", "R@10", "R@2", "RR@10"))

    ideal = 1 + 1 / math.log2(3)
    first = (1 / math.log2(3) + 1 / math.log2(5)) / ideal
    assert found == pytest.approx({"nDCG@10": (first + 1) / 2, "AP": 0.75, "R@10": 1, "R@2": 0.75, "RR@10": 0.75})
    assert list(found) == ["nDCG@10", "AP", "R@10", "R@2", "RR@10"]


def test_grades_count_as_they_are() -> None:
    # trec_eval's gain is the grade itself: with 2^grade - 1 the figures of TREC Deep Learning would be others.
    found = per_question({"q": {"a": 3, "b": 1}}, {"q": ranked(["b", "a"])}, ("nDCG@10",))

    assert found == {"nDCG@10": {"q": pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))}}


def test_each_question_in_the_order_of_the_judgements() -> None:
    qrels = {"q3": {"a": 1}, "q1": {"b": 1}, "q2": {"c": 1}}
    run = {"q1": ranked(["x", "b"]), "q2": {}, "q3": ranked(["a"]), "unjudged": ranked(["a"])}

    assert per_question(qrels, run, ("RR@10",)) == {"RR@10": {"q3": 1, "q1": 0.5, "q2": 0}}
    assert list(per_question(qrels, run, ("RR@10",))["RR@10"]) == ["q3", "q1", "q2"]


def test_unanswered_questions_count_as_zero() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}, "q4": {"d": 1}}

    assert evaluate(qrels, {"q1": ranked(["a"]), "q2": {}}, ("nDCG@10",)) == {"nDCG@10": pytest.approx(0.25)}


def test_ranks_decide_where_scores_would_tie() -> None:
    qrels = {"q": {"b": 1}}

    assert evaluate(qrels, {"q": ranked(["b", "a", "c"])}, ("RR@10",)) == {"RR@10": 1}
    assert evaluate(qrels, {"q": ranked(["c", "a", "b"])}, ("RR@10",)) == {"RR@10": pytest.approx(1 / 3)}


def test_the_default_measures_can_be_computed() -> None:
    check_measures(MEASURES)
    check_measures(["AP(rel=2)", "P@5", "Judged@10"])


@pytest.mark.parametrize(
    ("measures", "complaint"),
    [
        (["Niceness@10"], "not known to ir-measures: .*Niceness"),
        (["nDCG@10 AP"], "not known to ir-measures"),
        (["nDCG@99999999999999999999"], r"nDCG@9+ has a cutoff too large \(limit 1000000, got 9"),
        (["nDCG@0"], r"nDCG@0 has a cutoff too small \(limit 1, got 0\)"),
        (["alpha_nDCG@10"], "alpha_nDCG@10 cannot be computed here"),
        (["AP", "RR", "MAP"], "AP and MAP are the same"),
    ],
)
def test_what_cannot_be_computed_is_named(measures: list[str], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^measures: {complaint}"):
        check_measures(measures)


def test_an_unknown_measure_is_named_when_it_is_computed_too() -> None:
    with pytest.raises(InvalidInputError, match=r"measures: .*Niceness"):
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, ("Niceness@10",))
