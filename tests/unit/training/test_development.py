"""The development score, against hand-worked figures and brute-force cosines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from resrank.training import development
from resrank.training.config import Choose, EvaluationConfig
from resrank.training.development import Development, DevelopmentScore, SetScore, mean_ndcg
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.sources import DevelopmentSet
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_training import tiny_lists, tiny_trainable

Scoring = Callable[[CandidateList], Sequence[float]]


def listed(labels: Sequence[float], *, kind: LabelKind = LabelKind.GRADES, id_: str = "q") -> CandidateList:
    passages = tuple(TrainingPassage("", f"{id_} passage {row}") for row in range(len(labels)))
    return CandidateList(id_, "query", passages, tuple(labels), kind, "tiny")


def scored(*scores: float) -> NDArray[np.float32]:
    return np.array(scores, np.float32)


def in_one_set(lists: Sequence[CandidateList]) -> list[DevelopmentSet]:
    return [DevelopmentSet("tiny", tuple(lists))]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.0)
    return folder


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scoring], None]:
    """``by(f)`` replaces the model's scores by f(list)."""

    def replace(scoring: Scoring) -> None:
        def score_lists(*arguments: object, **_: object) -> list[NDArray[np.float32]]:
            return [scored(*scoring(candidates)) for candidates in arguments[3]]  # type: ignore[attr-defined]

        monkeypatch.setattr(development, "score_lists", score_lists)

    return replace


def test_ndcg_agrees_with_a_hand_worked_example() -> None:
    """Ranked 0, 2, 1: DCG = 2/log2(3) + 1/log2(4); ideal 2, 1, 0: 2/log2(2) + 1/log2(3)."""
    found = mean_ndcg([listed([1.0, 2.0, 0.0])], [scored(0.1, 0.2, 0.9)])
    expected = (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3))
    assert found == pytest.approx(expected)


def test_ndcg_is_a_mean_over_lists_and_ties_keep_their_order() -> None:
    lists = [listed([0.0, 1.0], id_="a"), listed([1.0, 0.0], id_="b")]
    assert mean_ndcg(lists, [scored(0.5, 0.5), scored(0.5, 0.5)]) == pytest.approx((1 / math.log2(3) + 1) / 2)


def test_only_the_first_ten_count() -> None:
    labels = [0.0] * 10 + [1.0]
    assert mean_ndcg([listed(labels)], [scored(*range(11, 0, -1))]) == 0


def test_a_teachers_best_is_what_is_relevant() -> None:
    candidates = listed([-3.5, -0.5, -2.0], kind=LabelKind.SCORES)
    assert mean_ndcg([candidates], [scored(0.0, 1.0, 2.0)]) == pytest.approx(1 / math.log2(3))


def test_at_dense_start_all_three_are_brute_force_cosines_over_the_fp16_vectors(start: Path) -> None:
    """At gate 0 with the query residual; nDCG by loops."""
    lists = tiny_lists(6, min_passages=6)
    model, tokenizers = tiny_trainable(start)
    config = EvaluationConfig(every_steps=1, lists=6, candidates=8)
    score = Development(in_one_set(lists), config, tokenizers).evaluate(model, encoder_changed=True)
    (found,) = score.sets

    table = EmbeddingTable.build(model, tokenizers, lists)
    expected = []
    for candidates in lists:
        vectors, query = (part[0].double().numpy() for part in table.gather([candidates], model.device))
        cosines = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in vectors]
        ranked = sorted(range(len(candidates)), key=lambda row: -cosines[row])
        gains = [candidates.labels[row] for row in ranked]
        ideal = sorted(candidates.labels, reverse=True)
        dcg, best = (sum(gain / math.log2(rank + 2) for rank, gain in enumerate(of[:10])) for of in (gains, ideal))
        expected.append(dcg / best)
    assert found.dense == pytest.approx(sum(expected) / len(expected))
    assert found.retrieved == found.shuffled == found.dense
    assert found.lists == 6


def test_a_model_that_copies_positions_is_found_out_by_the_shuffle(start: Path, by: Callable[[Scoring], None]) -> None:
    model, tokenizers = tiny_trainable(start)
    lists = [listed([2.0, 1.0, *[0.0] * 10], id_=f"q{number}") for number in range(20)]
    scores = Development(in_one_set(lists), EvaluationConfig(candidates=12), tokenizers)

    by(lambda candidates: [-float(row) for row in range(len(candidates))])
    (copying,) = scores.evaluate(model, encoder_changed=True).sets
    assert copying.retrieved == pytest.approx(1.0)
    assert copying.shuffled < 0.7
    assert copying.score == copying.shuffled

    by(lambda candidates: candidates.labels)
    (knowing,) = scores.evaluate(model, encoder_changed=False).sets
    assert (knowing.retrieved, knowing.shuffled) == (pytest.approx(1.0), pytest.approx(1.0))


def test_the_shuffles_are_the_same_in_every_evaluation_and_every_run(
    start: Path, by: Callable[[Scoring], None]
) -> None:
    model, tokenizers = tiny_trainable(start)
    lists = [listed([1.0, *[0.0] * 9], id_=f"q{number}") for number in range(8)]
    seen: list[tuple[float, ...]] = []

    def remember(candidates: CandidateList) -> Sequence[float]:
        seen.append(candidates.labels)
        return candidates.labels

    by(remember)
    for _ in range(2):
        scores = Development(in_one_set(lists), EvaluationConfig(), tokenizers)
        scores.evaluate(model, encoder_changed=True)
        scores.evaluate(model, encoder_changed=False)
    rounds = [seen[start : start + 16] for start in range(0, 64, 16)]
    assert rounds[0] == rounds[1] == rounds[2] == rounds[3]
    assert len(set(rounds[0][8:])) > 4  # and not one shuffle for all lists


def test_lists_are_cut_left_out_where_nothing_can_be_found_and_spread_over_all_sources(
    start: Path, by: Callable[[Scoring], None]
) -> None:
    model, tokenizers = tiny_trainable(start)
    useful = [listed([0.0, 1.0, 0.0], id_=f"useful{number}") for number in range(9)]
    hopeless = [listed([0.0, 0.0, 1.0], id_=f"hopeless{number}") for number in range(9)]
    seen: list[CandidateList] = []

    def remember(candidates: CandidateList) -> Sequence[float]:
        seen.append(candidates)
        return candidates.labels

    by(remember)
    config = EvaluationConfig(lists=3, candidates=2)
    score = Development(in_one_set([*hopeless, *useful]), config, tokenizers).evaluate(model, encoder_changed=True)
    (found,) = score.sets
    assert found.lists == 3
    assert {candidates.id for candidates in seen} == {"useful0", "useful4", "useful8"}
    assert {len(candidates) for candidates in seen} == {2}


def test_by_a_teachers_scores_the_best_of_the_whole_list_is_relevant(
    start: Path, by: Callable[[Scoring], None]
) -> None:
    model, tokenizers = tiny_trainable(start)
    by(lambda candidates: candidates.labels)

    def scored(*labels: float, id_: str) -> CandidateList:
        return listed(list(labels), kind=LabelKind.SCORES, id_=id_)

    lists = [scored(1.0, 2.0, 0.5, id_="kept"), scored(1.0, 0.5, 9.0, id_="best further down"),
             scored(3.0, 3.0, 1.0, id_="all alike")]  # fmt: skip
    config = EvaluationConfig(lists=3, candidates=2)
    score = Development(in_one_set(lists), config, tokenizers).evaluate(model, encoder_changed=True)
    assert score.sets[0].lists == 1


def test_vectors_are_computed_once_while_the_encoder_stays_the_same(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizers = tiny_trainable(start)
    built = 0
    original = EmbeddingTable.build.__func__  # type: ignore[attr-defined]

    def build(*arguments: object, **options: object) -> EmbeddingTable:
        nonlocal built
        built += 1
        return original(EmbeddingTable, *arguments, **options)

    monkeypatch.setattr(EmbeddingTable, "build", build)
    scores = Development(in_one_set(tiny_lists(2)), EvaluationConfig(candidates=8), tokenizers)
    for changed in (False, False, True, False):
        scores.evaluate(model, encoder_changed=changed)
    assert built == 2


def test_sets_are_scored_apart_and_chosen_by_their_mean_or_their_worst(
    start: Path, by: Callable[[Scoring], None]
) -> None:
    """Set a gains 0.25 over its dense-start, set b loses 0.05: by hand, from scores made up."""
    before = DevelopmentScore((SetScore("a", 0.1, 0.1, 0.5, 3), SetScore("b", 0.1, 0.1, 0.3, 9)))
    after = DevelopmentScore((SetScore("a", 0.8, 0.75, 0.6, 3), SetScore("b", 0.25, 0.4, 0.3, 9)))
    assert after.gain(before, Choose.MEAN) == pytest.approx(0.1)  # of sets, whatever their sizes
    assert after.gain(before, Choose.WORST) == pytest.approx(-0.05)
    assert after.values == pytest.approx(
        {"retrieved": 0.525, "shuffled": 0.575, "dense": 0.45, "a/retrieved": 0.8, "a/shuffled": 0.75, "a/dense": 0.6}
        | {"b/retrieved": 0.25, "b/shuffled": 0.4, "b/dense": 0.3}
    )

    model, tokenizers = tiny_trainable(start)
    sets = [
        DevelopmentSet("first", tuple(listed([1.0, 0.0], id_=f"a{number}") for number in range(3))),
        DevelopmentSet("last", tuple(listed([0.0, 1.0], id_=f"b{number}") for number in range(5))),
    ]
    by(lambda candidates: [-float(row) for row in range(len(candidates))])
    found = Development(sets, EvaluationConfig(lists=4), tokenizers).evaluate(model, encoder_changed=True)
    assert [(part.name, part.lists, part.retrieved) for part in found.sets] == [
        ("first", 3, pytest.approx(1.0)),
        ("last", 4, pytest.approx(1 / math.log2(3))),
    ]
