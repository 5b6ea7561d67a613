"""Sampled lists keep what makes a list teach, and the retriever's order where they are not shuffled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resrank.training.data_config import CandidatesConfig
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.sampling import CandidateSampler


def make_list(labels: list[float], kind: LabelKind = LabelKind.GRADES) -> CandidateList:
    """A list whose passages are named by their position."""
    passages = tuple(TrainingPassage("", str(position)) for position in range(len(labels)))
    return CandidateList("q", "query", passages, tuple(labels), kind, "source")


def positions(sampled: CandidateList) -> list[int]:
    return [int(passage.text) for passage in sampled.passages]


GRADED = st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0]), min_size=2, max_size=40).map(make_list)
SCORED = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=40).map(
    lambda scores: make_list(scores, LabelKind.SCORES)
)
BOUNDS = st.tuples(st.integers(2, 30), st.integers(2, 30)).map(sorted)


@given(GRADED | SCORED, BOUNDS, st.integers(0, 2**32))
def test_a_sample_is_a_part_of_the_list_that_has_both_sides(
    candidates: CandidateList, bounds: list[int], seed: int
) -> None:
    assume(any(candidates.relevant) and len(set(candidates.labels)) > 1)
    shortest, longest = bounds
    for shuffle in (0.0, 1.0):
        sampler = CandidateSampler(CandidatesConfig(min_passages=shortest, max_passages=longest, shuffle=shuffle))
        sampled = sampler.sample(candidates, np.random.default_rng(seed))

        kept = positions(sampled)
        assert len(set(kept)) == len(kept) == len(sampled.labels)
        assert min(shortest, len(candidates)) <= len(kept) <= min(longest, len(candidates))
        assert list(sampled.labels) == [candidates.labels[position] for position in kept]
        relevant = [candidates.relevant[position] for position in kept]
        assert any(relevant)
        assert not all(relevant) or all(candidates.relevant)
        assert len(set(sampled.labels)) > 1
        assert (sampled.id, sampled.query, sampled.kind, sampled.source) == ("q", "query", candidates.kind, "source")
        if not shuffle:
            assert kept == sorted(kept)


@given(GRADED, BOUNDS, st.integers(0, 2**32))
def test_what_is_kept_is_the_beginning_wherever_the_beginning_teaches(
    candidates: CandidateList, bounds: list[int], seed: int
) -> None:
    assume(any(candidates.relevant) and not all(candidates.relevant))
    _, longest = bounds
    beginning = candidates.relevant[:longest]
    assume(any(beginning) and not all(beginning))
    sampler = CandidateSampler(CandidatesConfig(min_passages=2, max_passages=longest, shuffle=0))

    kept = positions(sampler.sample(candidates, np.random.default_rng(seed)))

    assert kept == list(range(len(kept)))


def test_lengths_are_uniform_among_those_that_reach_a_relevant_passage() -> None:
    sampler = CandidateSampler(CandidatesConfig(min_passages=3, max_passages=8, shuffle=0))
    rng = np.random.default_rng(1)
    lengths = Counter(len(sampler.sample(make_list([0, 0, 0, 0, 1] + [0] * 10), rng)) for _ in range(4000))

    assert sorted(lengths) == [5, 6, 7, 8]
    # 4,000 draws of 4 lengths: standard deviation 27
    assert all(abs(count - 1000) < 130 for count in lengths.values())


def test_a_relevant_passage_beyond_the_longest_length_keeps_its_rank_among_the_others() -> None:
    sampler = CandidateSampler(CandidatesConfig(min_passages=4, max_passages=4, shuffle=0))
    candidates = make_list([0.0] * 15 + [1.0] + [0.0] * 4)  # rank 16 of 20
    rng = np.random.default_rng(2)
    ranks = [sampler.sample(candidates, rng).labels.index(1.0) for _ in range(4000)]

    # Three others drawn from 19, 15 of which stand before it: 3 * 15 / 19 of them on average, never always last.
    assert np.mean(ranks) == pytest.approx(3 * 15 / 19, abs=0.05)


def test_a_shuffled_list_can_have_any_order() -> None:
    sampler = CandidateSampler(CandidatesConfig(min_passages=3, max_passages=3, shuffle=1))
    rng = np.random.default_rng(3)
    orders = Counter(tuple(positions(sampler.sample(make_list([1, 0, 0]), rng))) for _ in range(6000))

    assert len(orders) == 6
    assert all(abs(count - 1000) < 150 for count in orders.values())  # standard deviation 29


def test_the_probability_of_shuffling_holds() -> None:
    sampler = CandidateSampler(CandidatesConfig(min_passages=10, max_passages=10, shuffle=0.3))
    rng = np.random.default_rng(4)
    candidates = make_list([1.0] + [0.0] * 9)
    shuffled = [positions(sampler.sample(candidates, rng)) != list(range(10)) for _ in range(3000)]

    assert np.mean(shuffled) == pytest.approx(0.3, abs=0.04)


def test_the_same_state_gives_the_same_sample() -> None:
    sampler = CandidateSampler(CandidatesConfig(max_passages=10))
    candidates = make_list([0.0, 1.0] * 30)

    assert sampler.sample(candidates, np.random.default_rng(5)) == sampler.sample(candidates, np.random.default_rng(5))
    assert sampler.sample(candidates, np.random.default_rng(5)) != sampler.sample(candidates, np.random.default_rng(6))


@given(GRADED | SCORED, BOUNDS, st.sampled_from([1.1, 1.5, 3.0]), st.integers(0, 2**32))
def test_a_spread_sample_is_drawn_from_the_first_candidates(
    candidates: CandidateList, bounds: list[int], spread: float, seed: int
) -> None:
    assume(any(candidates.relevant) and len(set(candidates.labels)) > 1)
    shortest, longest = bounds
    config = CandidatesConfig(min_passages=shortest, max_passages=longest, spread=spread, shuffle=0)
    sampled = CandidateSampler(config).sample(candidates, np.random.default_rng(seed))

    kept = positions(sampled)
    assert kept == sorted(set(kept))
    assert min(shortest, len(candidates)) <= len(kept) <= min(longest, len(candidates))
    assert any(sampled.relevant)
    assert len(set(sampled.labels)) > 1
    relevant = [row for row, is_relevant in enumerate(candidates.relevant) if is_relevant]
    other = [row for row, is_relevant in enumerate(candidates.relevant) if not is_relevant]
    # Where the first of both sides stand far enough in front, nothing is taken from beyond the window.
    if other and max(relevant[0], other[0]) < int(spread * min(shortest, len(candidates)) + 1e-9):
        assert kept[-1] < max(int(spread * len(kept) + 1e-9), 2)


def test_a_spread_sample_leaves_some_of_the_first_out() -> None:
    candidates = make_list([1.0, *[0.0] * 39])
    config = CandidatesConfig(min_passages=10, max_passages=10, spread=1.5, shuffle=0)
    seen = Counter[int]()
    for seed in range(400):
        kept = positions(CandidateSampler(config).sample(candidates, np.random.default_rng(seed)))
        assert len(kept) == 10
        seen.update(kept)
    assert set(seen) == set(range(15))
    assert all(200 < seen[row] < 330 for row in range(1, 15))
