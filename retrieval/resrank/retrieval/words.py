"""Words and their BM25 outside SQLite: the same terms and the same scores as the local store's FTS5 index."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from resrank.core.terms import index_text, match_expression, query_terms
from resrank.retrieval.matches import FLOOD_DOCUMENTS, MAX_TERMS, TOKENIZER, LexicalMatches
from resrank.retrieval.records import Keys

K1 = 1.2
B = 0.75
LEAST_IDF = 1e-6  # FTS5's, of a term in more than half of all documents
LONGEST_TERM = 128
"""Characters of a term that is kept as it is."""
_LAST_CHARACTER = "\U0010ffff"

Counts = NDArray[np.int32]
_Term = TypeVar("_Term", bound=Hashable)


@dataclass(frozen=True, order=True, slots=True)
class Term:
    """A term that a query asks for.

    Attributes:
        text: The term, or where it is one letter of a script without blanks, how terms begin.
        prefix: Whether it is the latter.
    """

    text: str
    prefix: bool = False

    @property
    def last(self) -> str:
        """No term that it stands for comes after this one, in the order of code points."""
        return self.text + _LAST_CHARACTER if self.prefix else self.text


@dataclass(frozen=True, slots=True)
class Postings:
    """In which documents a term stands; the arrays run parallel.

    Attributes:
        keys: int64 [n], distinct.
        counts: How often, int32 [n].
        lengths: Terms of each document, int32 [n].
    """

    keys: Keys
    counts: Counts
    lengths: Counts


class Tokenizer:
    """Splits texts by FTS5's own tokenizer: in a table in memory that is emptied after each use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.execute(f"CREATE VIRTUAL TABLE texts USING fts5(text, content='', tokenize='{TOKENIZER}')")
        self._connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(texts, instance)")

    def close(self) -> None:
        """Releases the table."""
        self._connection.close()

    def documents(self, texts: Sequence[tuple[str, str]]) -> list[dict[str, int]]:
        """Counts the terms of documents.

        Args:
            texts: Title and text of each.

        Returns:
            Of each document, how often each of its terms stands in it.
        """
        # A title and its text meet nowhere: no term reaches over a line break.
        return self._counts([f"{index_text(title)}\n{index_text(text)}" for title, text in texts])

    def query(self, text: str) -> list[Term]:
        """The terms of a query; one that two of its words share stands there twice, as FTS5 counts it."""
        words = query_terms(text)
        return [
            Term(term, prefix=match_expression(word).endswith("*"))
            for word, terms in zip(words, self._counts(words), strict=True)
            for term in terms
        ]

    def token(self, word: str) -> str | None:
        """What the index has for a word; None where that is several tokens, or longer than what is worth keeping."""
        counts = self._counts([word])[0]
        if sum(counts.values()) != 1 or len(word) > LONGEST_TERM:
            return None
        return next(iter(counts))

    def _counts(self, texts: Sequence[str]) -> list[dict[str, int]]:
        found: list[dict[str, int]] = [{} for _ in texts]
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                self._connection.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", enumerate(texts))
                for document, term, count in self._connection.execute(
                    "SELECT doc, term, count(*) FROM terms GROUP BY doc, term"
                ):
                    found[document][_bounded(term)] = count
            finally:
                self._connection.execute("ROLLBACK")
        return found


def telling_terms(frequencies: Mapping[_Term, int], terms: Sequence[_Term], documents: int) -> list[_Term]:
    """Those terms of a query that are searched for, by the rule of every store.

    Args:
        frequencies: In how many documents each stands.
        terms: The query's.
        documents: How many there are.
    """
    present = [term for term in terms if frequencies[term]]
    flood = max(FLOOD_DOCUMENTS, documents // 2)
    telling = [term for term in present if frequencies[term] <= flood] or present
    return sorted(telling, key=frequencies.__getitem__)[:MAX_TERMS]


def bm25(
    terms: Sequence[Term],
    frequencies: Mapping[Term, int],
    postings: Callable[[Sequence[Term]], Mapping[Term, Postings]],
    *,
    documents: int,
    length: int,
) -> LexicalMatches:
    """Scores every document in which a term of a query stands, by FTS5's BM25.

    Args:
        terms: The query's, see :meth:`Tokenizer.query`.
        frequencies: In how many documents of all each term stands.
        postings: Reads the documents that count of each of some terms; what a filter leaves out may be missing.
        documents: How many documents there are.
        length: Terms of all documents together.
    """
    telling = telling_terms(frequencies, terms, documents)
    if not telling:
        return LexicalMatches(np.empty(0, np.int64), np.empty(0, np.float64))
    read = postings(sorted(set(telling)))
    keys, shares = [], []
    for term in telling:
        found, count = read.get(term), frequencies[term]
        if found is None:
            continue
        idf = max(float(np.log((documents - count + 0.5) / (count + 0.5))), LEAST_IDF)
        often = found.counts.astype(np.float64)
        keys.append(found.keys)
        shares.append(idf * often * (K1 + 1.0) / (often + K1 * (1.0 - B + B * found.lengths * (documents / length))))
    if not keys:
        return LexicalMatches(np.empty(0, np.int64), np.empty(0, np.float64))
    distinct, places = np.unique(np.concatenate(keys), return_inverse=True)
    return LexicalMatches(distinct, np.bincount(places, np.concatenate(shares), len(distinct)).astype(np.float64))


def _bounded(term: str) -> str:
    """The term, or what stands for it where it is too long for an index of a database."""
    if len(term) <= LONGEST_TERM:
        return term
    return term[:LONGEST_TERM] + hashlib.sha256(term.encode()).hexdigest()
