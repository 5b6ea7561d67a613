"""Lists longer than one request takes are cut into blocks."""

from __future__ import annotations


def plan_blocks(count: int, size: int) -> list[slice]:
    """Cuts ``count`` items into consecutive blocks of ``size``, the last one perhaps shorter.

    Consecutive, since a causal reranker reads candidates in retrieval order. A score is a cosine whatever the block, so
    the scores of all blocks, one behind the other, are the scores of the list.

    Args:
        count: Items.
        size: Items in one block, at least 1.
    """
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
