"""Which shapes keep their captured graph."""

from __future__ import annotations

import numpy as np

from resrank.serving.engines.cuda_graphs import RecentShapes, shape_key


def key(batch: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    return shape_key({"INPUT_IDS": np.zeros((batch, 16)), "CANDIDATES": np.zeros((batch, 4, 8))})


def test_the_shape_that_was_not_used_for_longest_makes_place() -> None:
    graphs = RecentShapes[str](limit=2)
    graphs[key(1)] = "one"
    graphs[key(2)] = "two"
    assert graphs[key(1)] == "one"
    graphs[key(3)] = "three"
    assert key(2) not in graphs
    assert graphs[key(1)] == "one"
    assert graphs[key(3)] == "three"


def test_replacing_a_shapes_graph_drops_no_other() -> None:
    graphs = RecentShapes[str | None](limit=2)
    graphs[key(1)], graphs[key(2)] = None, "two"
    graphs[key(1)] = "one"
    assert graphs[key(1)] == "one"
    assert graphs[key(2)] == "two"


def test_a_key_tells_shapes_apart_and_not_their_order() -> None:
    forth = {"A": np.zeros((2, 3)), "B": np.zeros((3, 2))}
    back = dict(reversed(forth.items()))
    crossed = {"A": np.zeros((3, 2)), "B": np.zeros((2, 3))}
    assert shape_key(forth) == shape_key(back)
    assert shape_key(forth) != shape_key(crossed)
