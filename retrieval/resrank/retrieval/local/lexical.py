"""The lexical index: SQLite FTS5 with Porter stemming over title and text, ranked by FTS5's BM25."""

from __future__ import annotations

import sqlite3
import threading

import numpy as np

from resrank.core.terms import index_text, match_expression, query_terms
from resrank.retrieval.local.postings import KeptPostings, Lengths
from resrank.retrieval.matches import RANKING, TOKENIZER, LexicalMatches
from resrank.retrieval.records import Keys
from resrank.retrieval.words import LONGEST_TERM, telling_terms

DESCRIPTION = f"SQLite FTS5 {RANKING}"

# An external-content table: the words live once, in `records`, and triggers keep the index in the same transaction.
# `index_text` is this program's own function, which every connection must be given before it writes or rebuilds.
SCHEMA = f"""
CREATE VIEW lexical_content AS SELECT key, index_text(title) AS title, index_text(text) AS text FROM records;
CREATE VIRTUAL TABLE lexical USING fts5(
    title, text, content='lexical_content', content_rowid='key', tokenize='{TOKENIZER}'
);
CREATE TRIGGER lexical_insert AFTER INSERT ON records BEGIN
    INSERT INTO lexical(rowid, title, text) VALUES (new.key, index_text(new.title), index_text(new.text));
END;
CREATE TRIGGER lexical_delete AFTER DELETE ON records BEGIN
    INSERT INTO lexical(lexical, rowid, title, text)
    VALUES ('delete', old.key, index_text(old.title), index_text(old.text));
END;
"""

MIGRATION_FROM_1 = f"""
DROP TRIGGER lexical_insert;
DROP TRIGGER lexical_delete;
DROP TABLE lexical;
{SCHEMA}
INSERT INTO lexical(lexical) VALUES ('rebuild');
"""
"""From the first schema, which knew no words in scripts without blanks. The index is derived, so it is built anew."""

_REMOVALS_AT_ONCE = 1000
_CACHED_FREQUENCIES = 50_000  # some megabytes; forgotten at the next write


def register(connection: sqlite3.Connection) -> None:
    """Gives a connection the function that the schema uses."""
    connection.create_function("index_text", 1, index_text, deterministic=True)


class LexicalIndex:
    """Searches the FTS5 table of one database, remembering what its words add to BM25 until the next write."""

    def __init__(self) -> None:
        self._lengths = Lengths.none()
        self._removed: list[Keys] = []
        self._postings: KeptPostings | None = None
        self._frequencies: dict[str, int] = {}
        self._lock = threading.Lock()

    def follow(self, removed: Keys) -> None:
        """Forgets what a commit has made stale; no search may run, which the store's gate sees to.

        Args:
            removed: The documents that are gone.
        """
        with self._lock:
            if len(removed) and len(self._lengths.keys):
                self._removed.append(removed)
            if len(self._removed) > _REMOVALS_AT_ONCE:  # many writes and no search
                self._drop_removed()
            self._postings = None
            self._frequencies = {}

    def load(self, connection: sqlite3.Connection) -> None:
        """Reads the documents' lengths, so that no search has to.

        Args:
            connection: A connection to the database.

        Raises:
            RetrievalError: A length is not one.
        """
        self._current(connection)

    def matches(self, connection: sqlite3.Connection, text: str) -> LexicalMatches:
        """Finds every document in which any term of the query stands.

        A term in more than half of a large collection has an idf of zero or less, which FTS5 floors at 1e-6: it cannot
        change the ranking, but it makes every second document be scored. Such terms are left out unless the query has
        no other. Documents that hold nothing but such terms are then not found.

        Args:
            connection: A connection to the database, prepared by :func:`open_occurrences`.
            text: The query.
        """
        postings = self._current(connection)
        frequencies = {term: self._frequency(connection, term) for term in query_terms(text)}
        terms = telling_terms(frequencies, list(frequencies), len(postings.lengths.keys))
        scores = postings.scores(connection, terms)
        (found,) = np.nonzero(scores)
        return LexicalMatches(postings.lengths.keys[found], scores[found])

    def _current(self, connection: sqlite3.Connection) -> KeptPostings:
        with self._lock:
            if self._postings is None:
                self._drop_removed()
                self._lengths = self._lengths.with_later(connection)
                self._postings = KeptPostings(self._lengths)
            return self._postings

    def _drop_removed(self) -> None:
        self._lengths = self._lengths.without(np.concatenate([np.empty(0, np.int64), *self._removed]))
        self._removed = []

    def _frequency(self, connection: sqlite3.Connection, term: str) -> int:
        known = self._frequencies.get(term)
        if known is not None:
            return known
        (count,) = connection.execute(
            "SELECT count(*) FROM lexical WHERE lexical MATCH ?", (match_expression(term),)
        ).fetchone()
        if len(self._frequencies) < _CACHED_FREQUENCIES and len(term) <= LONGEST_TERM:
            self._frequencies[term] = count
        return int(count)
