"""Queries, and passages of made-up words, for what is measured through the servers and does not depend on meaning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.stored_vectors import store_passages
from resrank.core.corpus import Passage
from resrank.core.scoring import normalize

QUERIES = (
    "who wrote the first published algorithm?",
    "which river flows through the capital of France?",
    "when did two astronauts walk on the moon?",
    "what controlled the loom that wove patterns into silk?",
)

_WORDS = (
    "the of and in to a was is for as on with by he that it his at from an were are which this be had also has or one "
    "first their its new after but who not they two her she been other when time during there into all may more city "
    "world state year between team game war song album film series national school university station club league river"
)


def passage_texts(count: int, words: int, *, seed: int = 0) -> list[str]:
    """Different passages of equal length.

    Args:
        count: How many.
        words: In each.
        seed: Of the choice of words.
    """
    chosen = np.random.default_rng(seed).choice(_WORDS.split(), (count, words))
    return [f"{number} {' '.join(row)}" for number, row in enumerate(chosen)]


def unit_vectors(count: int, dimension: int) -> NDArray[np.float16]:
    """Random vectors of length 1, FP16 [count, dimension]."""
    vectors = np.random.default_rng(0).standard_normal((count, dimension), np.float32)
    halves: NDArray[np.float16] = normalize(vectors).astype(np.float16)
    return halves


def fill_with_sample(sidecar: str, encoder_sha256: str, dimension: int, count: int) -> None:
    """Stores passages of 60 words with random vectors.

    Args:
        sidecar: ``host:port`` of a sidecar with an empty index.
        encoder_sha256: Whose vectors they pretend to be.
        dimension: d.
        count: How many.
    """
    passages = [
        Passage(number + 1, f"passage-{number}", f"passage {number}", text)
        for number, text in enumerate(passage_texts(count, 60))
    ]
    store_passages(sidecar, encoder_sha256, passages, unit_vectors(count, dimension))
