"""Where an error is about, from the one who raises it to the one who reads it behind Triton."""

from __future__ import annotations

import pytest

from resrank.core.errors import InvalidInputError, Place


@pytest.mark.parametrize("place", [Place("QUERY"), Place("CANDIDATES", (17,)), Place("PASSAGES", (2, 3))])
@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "in ensemble 'rerank', {}",
        "Model embed_passage - Error when running inference: in ensemble 'embed_passage', {}",
    ],
)
def test_a_place_survives_the_text(place: Place, said: str) -> None:
    read = InvalidInputError.parse(said.format(InvalidInputError(place, "too many tokens", limit=8, value=9)))
    assert read is not None
    assert (read.place, read.problem, read.limit, read.value) == (place, "too many tokens", "8", "9")


def test_a_number_too_long_to_be_written_is_told_in_words() -> None:
    error = InvalidInputError("k", "out of range", limit=8, value=10**5000)
    assert str(error) == "k: out of range (limit 8, got a number of thousands of digits)"


def test_a_caller_numbers_its_own_rows() -> None:
    error = InvalidInputError(Place("TEXT", (3,)), "too many tokens", limit=8, value=9)
    moved = error.at(Place("PASSAGES", (103,)))
    assert str(moved) == "PASSAGES[103]: too many tokens (limit 8, got 9)"
    assert moved.field == "PASSAGES[103]"
