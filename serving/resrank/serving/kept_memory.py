"""Memory that a process which serves has used for one request, kept for the next."""

from __future__ import annotations

import numpy as np

_KEPT_BYTES = 16 << 20
"""Far above the arrays of one pass: 128 vectors of 1024 numbers take 1 MiB in fp64."""


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, up to twice ``_KEPT_BYTES`` for each of its arenas, for good.

    glibc gives freed memory back to the system above a limit that begins at 128 KiB, and what the system hands out anew
    it clears page by page. Two or three arrays of one list's vectors in fp64 (100 of 384 numbers take 0.3 MB) lie on
    either side of that limit, so that one more of them made ``rerank_prompt`` slower by half. When a block is freed
    that was mapped by itself, glibc raises the limit to twice its size (``man 3 mallopt``, ``M_MMAP_THRESHOLD``; not
    where ``MALLOC_*_`` variables set the limits). So one is allocated here and freed at once. No page of it is touched,
    and no other C library is disturbed by it.
    """
    np.empty(_KEPT_BYTES, np.uint8)
