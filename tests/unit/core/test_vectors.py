"""Which half precision numbers make a vector that nothing can be compared with."""

from __future__ import annotations

import numpy as np

from resrank.core.vectors import first_bad_vector

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
USABLE = np.isfinite(HALVES) & (HALVES != 0)


def test_every_finite_number_but_zero_makes_a_vector_good() -> None:
    good = HALVES[USABLE]
    assert first_bad_vector(good[:, None]) is None
    assert first_bad_vector(np.stack([good, np.zeros_like(good)], axis=1)) is None


def test_every_other_number_alone_makes_it_bad() -> None:
    others = HALVES[~USABLE]
    assert len(others) == 2 * 1025  # of either sign: zero, infinity and NaN with each of its 1023 payloads
    vectors = np.ones((len(others), 3), np.float16)
    for index, other in enumerate(others):
        vectors[index] = 0 if other == 0 else [1, other, 1]
        assert first_bad_vector(vectors) == (index,)
        vectors[index] = 1


def test_a_vector_without_numbers_is_bad() -> None:
    assert first_bad_vector(np.zeros((2, 0), np.float16)) == (0,)
