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
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from resrank.core.terms import match_expression
from resrank.retrieval.local.checksums import damaged
from resrank.retrieval.matches import TOKENIZER, are_among
from resrank.retrieval.records import Keys

K1 = 1.2
B = 0.75
LEAST_IDF = 1e-6
"""FTS5's constants."""

LEAST_BYTES = 32 << 20
BYTES_A_DOCUMENT = 128
"""What is kept of a collection, at most: the greater of the two bounds. A posting takes 12 bytes."""

_TOKENS_KEPT = 50_000


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
        """Adds the documents that the index has with greater keys."""
        last = int(self.keys[-1]) if len(self.keys) else 0
        rows = connection.execute("SELECT id, sz FROM lexical_docsize WHERE id > ? ORDER BY id", (last,)).fetchall()
        keys = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        tokens = np.fromiter((_sum_of_varints(row[1]) for row in rows), np.float64, len(rows))
        return Lengths(np.concatenate((self.keys, keys)), np.concatenate((self.tokens, tokens)))

    @cached_property
    def saturation(self) -> NDArray[np.float64]:
        """k1 (1 - b + b D / mean D) of each document, fp64 [n]."""
        mean = self.tokens.sum() / max(len(self.tokens), 1)
        saturation: NDArray[np.float64] = K1 * (1 - B + B * self.tokens / mean)
        return saturation


@dataclass(frozen=True)
class Postings:
    """The documents in which a term stands.

    Attributes:
        rows: Their places among all keys, ascending, int32 [m].
        scores: What the term adds to BM25, fp64 [m].
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]

    @property
    def bytes(self) -> int:
        """What they take."""
        return self.rows.nbytes + self.scores.nbytes


class KeptPostings:
    """The postings of one state of the index, those that were asked for last.

    Attributes:
        lengths: Of the documents.
        bytes: What the postings take.
    """

    def __init__(self, lengths: Lengths) -> None:
        self.lengths = lengths
        self._most_bytes = max(LEAST_BYTES, BYTES_A_DOCUMENT * len(lengths.keys))
        self._kept: OrderedDict[str, Postings] = OrderedDict()
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

    def _of(self, connection: sqlite3.Connection, term: str) -> Postings:
        with self._lock:
            if term in self._kept:
                self._kept.move_to_end(term)
                return self._kept[term]
        postings = self._read(connection, term)
        with self._lock:
            if term not in self._kept:
                self._kept[term] = postings
                self.bytes += postings.bytes
                while self.bytes > self._most_bytes:
                    self.bytes -= self._kept.popitem(last=False)[1].bytes
        return postings

    def _read(self, connection: sqlite3.Connection, term: str) -> Postings:
        expression = match_expression(term)
        tokens = _tokens(term)
        if len(tokens) != 1 or expression.endswith("*"):  # a phrase or the beginning of words: FTS5 alone joins these
            found = connection.execute(
                "SELECT rowid, -bm25(lexical) FROM lexical WHERE lexical MATCH ? ORDER BY rowid", (expression,)
            ).fetchall()
            keys = np.fromiter((row[0] for row in found), np.int64, len(found))
            return Postings(self._rows(keys), np.fromiter((row[1] for row in found), np.float64, len(found)))
        # As one text: a row for each occurrence would take Python three times as long as FTS5.
        (listed,) = connection.execute("SELECT group_concat(doc) FROM occurrences WHERE term = ?", tokens).fetchone()
        occurrences = np.fromstring(listed or "", np.int64, sep=",")
        firsts = np.flatnonzero(np.diff(occurrences, prepend=-1))
        frequencies = np.diff(firsts, append=len(occurrences)).astype(np.float64)
        rows = self._rows(occurrences[firsts])
        documents, containing = len(self.lengths.keys), len(rows)
        idf = math.log((documents - containing + 0.5) / (containing + 0.5))
        gains = (frequencies * (K1 + 1)) / (frequencies + self.lengths.saturation[rows])
        return Postings(rows, (idf if idf > 0 else LEAST_IDF) * gains)

    def _rows(self, keys: Keys) -> NDArray[np.int32]:
        rows = np.searchsorted(self.lengths.keys, keys)
        if len(keys) and (rows[-1] == len(self.lengths.keys) or (self.lengths.keys[rows] != keys).any()):
            raise damaged("the index of words")
        return rows.astype(np.int32)


def open_occurrences(connection: sqlite3.Connection) -> None:
    """Lets a connection to a store read every occurrence of a token."""
    connection.execute("CREATE VIRTUAL TABLE temp.occurrences USING fts5vocab(main, lexical, instance)")


def _sum_of_varints(packed: bytes) -> int:
    """The sum of SQLite's variable-length integers: seven bits a byte, high bits first; lengths never take nine."""
    total = value = 0
    for byte in packed:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            total += value
            value = 0
    return total


class _Tokenizer:
    """FTS5's tokenizer, asked by a table of one document."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.executescript(
            f"CREATE VIRTUAL TABLE document USING fts5(text, content='', tokenize='{TOKENIZER}');"
            "CREATE VIRTUAL TABLE tokens USING fts5vocab(document, instance);"
        )
        self._lock = threading.Lock()

    def tokens(self, text: str) -> tuple[str, ...]:
        with self._lock:
            self._connection.execute("INSERT INTO document(rowid, text) VALUES (1, ?)", (text,))
            rows = self._connection.execute("SELECT term FROM tokens ORDER BY offset").fetchall()
            self._connection.execute("INSERT INTO document(document) VALUES ('delete-all')")
        return tuple(row[0] for row in rows)


@lru_cache(maxsize=_TOKENS_KEPT)
def _tokens(term: str) -> tuple[str, ...]:
    return _tokenizer().tokens(term)


@lru_cache(maxsize=1)
def _tokenizer() -> _Tokenizer:
    return _Tokenizer()
