"""One collection in Milvus."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

from resrank.core.errors import InvalidInputError, Place
from resrank.core.filters import Filter, check_filter
from resrank.core.metadata import FieldType, read_metadata, type_of, write_metadata
from resrank.core.passage import content_sha256
from resrank.core.search import SearchMode
from resrank.retrieval.encoders import require_batch_encoder, require_query_encoder
from resrank.retrieval.errors import other_type
from resrank.retrieval.finding import NO_SCORES, StageClock
from resrank.retrieval.milvus.conditions import condition_of
from resrank.retrieval.milvus.names import FIELD, Names, milvus_name
from resrank.retrieval.milvus.server import MilvusServer, Row, quoted
from resrank.retrieval.quota import Quota
from resrank.retrieval.records import (
    Encoder,
    HalfMatrix,
    IndexDescription,
    Record,
    RecordBatch,
    SearchHits,
    SearchQuery,
    StoredRecord,
    UpsertCounts,
    WordScores,
)

logger = logging.getLogger(__name__)

_MOST = 16_384  # rows in one answer of Milvus
_LONGEST = 65_535  # bytes of a VARCHAR
_LONGEST_NAME = 768  # bytes; with the collection's it is a key of the catalog, which has 1024
_MESSAGE_BYTES = 16 << 20
_FIELDS = ["id", "key", "title", "text", "metadata"]

_VECTOR = "vector_"
"""Begins the name of the vectors' field, which the encoder's digest ends: so a collection is bound in the moment in
which it is made, whoever makes it."""


class MilvusStore:
    """One collection; implements :class:`resrank.retrieval.store.VectorStore`, without words.

    Each record is stored by itself: of a batch that fails some may be there, and storing it again makes it whole.

    Args:
        server: Where it is.
        names: The catalog.
        name: Its own name.
        quota: What it may hold.
    """

    def __init__(self, server: MilvusServer, names: Names, name: str, quota: Quota) -> None:
        self._server = server
        self._names = names
        self._name = name
        self._place = milvus_name(name)
        self._quota = quota

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that the collection belongs to, None while nothing was ever stored."""
        for field in self._server.fields(self._place) or ():
            if field["name"].startswith(_VECTOR):
                return Encoder(field["name"].removeprefix(_VECTOR), int(field["params"]["dim"]))
        return None

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the nearest records, see :meth:`resrank.retrieval.store.VectorStore.search`."""
        if query.mode is not SearchMode.DENSE or query.embedding is None:
            raise InvalidInputError(
                "mode", f"a Milvus store knows no words and cannot search {query.mode.name}: use DENSE"
            )
        clock = StageClock()
        encoder = self.encoder
        rows: list[Row] = []
        if encoder is not None:
            require_query_encoder(encoder, query)
            embedding, field = query.embedding.tolist(), _field(encoder)
            rows = clock.run("dense", lambda: self._nearest(field, embedding, query))
        vectors = _vectors(rows, encoder)
        wide = vectors.astype(np.float32)
        cosines = NO_SCORES
        if rows:
            wide /= np.linalg.norm(wide, axis=1, keepdims=True)
            # Not BLAS, whose sums depend on where in the matrix a row stands.
            cosines = np.einsum("nd,d->n", wide, query.embedding).astype(np.float32, copy=False)
        best = np.lexsort(([row["key"] for row in rows], -cosines))[: query.k]
        found = [rows[place] for place in best]
        return SearchHits(
            ids=[row["id"] for row in found],
            scores=cosines[best],
            cosines=cosines[best],
            bm25=NO_SCORES,
            best_bm25=0.0,
            titles=[row["title"] for row in found] if query.include_texts else [],
            texts=[row["text"] for row in found] if query.include_texts else [],
            metadata=[_metadata(row) for row in found] if query.include_metadata else [],
            vectors=vectors[best] if query.include_embeddings else None,
            encoder=encoder,
            stage_ms=clock.stage_ms,
        )

    def upsert(self, batch: RecordBatch) -> UpsertCounts:
        """Stores a batch record by record, see the class."""
        rows = [
            _row(place, record, vector, batch.encoder)
            for place, (record, vector) in enumerate(zip(batch.records, batch.vectors, strict=True))
        ]
        fields = self._fields()
        new: dict[str, FieldType] = {}
        for place, record in enumerate(batch.records):
            for name, value in record.metadata.items():
                kind = fields.get(name) or new.setdefault(name, type_of(value))
                if kind is not type_of(value):
                    raise other_type(place, record.id, name, type_of(value), kind)
        encoder = self.encoder
        if encoder is None:
            self._make(batch.encoder)
            encoder = self.encoder or batch.encoder  # of whoever was first
        require_batch_encoder(encoder, batch.encoder)
        present = self._present([record.id for record in batch.records])
        self._quota.check(self._server.count(self._place) + len(rows) - len(present), 0)
        for name, kind in new.items():
            self._names.write({"type": kind.value}, FIELD, self._place, name)
        for part in _parts(rows, batch.encoder):
            self._server.upsert(self._place, part)
        return UpsertCounts(inserted=len(rows) - len(present), updated=len(present))

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Removes records, see :meth:`resrank.retrieval.store.VectorStore.delete`."""
        present = self._present(ids) if self.encoder is not None else set()
        if present:
            self._server.delete(self._place, _among(sorted(present)))
        return [id_ for id_ in ids if id_ not in present]

    def get(self, ids: Sequence[str], *, include_texts: bool, include_embeddings: bool) -> dict[str, StoredRecord]:
        """Reads records by id, see :meth:`resrank.retrieval.store.VectorStore.get`."""
        encoder = self.encoder
        if encoder is None:
            return {}
        fields = ["id", "content_sha256", *(["title", "text", "metadata"] if include_texts else [])]
        fields += [_field(encoder)] if include_embeddings else []
        rows = self._server.rows(self._place, _among(ids), fields, len(ids))
        return {
            row["id"]: StoredRecord(
                record=_record(row) if include_texts else Record(row["id"], "", ""),
                content_sha256=bytes.fromhex(row["content_sha256"]),
                vector=_vectors([row], encoder)[0] if include_embeddings else None,
            )
            for row in rows
        }

    def list_ids(self, after: str, limit: int) -> list[str]:
        """Ids page by page, see :meth:`resrank.retrieval.store.VectorStore.list_ids`."""
        if self.encoder is None:
            return []
        return [row["id"] for row in self._server.rows(self._place, f"id > {quoted(after)}", ["id"], limit)]

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """Refused: there are no words.

        Raises:
            InvalidInputError: Always.
        """
        raise InvalidInputError("text", "a Milvus store knows no words and has no BM25 scores: leave it empty")

    def export(self) -> Generator[RecordBatch, None, None]:
        """All records in the order of their ids, page by page: those written meanwhile may or may not be among them."""
        encoder = self.encoder
        after = ""
        while encoder is not None and (
            rows := self._server.rows(self._place, f"id > {quoted(after)}", [*_FIELDS, _field(encoder)], _page(encoder))
        ):
            yield RecordBatch(encoder, tuple(map(_record, rows)), _vectors(rows, encoder))
            after = rows[-1]["id"]

    def describe(self) -> IndexDescription:
        """Tells what the collection holds."""
        encoder = self.encoder
        return IndexDescription(
            record_count=0 if encoder is None else self._server.count(self._place),
            encoder=encoder,
            dense_index="Milvus HNSW",
            lexical_index="none",
            path=str(self._server.url),
            fields=self._fields(),
        )

    def maintain(self) -> None:
        """Nothing: Milvus looks after its segments itself."""

    def close(self) -> None:
        """Nothing: the connection is the catalog's."""

    def _nearest(self, field: str, embedding: list[float], query: SearchQuery) -> list[Row]:
        """At least the k nearest, and all that are as near as the last of them."""
        condition = "" if query.filter is None else self._condition(query.filter)
        limit = query.k + 1
        while True:
            rows = self._server.search(self._place, field, embedding, min(limit, _MOST), condition, [*_FIELDS, field])
            # Milvus keeps any of those that are equally near.
            tie = len(rows) > query.k and rows[-1][field] == rows[query.k - 1][field]
            if not tie or len(rows) < limit or limit >= _MOST:
                return rows
            limit *= 4

    def _condition(self, wanted: Filter) -> str:
        fields = self._fields()
        check_filter(wanted, fields)
        return condition_of(wanted, fields)

    def _fields(self) -> dict[str, FieldType]:
        found = self._names.all(FIELD, self._place)
        return {name: FieldType(found[name]["type"]) for name in sorted(found)}

    def _present(self, ids: Sequence[str]) -> set[str]:
        return {row["id"] for row in self._server.rows(self._place, _among(ids), ["id"], len(ids))}

    def _make(self, encoder: Encoder) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
        schema.add_field("key", DataType.INT64)
        schema.add_field("title", DataType.VARCHAR, max_length=_LONGEST)
        schema.add_field("text", DataType.VARCHAR, max_length=_LONGEST)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("content_sha256", DataType.VARCHAR, max_length=64)
        # In single precision, which has every number of half precision: not every release of Milvus has the latter.
        schema.add_field(_field(encoder), DataType.FLOAT_VECTOR, dim=encoder.dimension)
        index = MilvusClient.prepare_index_params()
        index.add_index(
            _field(encoder), index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 200}
        )
        self._server.make(self._place, schema, index)


class _Keys:
    """Ever greater numbers, by the clock: what is stored later, from here or from another sidecar, comes after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns())
            return self._last


_keys = _Keys()


def _row(place: int, record: Record, vector: HalfMatrix, encoder: Encoder) -> Row:
    for what, text in (("title", record.title), ("text", record.text)):
        if len(text.encode()) > _LONGEST:
            raise InvalidInputError(
                Place("records", (place,)),
                f"{what} of id {record.id!r} longer than Milvus takes, in bytes",
                limit=_LONGEST,
                value=len(text.encode()),
            )
    for name in record.metadata:
        if (size := len(name.encode())) > _LONGEST_NAME:
            raise InvalidInputError(
                Place("records", (place,)),
                f"a name in the metadata of id {record.id!r} longer than Milvus takes, in bytes",
                limit=_LONGEST_NAME,
                value=size,
            )
    return {
        "id": record.id,
        "key": _keys.next(),
        "title": record.title,
        "text": record.text,
        "metadata": json.loads(write_metadata(record.metadata)),
        "content_sha256": content_sha256(record.title, record.text, record.metadata).hex(),
        _field(encoder): vector.astype(np.float32).tolist(),
    }


def _parts(rows: Sequence[Row], encoder: Encoder) -> Iterator[list[Row]]:
    """Rows in messages of a size that Milvus takes."""
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row["title"].encode()) + len(row["text"].encode()) + 4 * encoder.dimension
        if size > _MESSAGE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _field(encoder: Encoder) -> str:
    return _VECTOR + encoder.sha256


def _page(encoder: Encoder) -> int:
    return min(1000, max(1, _MESSAGE_BYTES // (4 * encoder.dimension + 80_000)))


def _among(ids: Sequence[str]) -> str:
    return f"id in [{', '.join(map(quoted, ids))}]"


def _metadata(row: Row) -> dict[str, Any]:
    found = row["metadata"]
    return dict(read_metadata(found if isinstance(found, str) else json.dumps(found)))


def _record(row: Row) -> Record:
    return Record(row["id"], row["title"], row["text"], _metadata(row))


def _vectors(rows: Sequence[Row], encoder: Encoder | None) -> HalfMatrix:
    if not rows or encoder is None:
        return np.empty((0, 0 if encoder is None else encoder.dimension), np.float16)
    return np.array([row[_field(encoder)] for row in rows], np.float32).astype(np.float16)
