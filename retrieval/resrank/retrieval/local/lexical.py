"""The lexical index: SQLite FTS5 with Porter stemming over title and text, ranked by BM25.

FTS5's BM25 has k1 = 1.2, b = 0.75 and idf = ln((N - n + 0.5) / (n + 0.5)), floored at 1e-6
(https://www.sqlite.org/fts5.html#the_bm25_function).
"""

from __future__ import annotations

import json
import math
import sqlite3

import numpy as np
from numpy.typing import NDArray

from resrank.core.terms import index_text, match_expression, query_terms
from resrank.retrieval.matches import FLOOD_DOCUMENTS, MAX_TERMS, RANKING, TOKENIZER, LexicalMatches, are_among
from resrank.retrieval.records import FloatVector, Keys

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

FEW_DOCUMENTS = 0.1
"""Up to this share of all documents, those that a filter keeps are named to SQLite; of more, all are scored and the
others left out."""

_CACHED_FREQUENCIES = 50_000  # some megabytes; forgotten at the next write


def register(connection: sqlite3.Connection) -> None:
    """Gives a connection the function that the schema uses."""
    connection.create_function("index_text", 1, index_text, deterministic=True)


class LexicalIndex:
    """Searches the FTS5 table of one database, remembering in how many documents a term stands."""

    def __init__(self) -> None:
        self._frequencies: dict[str, int] = {}

    def invalidate(self) -> None:
        """Forgets what a write has made stale."""
        self._frequencies = {}

    def search(
        self, connection: sqlite3.Connection, text: str, k: int, documents: int, kept: Keys | None = None
    ) -> tuple[Keys, FloatVector]:
        """Finds the k best documents in which any term of the query stands.

        A term in more than half of a large collection has an idf of zero or less, which FTS5 floors at 1e-6: it cannot
        change the ranking, but it makes every second document be scored. Such terms are left out unless the query has
        no other. Documents that hold nothing but such terms are then not found.

        Args:
            connection: A connection to the database.
            text: The query, at least one word.
            k: How many documents are wanted.
            documents: How many documents the collection has.
            kept: The only documents that count, ascending; None for all.

        Returns:
            Keys and BM25 scores (higher is better) of at most k documents, best first, ties by key.
        """
        best = "ORDER BY score DESC, rowid LIMIT ?"
        if kept is None or len(kept) <= FEW_DOCUMENTS * documents:
            keys, scores = self._rows(connection, text, documents, best, k, kept=kept)
            return keys, scores.astype(np.float32)
        fetched = math.ceil(2 * k * documents / len(kept))  # so that k of them are kept, as a rule
        while True:
            keys, scores = self._rows(connection, text, documents, best, fetched)
            chosen = are_among(keys, kept)
            if len(keys) < fetched or chosen.sum() >= k:
                return keys[chosen][:k], scores[chosen][:k].astype(np.float32)
            fetched *= 4

    def matches(
        self, connection: sqlite3.Connection, text: str, documents: int, kept: Keys | None = None
    ) -> LexicalMatches:
        """Finds every document that :meth:`search` would find with a large enough k.

        To read them all costs 0.75 microseconds each beside the 1.3 that BM25 takes for each anyway (100,000 documents,
        60,000 matches, 2 cores). Of a few documents SQLite computes BM25 for those alone.

        Args:
            connection: A connection to the database.
            text: The query.
            documents: How many documents the collection has.
            kept: The only documents that count, ascending; None for all.
        """
        if kept is None or len(kept) <= FEW_DOCUMENTS * documents:
            return LexicalMatches(*self._rows(connection, text, documents, "ORDER BY rowid", kept=kept))
        return self.matches(connection, text, documents).among(kept)

    def _rows(
        self,
        connection: sqlite3.Connection,
        text: str,
        documents: int,
        order: str,
        *parameters: int,
        kept: Keys | None = None,
    ) -> tuple[Keys, NDArray[np.float64]]:
        terms = self._telling_terms(connection, text, documents)
        if not terms:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        asked: list[int | str] = [" OR ".join(map(match_expression, terms))]
        among = ""
        if kept is not None:
            # With the plus it is no search by rowid, of which FTS5 would make one for each.
            among = "AND +rowid IN (SELECT value FROM json_each(?))"
            asked.append(json.dumps(kept.tolist()))
        rows = connection.execute(
            f"SELECT rowid, -bm25(lexical) AS score FROM lexical WHERE lexical MATCH ? {among} {order}",
            (*asked, *parameters),
        ).fetchall()
        keys = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        return keys, np.fromiter((row[1] for row in rows), np.float64, len(rows))

    def _telling_terms(self, connection: sqlite3.Connection, text: str, documents: int) -> list[str]:
        frequencies = {term: self._frequency(connection, term) for term in query_terms(text)}
        present = {term: count for term, count in frequencies.items() if count}
        flood = max(FLOOD_DOCUMENTS, documents // 2)
        telling = [term for term, count in present.items() if count <= flood] or list(present)
        return sorted(telling, key=present.__getitem__)[:MAX_TERMS]

    def _frequency(self, connection: sqlite3.Connection, term: str) -> int:
        known = self._frequencies.get(term)
        if known is not None:
            return known
        (count,) = connection.execute(
            "SELECT count(*) FROM lexical WHERE lexical MATCH ?", (match_expression(term),)
        ).fetchone()
        if len(self._frequencies) < _CACHED_FREQUENCIES:
            self._frequencies[term] = count
        return int(count)
