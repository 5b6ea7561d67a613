from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.core.truncation import Side, Truncation


@given(st.lists(st.integers(0, 99), max_size=20), st.integers(1, 12), st.integers(0, 5), st.sampled_from(Side))
def test_the_instruction_and_the_wanted_end_stay(ids: list[int], room: int, head: int, side: Side) -> None:
    room += head
    kept = Truncation(side).cut(ids, room, head)
    assert len(kept) == min(len(ids), room)
    assert kept[:head] == ids[:head]
    body, whole = kept[head:], ids[head:]
    assert whole[: len(body)] == body if side is Side.RIGHT else whole[len(whole) - len(body) :] == body


def test_a_short_word_is_the_usual_way() -> None:
    assert Truncation.of(True) == Truncation(Side.RIGHT, None)
    assert Truncation.of(False) is Truncation.of(None) is None
    assert Truncation.of(Truncation(Side.LEFT, 5)) == Truncation(Side.LEFT, 5)
    with pytest.raises(InvalidInputError, match="token_limit: too small"):
        Truncation(token_limit=0)


def test_what_is_no_truncation_is_refused_by_name() -> None:
    assert Truncation("left", np.int64(7)) == Truncation(Side.LEFT, 7)  # type: ignore[arg-type]
    for fields, sentence in (
        ({"side": "middle"}, r"truncation_side: unknown \(limit left, right, got middle\)"),
        ({"token_limit": True}, "token_limit: must be a whole number, not bool"),
        ({"token_limit": 10.5}, "token_limit: must be a whole number, not float"),
        ({"token_limit": "x"}, "token_limit: must be a whole number, not str"),
    ):
        with pytest.raises(InvalidInputError, match=sentence):
            Truncation(**fields)
