"""One query to one state of a collection: vectors by pgvector, words by the postings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pgvector import HalfVector, Vector
from psycopg import sql

from resrank.retrieval.fusion import Ranked
from resrank.retrieval.matches import LexicalMatches
from resrank.retrieval.postgres.conditions import Condition
from resrank.retrieval.postgres.schema import Connection, collection_schema
from resrank.retrieval.postgres.state import CollectionState
from resrank.retrieval.records import FloatVector, HalfMatrix, Keys
from resrank.retrieval.words import Postings, Term, bm25

_VECTORS_AT_ONCE = 10_000  # of 2048 dimensions 41 MB; PostgreSQL puts together 1 GB at most

EXACT_BELOW = 10_000
"""Up to here all vectors that count are compared: this many of dimension 384 take some 10 milliseconds, and nothing is
missed."""

_MOST_SEARCHED = 1000  # pgvector's bound of hnsw.ef_search
_LEAST_SEARCHED = 200

_PACKED = "SELECT string_agg(int8send(key), ''), string_agg(halfvec_send(vector), '') FROM"


class WordFrequencies:
    """In how many documents of a collection terms stand, remembered until the next write."""

    _MOST = 50_000

    def __init__(self) -> None:
        self._state: tuple[int, dict[Term, int]] = (-1, {})

    def read(self, connection: Connection, state: CollectionState, terms: Sequence[Term]) -> Mapping[Term, int]:
        """In how many documents each of some terms stands."""
        changes, known = self._state
        if changes != state.changes or len(known) > self._MOST:
            known = {}
        unknown = [term for term in set(terms) if term not in known]
        counted = dict.fromkeys(unknown, 0)
        whole = [term.text for term in unknown if not term.prefix]
        statement = "SELECT term, count(*) FROM {schema}.postings WHERE term = ANY(%s) GROUP BY term"
        for text, count in _run(connection, state, statement, (whole,)) if whole else ():
            counted[Term(text)] = count
        for term in unknown:
            if term.prefix:
                statement = "SELECT count(DISTINCT key) FROM {schema}.postings WHERE term BETWEEN %s AND %s"
                ((counted[term],),) = _run(connection, state, statement, (term.text, term.last))
        known = known | counted
        self._state = (state.changes, known)  # one assignment: threads may come here at once
        return known


class PostgresEngine:
    """Asks a collection for one query; implements :class:`resrank.retrieval.finding.Engine`.

    Args:
        connection: Inside a transaction that sees one moment.
        state: The collection at that moment, which is not empty.
        embedding: The query's, fp32 [d], of length 1; None where it is not searched by.
        terms: The query's words.
        frequencies: The collection's.
        condition: What records must fulfil.
    """

    deep_from = 0.0  # a cosine costs a fetch

    def __init__(
        self,
        connection: Connection,
        state: CollectionState,
        embedding: FloatVector | None,
        terms: Sequence[Term],
        frequencies: WordFrequencies,
        condition: Condition | None,
    ) -> None:
        self._connection = connection
        self._state = state
        self._embedding = embedding
        self._terms = terms
        self._frequencies = frequencies
        self._condition = condition
        self._kept = "" if condition is None else f"key IN (SELECT key FROM {{schema}}.records WHERE {condition.text})"
        self._parameters: tuple[Any, ...] = () if condition is None else condition.parameters

    def nearest(self, k: int) -> Ranked:
        """See :class:`resrank.retrieval.finding.Engine`; by the HNSW index where there are many and it is ready."""
        if self._state.indexed and self._count_kept() > EXACT_BELOW:
            found = self._nearest_by_graph(k)
            if len(found[0]) == k:
                return found
        return self._nearest_of_all(k)

    def highest_unseen(self, nearest: Ranked) -> float:
        """See :class:`resrank.retrieval.finding.Engine`; as good as the graph where that found the nearest."""
        return float(nearest[1].min(initial=np.inf))

    def cosines(self, keys: Keys) -> FloatVector:
        """See :class:`resrank.retrieval.finding.Engine`."""
        parts = [keys[start : start + _VECTORS_AT_ONCE] for start in range(0, len(keys), _VECTORS_AT_ONCE)] or [keys]
        return np.concatenate([self._cosines(read_vectors(self._connection, self._state, part)) for part in parts])

    def matches(self) -> LexicalMatches:
        """See :class:`resrank.retrieval.finding.Engine`."""
        frequencies = self._frequencies.read(self._connection, self._state, self._terms)
        return bm25(self._terms, frequencies, self._postings, documents=self._state.records, length=self._state.terms)

    def _postings(self, terms: Sequence[Term]) -> dict[Term, Postings]:
        whole = [term.text for term in terms if not term.prefix]
        kept = f" AND {self._kept}" if self._kept else ""
        packed = "string_agg(int8send(key), ''), string_agg(int4send(count), ''), string_agg(int4send(length), '')"
        found = {}
        if whole:
            statement = f"SELECT term, {packed} FROM {{schema}}.postings WHERE term = ANY(%s){kept} GROUP BY term"
            for text, *columns in self._run(statement, (whole, *self._parameters)):
                found[Term(text)] = _unpacked(*columns)
        for term in terms:
            if term.prefix:
                statement = (
                    f"SELECT {packed} FROM (SELECT key, sum(count)::int4 AS count, max(length) AS length "
                    f"FROM {{schema}}.postings WHERE term BETWEEN %s AND %s{kept} GROUP BY key) AS documents"
                )
                ((keys, *columns),) = self._run(statement, (term.text, term.last, *self._parameters))
                if keys is not None:
                    found[term] = _unpacked(keys, *columns)
        return found

    def _count_kept(self) -> int:
        """How many records count, or one more than is compared without the index."""
        if self._condition is None:
            return self._state.records
        statement = f"SELECT 1 FROM {{schema}}.records WHERE {self._condition.text} LIMIT {EXACT_BELOW + 1}"
        ((kept,),) = self._run(f"SELECT count(*) FROM ({statement}) AS kept", self._parameters)
        return int(kept)

    def _nearest_of_all(self, k: int) -> Ranked:
        # In single precision: the query's components are not rounded to those of the stored vectors.
        where = f"WHERE {self._kept}" if self._kept else ""
        statement = f"""{_PACKED} (
            SELECT key, vector FROM {{schema}}.vectors {where} ORDER BY vector::vector <=> %b, key LIMIT {k}
        ) AS nearest"""
        return self._ranked(statement, (*self._parameters, Vector(self._query)), k)

    def _nearest_by_graph(self, k: int) -> Ranked:
        # The graph compares with a query of half precision, so some more are taken and ordered exactly.
        wanted = k + max(20, k // 10)
        searched = min(_MOST_SEARCHED, max(_LEAST_SEARCHED, 4 * k))
        self._connection.execute(
            "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true)",
            (str(searched),),
        )
        where = f"WHERE {self._kept}" if self._kept else ""
        statement = f"""{_PACKED} (
            SELECT key, vector FROM {{schema}}.vectors {where} ORDER BY vector <=> %b LIMIT {wanted}
        ) AS nearest"""
        return self._ranked(statement, (*self._parameters, HalfVector(self._query.astype(np.float16))), k)

    def _ranked(self, statement: str, parameters: tuple[Any, ...], k: int) -> Ranked:
        ((packed_keys, packed_vectors),) = self._run(statement, parameters)
        keys = _keys(packed_keys)
        cosines = self._cosines(vectors_of(packed_vectors, len(self._query)))
        best = np.lexsort((keys, -cosines))[:k]
        return keys[best], cosines[best]

    @property
    def _query(self) -> FloatVector:
        assert self._embedding is not None
        return self._embedding

    def _cosines(self, vectors: HalfMatrix) -> FloatVector:
        rows = vectors.astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        # Not BLAS, whose sums depend on where in the matrix a row stands.
        found: FloatVector = np.einsum("nd,d->n", rows, self._query).astype(np.float32, copy=False)
        return found

    def _run(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return _run(self._connection, self._state, statement, parameters)


def read_vectors(connection: Connection, state: CollectionState, keys: Keys) -> HalfMatrix:
    """The stored vectors of some keys, fp16 [len(keys), d], in their order."""
    dimension = 0 if state.encoder is None else state.encoder.dimension
    if not len(keys):
        return np.empty((0, dimension), np.float16)
    statement = f"""{_PACKED} (
        SELECT key, vector FROM unnest(%s::int8[]) WITH ORDINALITY AS wanted(key, place)
        JOIN {{schema}}.vectors USING (key) ORDER BY place
    ) AS found"""
    ((_, packed),) = _run(connection, state, statement, (keys.tolist(),))
    return vectors_of(packed, dimension)


def _run(
    connection: Connection, state: CollectionState, statement: str, parameters: tuple[Any, ...]
) -> list[tuple[Any, ...]]:
    composed = sql.SQL(statement).format(schema=collection_schema(state.number))
    return connection.execute(composed, parameters, binary=True).fetchall()


def _keys(packed: bytes | None) -> Keys:
    return np.frombuffer(packed or b"", ">i8").astype(np.int64)


def vectors_of(packed: bytes | None, dimension: int) -> HalfMatrix:
    """Rows as ``halfvec_send`` writes them: two 16-bit numbers, then the components, big-endian."""
    rows = np.frombuffer(packed or b"", ">u2").reshape(-1, dimension + 2)[:, 2:]
    return rows.astype(np.uint16).view(np.float16)  # as bits: nothing is computed on the way


def _unpacked(keys: bytes, counts: bytes, lengths: bytes) -> Postings:
    return Postings(
        _keys(keys), np.frombuffer(counts, ">i4").astype(np.int32), np.frombuffer(lengths, ">i4").astype(np.int32)
    )
