"""One collection in PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from psycopg import sql

from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.core.filters import Filter, check_filter
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.metadata import read_metadata
from resrank.core.search import SearchMode
from resrank.retrieval.encoders import require_batch_encoder, require_query_encoder
from resrank.retrieval.finding import NOTHING, StageClock, find
from resrank.retrieval.matches import RANKING
from resrank.retrieval.postgres.conditions import Condition, condition_of
from resrank.retrieval.postgres.connections import Connections
from resrank.retrieval.postgres.graph import GraphBuilder
from resrank.retrieval.postgres.schema import MAX_DIMENSION, Connection, collection_schema, make_vectors
from resrank.retrieval.postgres.searching import EXACT_BELOW, PostgresEngine, WordFrequencies, read_vectors, vectors_of
from resrank.retrieval.postgres.state import CollectionState, read_fields, read_state
from resrank.retrieval.postgres.writing import possible_ids, refuse_unstorable, remove, write
from resrank.retrieval.records import (
    Encoder,
    HalfMatrix,
    IndexDescription,
    Keys,
    Record,
    RecordBatch,
    SearchHits,
    SearchQuery,
    StoredRecord,
    UpsertCounts,
    WordScores,
)
from resrank.retrieval.words import Tokenizer

logger = logging.getLogger(__name__)

_EXPORTED_BYTES = 4 << 20
_EXPORTED_ROWS = 50


@dataclass(frozen=True)
class Tokenizers:
    """Two, each of which does one text at a time: a search does not wait for a batch of megabytes."""

    reading: Tokenizer = field(default_factory=Tokenizer)
    writing: Tokenizer = field(default_factory=Tokenizer)

    def close(self) -> None:
        """Closes both."""
        self.reading.close()
        self.writing.close()


class PostgresStore:
    """One collection; implements :class:`resrank.retrieval.store.VectorStore`.

    A batch is one transaction, and writers of a collection take turns at its row in the catalog, whatever sidecar they
    are in. A read sees one moment.

    Args:
        connections: To the database.
        number: The collection.
        tokenizers: Split its texts.
        graphs: Builds its HNSW index.
    """

    def __init__(self, connections: Connections, number: int, tokenizers: Tokenizers, graphs: GraphBuilder) -> None:
        self._connections = connections
        self._number = number
        self._tokenizers = tokenizers
        self._graphs = graphs
        self._frequencies = WordFrequencies()

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the best records, see :meth:`resrank.retrieval.store.VectorStore.search`."""
        clock = StageClock()
        terms = [] if query.mode is SearchMode.DENSE else self._tokenizers.reading.query(query.text)
        with self._connections.reading() as connection:
            state = read_state(connection, self._number)
            found = NOTHING
            if state.encoder is not None:
                require_query_encoder(state.encoder, query)
            self._index(state)
            if state.records:
                condition = self._condition(connection, query.filter)
                engine = PostgresEngine(connection, state, query.embedding, terms, self._frequencies, condition)
                found = find(query, engine, clock)
            rows, vectors = clock.run("gather", lambda: self._gather(connection, state, query, found.keys))
        return SearchHits(
            ids=[row[0] for row in rows],
            scores=found.scores,
            cosines=found.cosines,
            bm25=found.bm25,
            best_bm25=found.best_bm25,
            titles=[row[1] for row in rows] if query.include_texts else [],
            texts=[row[2] for row in rows] if query.include_texts else [],
            metadata=[read_metadata(row[3]) for row in rows] if query.include_metadata else [],
            vectors=vectors,
            encoder=state.encoder,
            stage_ms=clock.stage_ms,
        )

    def upsert(self, batch: RecordBatch) -> UpsertCounts:
        """Stores a batch, see :meth:`resrank.retrieval.store.VectorStore.upsert`."""
        refuse_unstorable(batch.records)
        if batch.encoder.dimension > MAX_DIMENSION:
            raise InvalidInputError(
                "dimension", "more than pgvector's halfvec has", limit=MAX_DIMENSION, value=batch.encoder.dimension
            )
        terms = self._tokenizers.writing.documents([(record.title, record.text) for record in batch.records])
        with self._connections.writing() as connection:
            state = read_state(connection, self._number, lock=True)
            if state.encoder is None:
                make_vectors(connection, self._number, batch.encoder.dimension)
            else:
                require_batch_encoder(state.encoder, batch.encoder)
            updated = write(connection, state, batch, terms)
        return UpsertCounts(inserted=len(batch.records) - updated, updated=updated)

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Removes records, see :meth:`resrank.retrieval.store.VectorStore.delete`."""
        with self._connections.writing() as connection:
            state = read_state(connection, self._number, lock=True)
            present = remove(connection, state, ids) if state.encoder is not None else set()
        return [id_ for id_ in ids if id_ not in present]

    def get(self, ids: Sequence[str], *, include_texts: bool, include_embeddings: bool) -> dict[str, StoredRecord]:
        """Reads records by id, see :meth:`resrank.retrieval.store.VectorStore.get`."""
        columns = "title, text, metadata" if include_texts else "'', '', '{{}}'"
        with self._connections.reading() as connection:
            state = read_state(connection, self._number)
            rows = self._run(
                connection,
                f"SELECT key, id, content_sha256, {columns} FROM {{schema}}.records WHERE id = ANY(%s)",
                (possible_ids(ids),),
            )
            keys = np.array([row[0] for row in rows], np.int64)
            vectors = read_vectors(connection, state, keys) if include_embeddings else None
        return {
            row[1]: StoredRecord(
                record=Record(row[1], row[3], row[4], read_metadata(row[5])),
                content_sha256=row[2],
                vector=None if vectors is None else vectors[place],
            )
            for place, row in enumerate(rows)
        }

    def list_ids(self, after: str, limit: int) -> list[str]:
        """Ids page by page, see :meth:`resrank.retrieval.store.VectorStore.list_ids`."""
        after = after.partition("\0")[0]  # no id has one
        with self._connections.reading() as connection:
            read_state(connection, self._number)
            statement = f"SELECT id FROM {{schema}}.records WHERE id > %s ORDER BY id LIMIT {limit}"
            return [row[0] for row in self._run(connection, statement, (after,))]

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """BM25 of some records, see :meth:`resrank.retrieval.store.VectorStore.word_scores`."""
        terms = self._tokenizers.reading.query(text)
        with self._connections.reading() as connection:
            state = read_state(connection, self._number)
            rows = self._run(
                connection, "SELECT id, key FROM {schema}.records WHERE id = ANY(%s)", (possible_ids(ids),)
            )
            matches = PostgresEngine(connection, state, None, terms, self._frequencies, None).matches()
        scores = matches.scores_of(np.array([key for _, key in rows], np.int64))
        return WordScores(dict(zip((id_ for id_, _ in rows), scores.tolist(), strict=True)), matches.best)

    def export(self) -> Generator[RecordBatch, None, None]:
        """All records of one moment, see :meth:`resrank.retrieval.store.VectorStore.export`."""
        with self._connections.reading() as connection:
            encoder = read_state(connection, self._number).encoder
            if encoder is None:
                return
            statement = sql.SQL(
                "SELECT id, title, text, metadata, halfvec_send(vector) "
                "FROM {schema}.records JOIN {schema}.vectors USING (key) ORDER BY id"
            ).format(schema=collection_schema(self._number))
            with connection.cursor("export", binary=True) as cursor:
                cursor.itersize = _EXPORTED_ROWS
                cursor.execute(statement)
                rows: list[tuple[Any, ...]] = []
                size = 0
                for row in cursor:
                    rows.append(row)
                    size += sum(len(part) for part in row)
                    if len(rows) == MAX_MESSAGE_RECORDS or size > _EXPORTED_BYTES:
                        yield _exported(encoder, rows)
                        rows, size = [], 0
                if rows:
                    yield _exported(encoder, rows)

    def describe(self) -> IndexDescription:
        """Tells what the collection holds."""
        with self._connections.reading() as connection:
            state = read_state(connection, self._number)
            fields = read_fields(connection, self._number)
        return IndexDescription(
            record_count=state.records,
            encoder=state.encoder,
            dense_index="pgvector HNSW" if state.indexed else "exact",
            lexical_index=f"postings in PostgreSQL, {RANKING}",
            path=str(self._connections.url),
            fields=fields,
        )

    def maintain(self) -> None:
        """Has the HNSW index built, beside all else, once there are many records."""
        try:
            with self._connections.reading() as connection:
                state = read_state(connection, self._number)
        except RetrievalError as error:
            logger.warning("maintenance failed, the next write tries again: %s", error)
        else:
            self._index(state)

    def close(self) -> None:
        """Nothing: the connections are the catalog's."""

    def _index(self, state: CollectionState) -> None:
        if state.records > EXACT_BELOW and not state.indexed:
            self._graphs.build(state)

    def _condition(self, connection: Connection, wanted: Filter | None) -> Condition | None:
        if wanted is None:
            return None
        fields = read_fields(connection, self._number)
        check_filter(wanted, fields)
        return condition_of(wanted, fields)

    def _gather(
        self, connection: Connection, state: CollectionState, query: SearchQuery, keys: Keys
    ) -> tuple[list[tuple[Any, ...]], HalfMatrix | None]:
        columns = ["id", *(("title", "text") if query.include_texts else ("''", "''"))]
        columns.append("metadata" if query.include_metadata else "''")
        statement = f"""SELECT {", ".join(columns)} FROM unnest(%s::int8[]) WITH ORDINALITY AS found(key, place)
            JOIN {{schema}}.records USING (key) ORDER BY place"""
        rows = self._run(connection, statement, (keys.tolist(),))
        return rows, read_vectors(connection, state, keys) if query.include_embeddings else None

    def _run(self, connection: Connection, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        composed = sql.SQL(statement).format(schema=collection_schema(self._number))
        return connection.execute(composed, parameters, binary=True).fetchall()


def _exported(encoder: Encoder, rows: list[tuple[Any, ...]]) -> RecordBatch:
    records = tuple(Record(id_, title, text, read_metadata(stored)) for id_, title, text, stored, _ in rows)
    return RecordBatch(encoder, records, vectors_of(b"".join(row[4] for row in rows), encoder.dimension))
