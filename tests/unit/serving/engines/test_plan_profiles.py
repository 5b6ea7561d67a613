"""A call runs in the tightest profile that it fits in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.serving.engines.base import EngineError
from resrank.serving.engines.plan_profiles import PlanProfile, ShapeRange, choose_profile


def reranker_profile(index: int, batch: int, sequence: int, candidates: int) -> PlanProfile:
    return PlanProfile(
        index,
        {
            "INPUT_IDS": ShapeRange((1, 16), (batch, sequence)),
            "CANDIDATES": ShapeRange((1, 1, 48), (batch, candidates, 48)),
        },
    )


LONE, BATCHES = reranker_profile(0, 1, 512, 128), reranker_profile(1, 16, 512, 128)


def call(batch: int, sequence: int, candidates: int) -> dict[str, tuple[int, ...]]:
    return {"INPUT_IDS": (batch, sequence), "CANDIDATES": (batch, candidates, 48)}


def test_the_tightest_profile_is_chosen() -> None:
    assert choose_profile([LONE, BATCHES], call(1, 160, 100)) is LONE
    assert choose_profile([BATCHES, LONE], call(1, 160, 100)) is LONE
    assert choose_profile([LONE, BATCHES], call(2, 160, 100)) is BATCHES


@given(st.integers(1, 17), st.integers(15, 513), st.integers(1, 129))
def test_a_call_has_a_profile_if_and_only_if_every_size_is_within(batch: int, sequence: int, candidates: int) -> None:
    within = batch <= 16 and 16 <= sequence <= 512 and candidates <= 128
    if within:
        assert choose_profile([LONE, BATCHES], call(batch, sequence, candidates)).index == (batch > 1)
    else:
        with pytest.raises(EngineError, match="fit no optimisation profile"):
            choose_profile([LONE, BATCHES], call(batch, sequence, candidates))


def test_the_refusal_says_what_was_asked_and_what_is_taken() -> None:
    with pytest.raises(
        EngineError, match=r"INPUT_IDS \[17, 160\].*CANDIDATES \[1-16, 1-128, 48\], INPUT_IDS \[1-16, 16-512\]"
    ):
        choose_profile([LONE, BATCHES], call(17, 160, 100))


@pytest.mark.parametrize(
    "shapes", [{"INPUT_IDS": (1, 16)}, {**call(1, 16, 1), "MASK": (1, 16)}, {**call(1, 16, 1), "INPUT_IDS": (16,)}]
)
def test_other_inputs_or_axes_than_the_plans_have_no_profile(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(EngineError, match="fit no optimisation profile"):
        choose_profile([LONE, BATCHES], shapes)
