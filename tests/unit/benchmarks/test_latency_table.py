"""The table of rerankers, with and without the side that only a reranker with text has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from resrank.benchmarks.latency_table import latency_columns, latency_plot, latency_rows, text_notes
from resrank.benchmarks.measurement import Side
from resrank.benchmarks.rerankers import LISTWISE, STACK


@pytest.mark.parametrize("listwise", [True, False])
def test_only_measured_sides_have_a_column_a_cell_and_a_line(listwise: bool) -> None:
    labels = (STACK, LISTWISE) if listwise else (STACK,)
    found = {size: {label: Side.of(label, [1.0, 2.0, 3.0]) for label in labels} for size in (10, 100)}
    assert latency_columns("N", found) == ("N", *labels)
    assert latency_rows(found)[1] == (100, *["2 (1-3, 3)"] * len(labels))
    assert [series.label for series in latency_plot("n", "t", "x", found).series] == list(labels)


def test_a_missing_side_is_explained() -> None:
    without: Any = SimpleNamespace(reader=None)
    assert any("There is no text-listwise side" in note for note in text_notes(without, 128))
    with_one: Any = SimpleNamespace(reader=SimpleNamespace(max_positions=2048))
    assert any("ends at 16 passages of 128 tokens" in note for note in text_notes(with_one, 128))
