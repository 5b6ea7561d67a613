"""The proto boundary: turns messages into records and queries, checking everything once, and answers into messages."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from resrank.core import limits
from resrank.core.errors import InvalidInputError, Place
from resrank.core.fusion import DEFAULT_LEXICAL_WEIGHT, IDENTITY, CosineMap, Fusion, check_lexical_weight
from resrank.core.metadata import FieldType, check_metadata
from resrank.core.passage import check_id
from resrank.core.search import SearchMode
from resrank.core.sidecar.filter_messages import read_filter
from resrank.core.sidecar.metadata_messages import metadata_message, record_metadata, set_metadata
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.terms import query_terms
from resrank.core.vectors import first_bad_vector, vector_problem
from resrank.retrieval.records import (
    Encoder,
    FloatVector,
    HalfMatrix,
    IndexDescription,
    Record,
    RecordBatch,
    SearchHits,
    SearchQuery,
    StoredRecord,
    WordScores,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODES = {
    pb.SEARCH_MODE_DENSE: SearchMode.DENSE,
    pb.SEARCH_MODE_LEXICAL: SearchMode.LEXICAL,
    pb.SEARCH_MODE_HYBRID: SearchMode.HYBRID,
}
_FUSIONS = {
    pb.FUSION_UNSPECIFIED: Fusion.RRF,  # what there was before there was a choice
    pb.FUSION_RRF: Fusion.RRF,
    pb.FUSION_WEIGHTED: Fusion.WEIGHTED,
}
_FIELD_TYPES = {
    FieldType.STRING: pb.FIELD_TYPE_STRING,
    FieldType.NUMBER: pb.FIELD_TYPE_NUMBER,
    FieldType.BOOL: pb.FIELD_TYPE_BOOL,
    FieldType.STRINGS: pb.FIELD_TYPE_STRINGS,
}


def parse_search(request: pb.SearchRequest) -> SearchQuery:
    """Reads a search.

    Raises:
        InvalidInputError: A field breaks its rule, or the mode lacks what it needs.
    """
    mode = _MODES.get(request.mode)
    if mode is None:
        raise InvalidInputError("mode", "must be DENSE, LEXICAL or HYBRID", limit="1 to 3", value=request.mode)
    if not 1 <= request.k <= limits.MAX_MESSAGE_RECORDS:
        raise InvalidInputError("k", "out of range", limit=f"1 to {limits.MAX_MESSAGE_RECORDS}", value=request.k)
    encoder_sha256 = _parse_sha256(request.encoder_sha256) if request.encoder_sha256 else None
    embedding: FloatVector | None = None
    if mode is not SearchMode.LEXICAL:
        if not request.embedding:
            raise InvalidInputError("embedding", f"{mode.name} needs a query embedding, the sidecar does not encode")
        embedding = _parse_query_embedding(request.embedding)
    if mode is not SearchMode.DENSE:
        _check_text_size(request.text)
        if not request.text.strip():
            raise InvalidInputError("text", f"{mode.name} needs a query text, but it is empty")
        if mode is SearchMode.LEXICAL and not query_terms(request.text):
            raise InvalidInputError("text", "holds no word that could be searched for")
    fusion, lexical_weight, cosine_map = Fusion.RRF, DEFAULT_LEXICAL_WEIGHT, IDENTITY
    if mode is SearchMode.HYBRID:
        fusion = _parse_fusion(request.fusion)
        if fusion is Fusion.WEIGHTED:
            if request.HasField("lexical_weight"):
                lexical_weight = check_lexical_weight(request.lexical_weight)
            if request.HasField("cosine_map"):
                mapped = request.cosine_map
                cosine_map = CosineMap(mapped.slope, mapped.center, mapped.offset)
    return SearchQuery(
        mode=mode,
        k=request.k,
        embedding=embedding,
        text="" if mode is SearchMode.DENSE else request.text,
        encoder_sha256=encoder_sha256,
        include_texts=request.include_texts,
        include_embeddings=request.include_embeddings,
        fusion=fusion,
        lexical_weight=lexical_weight,
        cosine_map=cosine_map,
        filter=read_filter(request.filter) if request.HasField("filter") else None,
        include_metadata=request.include_metadata,
    )


def parse_batch(request: pb.UpsertRequest) -> RecordBatch:
    """Reads a batch.

    Raises:
        InvalidInputError: A field breaks its rule; of several bad records the first is named.
    """
    encoder_sha256 = _parse_sha256(request.encoder_sha256)
    if not 1 <= request.dimension <= limits.MAX_EMBEDDING_DIM:
        raise InvalidInputError(
            "dimension", "out of range", limit=f"1 to {limits.MAX_EMBEDDING_DIM}", value=request.dimension
        )
    _check_count("records", len(request.records))
    records = tuple(_parse_record(index, record, request.dimension) for index, record in enumerate(request.records))
    first_index: dict[str, int] = {}
    for index, record in enumerate(records):
        earlier = first_index.setdefault(record.id, index)
        if earlier != index:
            raise InvalidInputError(
                Place("records", (index,)), f"id {record.id!r} stands in the batch already, at {earlier}"
            )
    packed = b"".join(record.embedding for record in request.records)
    vectors = np.frombuffer(packed, "<f2").reshape(len(records), request.dimension).astype(np.float16, copy=False)
    _check_vectors(vectors, records)
    return RecordBatch(Encoder(encoder_sha256, request.dimension), records, vectors)


def parse_ids(ids: Sequence[str]) -> list[str]:
    """Reads the ids of Delete and Get.

    Raises:
        InvalidInputError: There are none or too many, one is no valid id, or one stands there twice.
    """
    _check_count("ids", len(ids))
    seen: set[str] = set()
    for index, id_ in enumerate(ids):
        check_id(Place("ids", (index,)), id_)
        if id_ in seen:
            raise InvalidInputError(Place("ids", (index,)), f"id {id_!r} stands in the request already")
        seen.add(id_)
    return list(ids)


def parse_limit(limit: int) -> int:
    """Reads how many ids List is to name.

    Raises:
        InvalidInputError: None or too many.
    """
    _check_count("limit", limit)
    return limit


def parse_get_encoder(request: pb.GetRequest) -> str | None:
    """Reads the encoder that Get's embeddings are meant for.

    Raises:
        InvalidInputError: It is no digest.
    """
    return _parse_sha256(request.encoder_sha256) if request.encoder_sha256 else None


def parse_get_text(request: pb.GetRequest) -> str:
    """Reads the query of Get, empty where there is none or no word in it.

    Raises:
        InvalidInputError: It is too long.
    """
    _check_text_size(request.text)
    return request.text if query_terms(request.text) else ""


def search_response(hits: SearchHits) -> pb.SearchResponse:
    """Writes an answer; the caller adds the total and the waiting time."""
    return pb.SearchResponse(
        ids=hits.ids,
        scores=hits.scores.tolist(),
        dense_scores=hits.cosines.tolist(),
        lexical_scores=hits.bm25.tolist(),
        max_lexical_score=hits.best_bm25,
        titles=hits.titles,
        texts=hits.texts,
        metadata=map(metadata_message, hits.metadata),
        embeddings=b"" if hits.vectors is None else _pack(hits.vectors),
        dimension=0 if hits.encoder is None else hits.encoder.dimension,
        encoder_sha256="" if hits.encoder is None else hits.encoder.sha256,
        timings=pb.SearchTimings(**{f"{stage}_ms": spent for stage, spent in hits.stage_ms.items()}),
    )


def get_response(ids: Sequence[str], found: dict[str, StoredRecord], words: WordScores | None) -> pb.GetResponse:
    """Writes the records found, in the order of the ids."""
    response = pb.GetResponse(missing_ids=[id_ for id_ in ids if id_ not in found])
    if words is not None:
        response.lexical_scores.extend(words.scores.get(id_, 0.0) for id_ in ids if id_ in found)
        response.max_lexical_score = words.best
    for stored in (found[id_] for id_ in ids if id_ in found):
        record = response.records.add(
            id=stored.record.id,
            title=stored.record.title,
            text=stored.record.text,
            embedding=b"" if stored.vector is None else _pack(stored.vector),
            content_sha256=stored.content_sha256,
        )
        set_metadata(record, stored.record.metadata)
    return response


def field_messages(description: IndexDescription) -> list[pb.Field]:
    """The fields that a filter can name, by name."""
    fields = sorted(description.fields.items())
    return [pb.Field(name=name, type=_FIELD_TYPES[kind]) for name, kind in fields]


def _check_text_size(text: str) -> None:
    size = len(text.encode())
    if size > limits.MAX_QUERY_BYTES:
        raise InvalidInputError("text", "query too long, in bytes", limit=limits.MAX_QUERY_BYTES, value=size)


def _parse_fusion(value: pb.Fusion.ValueType) -> Fusion:
    fusion = _FUSIONS.get(value)
    if fusion is None:
        raise InvalidInputError("fusion", "must be RRF or WEIGHTED", limit="0 to 2", value=value)
    return fusion


def _pack(vectors: HalfMatrix) -> bytes:
    return vectors.astype("<f2", copy=False).tobytes()


def _parse_sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise InvalidInputError("encoder_sha256", f"must be 64 lowercase hex digits, not {value[:80]!r}")
    return value


def _parse_query_embedding(packed: bytes) -> FloatVector:
    if len(packed) % 4 or len(packed) > 4 * limits.MAX_EMBEDDING_DIM:
        raise InvalidInputError(
            "embedding",
            "must be little-endian fp32, a multiple of 4 bytes",
            limit=4 * limits.MAX_EMBEDDING_DIM,
            value=len(packed),
        )
    # In fp64 the norm of large but finite fp32 components does not overflow.
    embedding = np.frombuffer(packed, "<f4").astype(np.float64)
    if (problem := vector_problem(embedding)) is not None:
        raise InvalidInputError("embedding", problem)
    return (embedding / np.linalg.norm(embedding)).astype(np.float32)


def _parse_record(index: int, record: pb.Record, dimension: int) -> Record:
    field = Place("records", (index,))
    check_id(field, record.id)
    size = len(record.title.encode()) + len(record.text.encode())
    if size > limits.MAX_PASSAGE_BYTES:
        raise InvalidInputError(
            field, f"title and text of id {record.id!r} too long, in bytes", limit=limits.MAX_PASSAGE_BYTES, value=size
        )
    metadata = record_metadata(field, record)
    check_metadata(field, record.id, metadata)
    if len(record.embedding) != 2 * dimension:
        raise InvalidInputError(
            field,
            f"embedding of id {record.id!r} must be {dimension} fp16 components, in bytes",
            limit=2 * dimension,
            value=len(record.embedding),
        )
    return Record(id=record.id, title=record.title, text=record.text, metadata=metadata)


def _check_vectors(vectors: HalfMatrix, records: Sequence[Record]) -> None:
    if (place := first_bad_vector(vectors)) is not None:
        problem = vector_problem(vectors[place])
        raise InvalidInputError(Place("records", place), f"embedding of id {records[place[0]].id!r} {problem}")


def _check_count(field: str, count: int) -> None:
    if not 1 <= count <= limits.MAX_MESSAGE_RECORDS:
        raise InvalidInputError(field, "too few or too many", limit=f"1 to {limits.MAX_MESSAGE_RECORDS}", value=count)
