from __future__ import annotations

from typing import Any

import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.search import SearchMode, SearchOptions, choice


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"k": 0, "candidates": 5}, "k: too small (limit 1, got 0)"),
        ({"k": 1, "candidates": 0}, "candidates: too small (limit 1, got 0)"),
        ({"k": 6, "candidates": 5}, "k: more results than candidates (limit 5, got 6)"),
        ({"k": 1, "candidates": 1001}, "candidates: too large (limit 1000, got 1001)"),
        ({"lexical_weight": 11}, "lexical_weight: out of range (limit 0 to 10, got 11)"),
    ],
)
def test_searches_that_cannot_be_served_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SearchOptions(**fields)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("mode", ["fuzzy", "", "DENSE", 3])
def test_only_known_modes_are_taken(mode: str) -> None:
    assert choice("mode", SearchMode, "lexical") is SearchMode.LEXICAL
    with pytest.raises(InvalidInputError, match="mode: unknown"):
        choice("mode", SearchMode, mode)
