"""A position says everything: the stream has no state, mixes by weight, and goes through every list each epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.training.data_config import CandidatesConfig
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.sampling import CandidateSampler
from resrank.training.sources import Source
from resrank.training.stream import ROUND, ListStream

SAMPLER = CandidateSampler(CandidatesConfig(min_passages=2, max_passages=6))


def source(name: str, weight: float, size: int) -> Source:
    passages = tuple(TrainingPassage("", f"{name} {number}") for number in range(8))
    labels = (1.0,) + (0.0,) * 7
    lists = (CandidateList(f"{name}{n}", "query", passages, labels, LabelKind.GRADES, name) for n in range(size))
    return Source(name, weight, tuple(lists))


def stream(*sources: Source, seed: int = 3) -> ListStream:
    return ListStream(sources, SAMPLER, seed)


def test_a_position_gives_the_same_list_whatever_was_read_before() -> None:
    sources = source("a", 2, 30), source("b", 1, 70)
    in_order = [stream(*sources).at(position) for position in range(3 * ROUND)]

    for position in (0, 1, 77, ROUND - 1, ROUND, 2 * ROUND + 5):
        assert stream(*sources).at(position) == in_order[position]
    backwards = stream(*sources)
    for position in reversed(range(0, 3 * ROUND, 61)):
        assert backwards.at(position) == in_order[position]


def test_seeds_and_passes_over_a_list_differ() -> None:
    only = source("a", 1, 1)
    assert len({stream(only).at(position).passages for position in range(50)}) > 25
    several = source("a", 1, 50)
    first = [stream(several).at(position).id for position in range(50)]
    assert first != [stream(several, seed=4).at(position).id for position in range(50)]
    assert first != [stream(several).at(position).id for position in range(50, 100)]


@pytest.mark.parametrize(("size", "weight"), [(1, 1.0), (7, 5.0), (300, 0.01)])
def test_every_list_comes_once_before_any_comes_again(size: int, weight: float) -> None:
    mixed = stream(source("other", 1, 11), source("a", weight, size))
    ids = [candidates.id for position in range(6 * ROUND) if (candidates := mixed.at(position)).source == "a"]

    assert len(ids) >= 6  # even the lightest source comes in every round
    for start in range(0, len(ids), size):
        epoch = ids[start : start + size]
        assert len(set(epoch)) == len(epoch)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_every_round_holds_each_source_by_its_weight(weights: list[float]) -> None:
    mixed = stream(*(source(str(number), weight, 3) for number, weight in enumerate(weights)))
    counts = Counter(mixed.at(ROUND + offset).source for offset in range(ROUND))

    for number, weight in enumerate(weights):
        assert counts[str(number)] >= 1
        assert counts[str(number)] == pytest.approx(ROUND * weight / sum(weights), abs=1 + len(weights))


def test_sources_come_in_random_order_within_a_round() -> None:
    mixed = stream(source("a", 1, 5), source("b", 1, 5))
    order = np.array([mixed.at(position).source == "a" for position in range(ROUND)])

    assert order.sum() == ROUND / 2
    # Runs of a fair coin's 1,024 throws: 513 on average, standard deviation 16.
    assert 1 + np.count_nonzero(order[1:] != order[:-1]) == pytest.approx(513, abs=80)
