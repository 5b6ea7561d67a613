"""What a query's words find, and by which words: the same for every store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.retrieval.records import FloatVector, Keys

TOKENIZER = "porter unicode61"
RANKING = f"BM25, tokenizer {TOKENIZER}, pairs of letters in scripts without blanks, title and text"

MAX_TERMS = 64
"""Terms of a query that are searched for: the rarest ones. Longer queries are pasted documents, whose rarest words
decide their ranking anyway."""

FLOOD_DOCUMENTS = 1000
"""From this many documents on, a term that stands in more than half of them is left out, see `LexicalIndex.matches`."""


@dataclass(frozen=True)
class LexicalMatches:
    """Every document in which a term of the query stands.

    Attributes:
        keys: Ascending.
        scores: BM25, fp64 [len(keys)].
    """

    keys: Keys
    scores: NDArray[np.float64]

    @property
    def best(self) -> float:
        """The best score, 0 where nothing matches."""
        return float(self.scores.max(initial=0.0))

    def first(self, k: int) -> Keys:
        """Keys of the k best, best first, ties by key."""
        keys, scores = self.keys, self.scores
        if k < len(scores):  # to sort them all takes longer than to find them
            good = scores >= np.partition(scores, -k)[-k]
            keys, scores = keys[good], scores[good]
        ranked: Keys = keys[np.lexsort((keys, -scores))][:k]
        return ranked

    def scores_of(self, keys: Keys) -> FloatVector:
        """BM25 of any keys, fp32 [len(keys)]; 0 for what does not match."""
        if not len(self.keys):
            return np.zeros(len(keys), np.float32)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.scores[places], 0.0).astype(np.float32)

    def among(self, keys: Keys) -> LexicalMatches:
        """Those of some keys, at least one, ascending."""
        kept = are_among(self.keys, keys)
        return LexicalMatches(self.keys[kept], self.scores[kept])


def are_among(keys: Keys, others: Keys) -> NDArray[np.bool_]:
    """Of each key whether it is among others, at least one, ascending."""
    found: NDArray[np.bool_] = others[np.minimum(np.searchsorted(others, keys), len(others) - 1)] == keys
    return found
