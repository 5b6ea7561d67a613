"""Lists longer than one request takes are cut into blocks."""

from __future__ import annotations

from resrank.core.relations import CanonicalOrder, Int64


def plan_blocks(count: int, size: int) -> list[slice]:
    """Cuts ``count`` items into consecutive blocks of ``size``, the last one perhaps shorter.

    Consecutive, since a causal reranker reads candidates in retrieval order. A score is a cosine whatever the block, so
    the scores of all blocks, one behind the other, are the scores of the list.

    Args:
        count: Items.
        size: Items in one block, at least 1.
    """
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def order_blocks(order: CanonicalOrder, size: int) -> list[Int64]:
    """Cuts a list of candidates into passes; their scores, one behind the other, are taken at ``order.places``.

    Args:
        order: How the list is read: as it comes, or in canonical order where the reranker reads relations. Then every
            block holds neighbours in that order, whichever way the list came.
        size: Candidates in one pass, at least 1.

    Returns:
        Of each pass, INT64 [n], which candidates of the list it holds.
    """
    return [order.order[block] for block in plan_blocks(len(order.order), size)]
