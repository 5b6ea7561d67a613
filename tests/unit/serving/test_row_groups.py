"""Rows are grouped at the least cost, compared with trying every way of grouping them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.serving.row_groups import group_rows

lengths_of_rows = st.lists(st.integers(1, 60), min_size=1, max_size=7)


def partitions(rows: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to split a set."""
    if not rows:
        yield []
        return
    first, *rest = rows
    for split in partitions(rest):
        yield [[first], *split]
        for index, group in enumerate(split):
            yield [*split[:index], [first, *group], *split[index + 1 :]]


def cost(groups: Sequence[Sequence[int]], lengths: Sequence[int], call_cost: int) -> int:
    return sum(call_cost + len(group) * max(lengths[row] for row in group) for group in groups)


@given(lengths_of_rows, st.integers(0, 80))
def test_no_grouping_is_cheaper(lengths: list[int], call_cost: int) -> None:
    groups = [group.tolist() for group in group_rows(lengths, call_cost=call_cost, max_positions=10_000)]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    least = min(cost(split, lengths, call_cost) for split in partitions(range(len(lengths))))
    assert cost(groups, lengths, call_cost) == least


@given(lengths_of_rows, st.integers(0, 80))
def test_no_grouping_of_the_sizes_allowed_is_cheaper(lengths: list[int], call_cost: int) -> None:
    sizes = (1, 2, 4)
    found = group_rows(lengths, call_cost=call_cost, max_positions=10_000, sizes=sizes)
    groups = [group.tolist() for group in found]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert {len(group) for group in groups} <= set(sizes)
    allowed = [split for split in partitions(range(len(lengths))) if all(len(group) in sizes for group in split)]
    assert cost(groups, lengths, call_cost) == min(cost(split, lengths, call_cost) for split in allowed)


@given(lengths_of_rows, st.integers(1, 150))
def test_no_call_is_larger_than_allowed(lengths: list[int], max_positions: int) -> None:
    groups = group_rows(lengths, call_cost=1000, max_positions=max_positions)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= max_positions


@pytest.mark.parametrize(("lengths", "calls"), [([10] * 8, 1), ([10, 11, 12, 13], 1), ([10, 500], 2), ([], 0)])
def test_equal_rows_share_a_call_and_very_unequal_ones_do_not(lengths: list[int], calls: int) -> None:
    assert len(group_rows(lengths, call_cost=48, max_positions=8192)) == calls
