"""The lexical index: SQLite FTS5 with Porter stemming over title and text, ranked by BM25.

FTS5's BM25 has k1 = 1.2, b = 0.75 and idf = ln((N - n + 0.5) / (n + 0.5)), floored at 1e-6
(https://www.sqlite.org/fts5.html#the_bm25_function).
"""

from __future__ import annotations

import sqlite3

import numpy as np

from resrank.core.terms import query_terms
from resrank.retrieval.records import FloatVector, Keys

DESCRIPTION = "SQLite FTS5 BM25, tokenizer porter unicode61, title and text"

# An external-content table: the words live once, in `records`, and triggers keep the index in the same transaction.
SCHEMA = """
CREATE VIRTUAL TABLE lexical USING fts5(
    title, text, content='records', content_rowid='key', tokenize='porter unicode61'
);
CREATE TRIGGER lexical_insert AFTER INSERT ON records BEGIN
    INSERT INTO lexical(rowid, title, text) VALUES (new.key, new.title, new.text);
END;
CREATE TRIGGER lexical_delete AFTER DELETE ON records BEGIN
    INSERT INTO lexical(lexical, rowid, title, text) VALUES ('delete', old.key, old.title, old.text);
END;
"""

MAX_TERMS = 64
"""Terms of a query that are searched for: the rarest ones. Longer queries are pasted documents, whose rarest words
decide their ranking anyway."""

FLOOD_DOCUMENTS = 1000
"""From this many documents on, a term that stands in more than half of them is left out (see `LexicalIndex.search`)."""

_CACHED_FREQUENCIES = 50_000  # some megabytes; forgotten at the next write


class LexicalIndex:
    """Searches the FTS5 table of one database, remembering in how many documents a term stands."""

    def __init__(self) -> None:
        self._frequencies: dict[str, int] = {}

    def invalidate(self) -> None:
        """Forgets what a write has made stale."""
        self._frequencies = {}

    def search(self, connection: sqlite3.Connection, text: str, k: int, documents: int) -> tuple[Keys, FloatVector]:
        """Finds the k best documents in which any term of the query stands.

        A term in more than half of a large collection has an idf of zero or less, which FTS5 floors at 1e-6: it cannot
        change the ranking, but it makes every second document be scored. Such terms are left out unless the query has
        no other. Documents that hold nothing but such terms are then not found.

        Args:
            connection: A connection to the database.
            text: The query, at least one word.
            k: How many documents are wanted.
            documents: How many documents the collection has.

        Returns:
            Keys and BM25 scores (higher is better) of at most k documents, best first, ties by key.
        """
        frequencies = {term: self._frequency(connection, term) for term in query_terms(text)}
        present = {term: count for term, count in frequencies.items() if count}
        flood = max(FLOOD_DOCUMENTS, documents // 2)
        telling = [term for term, count in present.items() if count <= flood] or list(present)
        terms = sorted(telling, key=present.__getitem__)[:MAX_TERMS]
        if not terms:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows = connection.execute(
            "SELECT rowid, -bm25(lexical) AS score FROM lexical WHERE lexical MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?",
            (" OR ".join(f'"{term}"' for term in terms), k),
        ).fetchall()
        keys = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        return keys, np.fromiter((row[1] for row in rows), np.float32, len(rows))

    def _frequency(self, connection: sqlite3.Connection, term: str) -> int:
        known = self._frequencies.get(term)
        if known is not None:
            return known
        (count,) = connection.execute("SELECT count(*) FROM lexical WHERE lexical MATCH ?", (f'"{term}"',)).fetchone()
        if len(self._frequencies) < _CACHED_FREQUENCIES:
            self._frequencies[term] = count
        return int(count)
