"""How long this machine takes to read memory: the limit of a search that must look at every vector."""

from __future__ import annotations

import torch

from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import Side

_WARM_UP = 2
_READS = 20


def read_ms(label: str, size: int, threads: int) -> Side:
    """Milliseconds in which all threads together read so much memory once, summing it up on the way.

    Args:
        label: Of the side.
        size: Bytes, a multiple of 4. What a cache can hold comes from there, as it does for who searches again.
        threads: That read.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        held = torch.ones(size // 4)
        spent = interleave({label: lambda _: held.sum()}, runs=_READS, warm_up=_WARM_UP)
    finally:
        torch.set_num_threads(before)
    return Side.of(label, spent[label])
