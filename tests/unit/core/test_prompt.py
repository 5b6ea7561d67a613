"""The prompt layout against sequences written out by hand, and its promises as properties."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.prompt import PromptLayout, pad_candidates

LAYOUT = PromptLayout(before_query=(10, 11), before_passages=(20,), after_passages=(30,), eos_id=2, placeholder_id=0)


def test_two_unequal_rows_written_out() -> None:
    batch = LAYOUT.batch([[5, 6, 7], [8]], [1, 3])
    assert batch.input_ids.tolist() == [
        [10, 11, 5, 6, 7, 20, 0, 30, 2],
        [10, 11, 8, 20, 0, 0, 0, 30, 2],
    ]
    assert batch.passage_positions.tolist() == [[6, 6, 6], [4, 5, 6]]
    assert batch.last_position.tolist() == [[8], [8]]
    assert batch.candidate_count.tolist() == [[1], [3]]


def test_slots_alone_have_neither_text_nor_query() -> None:
    layout = PromptLayout.of_slots_alone()
    batch = layout.batch([[], []], [1, 3])
    assert batch.input_ids.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert batch.passage_positions.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert batch.last_position.tolist() == [[0], [2]]
    assert layout.length(100, 3) == 3


token_lists = st.lists(st.integers(100, 900), min_size=1, max_size=12)


@given(st.lists(st.tuples(token_lists, st.integers(1, 20)), min_size=1, max_size=5))
def test_every_row_stands_as_it_would_alone_and_padding_is_on_the_right(rows: list[tuple[list[int], int]]) -> None:
    queries, counts = [query for query, _ in rows], [count for _, count in rows]
    batch = LAYOUT.batch(queries, counts)
    for row, (query, count) in enumerate(rows):
        alone = LAYOUT.batch([query], [count])
        length = LAYOUT.length(len(query), count)
        assert batch.input_ids[row, :length].tolist() == alone.input_ids[0].tolist()
        assert (batch.input_ids[row, length:] == LAYOUT.placeholder_id).all()
        assert batch.last_position[row, 0] == length - 1
        assert batch.input_ids[row, length - 1] == LAYOUT.eos_id
        positions = batch.passage_positions[row]
        assert positions[:count].tolist() == alone.passage_positions[0].tolist()
        assert (batch.input_ids[row, positions] == LAYOUT.placeholder_id).all()
        # What a padded candidate writes lands where the same vector already stands.
        assert (positions[count:] == positions[count - 1]).all()
        assert (np.diff(positions[:count]) == 1).all()


def test_pad_candidates_repeats_the_last_vector() -> None:
    candidates = np.arange(6, dtype=np.float16).reshape(1, 3, 2)
    padded = pad_candidates(candidates, 5)
    assert padded[0].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert pad_candidates(candidates, 3) is candidates


def test_a_batch_can_be_padded_to_more_than_its_longest_row() -> None:
    layout = PromptLayout(before_query=(1,), before_passages=(2,), after_passages=(3,), eos_id=4, placeholder_id=9)
    batch = layout.batch([[7, 8]], [2], min_length=11, min_candidates=4)
    assert batch.input_ids.tolist() == [[1, 7, 8, 2, 9, 9, 3, 4, 9, 9, 9]]
    assert batch.passage_positions.tolist() == [[4, 5, 5, 5]]
    assert batch.last_position.tolist() == [[7]]
    assert batch.candidate_count.tolist() == [[2]]
    exact = layout.batch([[7, 8]], [2], min_length=3, min_candidates=1)
    assert exact.input_ids.shape == (1, 8)
    assert exact.passage_positions.shape == (1, 2)
