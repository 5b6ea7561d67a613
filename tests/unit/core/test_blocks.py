from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resrank.core.blocks import plan_blocks


@given(st.integers(1, 500), st.integers(1, 60))
def test_blocks_cover_the_list_once_in_order_and_none_is_too_long(count: int, size: int) -> None:
    blocks = plan_blocks(count, size)
    assert [index for block in blocks for index in range(count)[block]] == list(range(count))
    assert all(1 <= block.stop - block.start <= size for block in blocks)
    assert len(blocks) == -(-count // size)
