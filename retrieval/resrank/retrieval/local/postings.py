"""What each term adds to the BM25 of each document, kept in memory for one state of the lexical index.

FTS5 computes BM25 anew for each document that a query finds, 1.3 microseconds each, and common words find most of them.
What a term adds to a document is the same for every query until the next write, so it is computed once, from FTS5's own
postings and lengths, and then only summed. The sums are FTS5's own: the same formula in the same order
(https://www.sqlite.org/fts5.html#the_bm25_function).
"""

from __future__ import annotations

import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from resrank.core.terms import match_expression
from resrank.retrieval.local.checksums import damaged
from resrank.retrieval.matches import are_among
from resrank.retrieval.records import Keys
from resrank.retrieval.words import K1, LEAST_IDF, LONGEST_TERM, B, Tokenizer

LEAST_BYTES = 32 << 20
BYTES_A_DOCUMENT = 128
"""What is kept of a collection, at most: the greater of the two bounds. A posting takes 12 bytes."""

_BYTES_A_TERM = 600
"""What a term takes beside its postings: the objects that hold them."""

_NAME = "the index of words"  # in an error
_ROWS_AT_ONCE = 4096
_WORDS_KEPT = 10_000  # 2 MB


@dataclass(frozen=True)
class Lengths:
    """How many tokens each document has.

    Attributes:
        keys: Of all documents, ascending, int64 [n].
        tokens: fp64 [n].
    """

    keys: Keys
    tokens: NDArray[np.float64]

    @classmethod
    def none(cls) -> Lengths:
        """Of an empty index."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float64))

    def without(self, removed: Keys) -> Lengths:
        """What is left when documents go."""
        if not len(removed):
            return self
        kept = ~are_among(self.keys, np.sort(removed))
        return Lengths(self.keys[kept], self.tokens[kept])

    def with_later(self, connection: sqlite3.Connection) -> Lengths:
        """Adds the documents that the index has with greater keys.

        Raises:
            RetrievalError: A length is not one.
        """
        keys, tokens = [self.keys], [self.tokens]
        last = int(self.keys[-1]) if len(self.keys) else 0
        statement = "SELECT id, sz FROM lexical_docsize WHERE id > ? ORDER BY id"
        with closing(connection.execute(statement, (last,))) as cursor:  # also where a length is none
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                keys.append(np.fromiter((row[0] for row in rows), np.int64, len(rows)))
                tokens.append(np.fromiter((_length(row[1]) for row in rows), np.float64, len(rows)))
        return Lengths(np.concatenate(keys), np.concatenate(tokens))

    @cached_property
    def saturation(self) -> NDArray[np.float64]:
        """k1 (1 - b + b D / mean D) of each document, fp64 [n]."""
        mean = self.tokens.sum() / max(len(self.tokens), 1)
        saturation: NDArray[np.float64] = K1 * (1 - B + B * self.tokens / mean)
        return saturation


@dataclass(frozen=True)
class TermScores:
    """What a term adds to BM25 of the documents in which it stands.

    Attributes:
        rows: Their places among all keys, ascending, int32 [m].
        scores: fp64 [m].
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]

    @property
    def bytes(self) -> int:
        """What they take, kept by a term."""
        return self.rows.nbytes + self.scores.nbytes + _BYTES_A_TERM


class KeptPostings:
    """The postings of one state of the index, those that were asked for last.

    Attributes:
        lengths: Of the documents.
        bytes: What is kept.
    """

    def __init__(self, lengths: Lengths) -> None:
        self.lengths = lengths
        self._most_bytes = max(LEAST_BYTES, BYTES_A_DOCUMENT * len(lengths.keys))
        self._kept: OrderedDict[str, TermScores] = OrderedDict()
        self.bytes = 0
        self._lock = threading.Lock()

    def scores(self, connection: sqlite3.Connection, terms: Iterable[str]) -> NDArray[np.float64]:
        """BM25 of all documents, fp64 [n]; 0 where none of the terms stands.

        Args:
            connection: A connection given to :func:`open_occurrences`, which sees the state that this is of.
            terms: Of :func:`resrank.core.terms.query_terms`.

        Raises:
            RetrievalError: A term stands in a document that the index does not have.
        """
        scores = np.zeros(len(self.lengths.keys))
        for term in terms:
            postings = self._of(connection, term)
            scores[postings.rows] += postings.scores
        return scores

    def _of(self, connection: sqlite3.Connection, term: str) -> TermScores:
        token = None if match_expression(term).endswith("*") else _token(term)
        if token is None:
            return self._of_several(connection, term)
        with self._lock:
            if token in self._kept:
                self._kept.move_to_end(token)
                return self._kept[token]
        read = self._of_one(connection, token)
        with self._lock:
            if token not in self._kept:
                self._kept[token] = read
                self.bytes += read.bytes
                while self.bytes > self._most_bytes:
                    self.bytes -= self._kept.popitem(last=False)[1].bytes
        return read

    def _of_several(self, connection: sqlite3.Connection, term: str) -> TermScores:
        """Of a phrase, of words by their beginning, or of a very long word: rare, FTS5 alone joins them, not kept."""
        found = connection.execute(
            "SELECT rowid, -bm25(lexical) FROM lexical WHERE lexical MATCH ? ORDER BY rowid", (match_expression(term),)
        ).fetchall()
        keys = np.fromiter((row[0] for row in found), np.int64, len(found))
        return TermScores(self._rows(keys), np.fromiter((row[1] for row in found), np.float64, len(found)))

    def _of_one(self, connection: sqlite3.Connection, token: str) -> TermScores:
        occurrences = _occurrences(connection, token)
        firsts = np.flatnonzero(np.diff(occurrences, prepend=-1))
        frequencies = np.diff(firsts, append=len(occurrences)).astype(np.float64)
        rows = self._rows(occurrences[firsts])
        documents, containing = len(self.lengths.keys), len(rows)
        idf = math.log((documents - containing + 0.5) / (containing + 0.5))
        gains = (frequencies * (K1 + 1)) / (frequencies + self.lengths.saturation[rows])
        return TermScores(rows, (idf if idf > 0 else LEAST_IDF) * gains)

    def _rows(self, keys: Keys) -> NDArray[np.int32]:
        rows = np.searchsorted(self.lengths.keys, keys)
        ascending = bool((np.diff(keys) > 0).all())
        if len(keys) and not (
            ascending and rows[-1] < len(self.lengths.keys) and (self.lengths.keys[rows] == keys).all()
        ):
            raise damaged(_NAME)
        return rows.astype(np.int32)


def open_occurrences(connection: sqlite3.Connection) -> None:
    """Lets a connection to a store read every occurrence of a token."""
    connection.execute("CREATE VIRTUAL TABLE temp.occurrences USING fts5vocab(main, lexical, instance)")


def _occurrences(connection: sqlite3.Connection, token: str) -> Keys:
    """The document of each occurrence, ascending."""
    source = "FROM occurrences WHERE term = ?"
    try:
        # As one text: a row for each would take Python three times as long as FTS5.
        (listed,) = connection.execute(f"SELECT group_concat(doc) {source}", (token,)).fetchone()
    except sqlite3.DataError:  # SQLite has no text of more than 10^9 bytes, some 10^8 occurrences
        parts = []
        with closing(connection.execute(f"SELECT doc {source}", (token,))) as cursor:
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                parts.append(np.fromiter((row[0] for row in rows), np.int64, len(rows)))
        return np.concatenate(parts)
    return np.fromstring(listed or "", np.int64, sep=",")


@lru_cache(maxsize=_ROWS_AT_ONCE)
def _length(packed: object) -> int:
    """The tokens of title and text, each a variable-length integer of SQLite's: seven bits a byte, high ones first."""
    if not isinstance(packed, bytes) or sum(byte < 0x80 for byte in packed) != 2 or packed[-1] >= 0x80:
        raise damaged(_NAME)
    total = value = 0
    for byte in packed:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            total += value
            value = 0
    return total


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer()


def _token(term: str) -> str | None:
    return _kept_token(term) if len(term) <= LONGEST_TERM else None


@lru_cache(maxsize=_WORDS_KEPT)
def _kept_token(term: str) -> str | None:
    return _tokenizer().token(term)
