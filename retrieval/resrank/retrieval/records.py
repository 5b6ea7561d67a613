"""The sidecar's nouns, validated at the proto boundary (:mod:`resrank.retrieval.wire`) and trusted after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resrank.core.filters import Filter
from resrank.core.fusion import DEFAULT_LEXICAL_WEIGHT, IDENTITY, CosineMap, Fusion
from resrank.core.metadata import FieldType, Metadata
from resrank.core.search import SearchMode

Keys = NDArray[np.int64]
"""Internal keys of stored records. A key is never given twice, also not to the same id's next version."""

HalfMatrix = NDArray[np.float16]
FloatVector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Encoder:
    """The encoder that an index belongs to.

    Attributes:
        sha256: Hash of its weights, 64 lowercase hex digits.
        dimension: Length d of its vectors.
    """

    sha256: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Record:
    """One passage as the application gave it, without its vector."""

    id: str
    title: str
    text: str
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """What one transaction stores.

    Attributes:
        encoder: Which encoder made the vectors.
        records: The passages, with distinct ids.
        vectors: Their embeddings, fp16 [len(records), d], finite and none all zero.
    """

    encoder: Encoder
    records: tuple[Record, ...]
    vectors: HalfMatrix


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One passage as read back.

    Attributes:
        record: The passage; title, text and metadata are empty when they were not asked for.
        content_sha256: Fingerprint of its content (:func:`resrank.core.passage.content_sha256`).
        vector: Its embedding, fp16 [d], if it was asked for.
    """

    record: Record
    content_sha256: bytes
    vector: HalfMatrix | None


@dataclass(frozen=True, slots=True)
class UpsertCounts:
    """What one batch changed."""

    inserted: int
    updated: int


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search.

    Attributes:
        mode: How candidates are found.
        k: How many are wanted.
        embedding: Query embedding, fp32 [d], L2-normalised; present in DENSE and HYBRID.
        text: Query text; present in LEXICAL and HYBRID.
        encoder_sha256: Which encoder made the embedding, if the caller told.
        include_texts: Whether titles and texts are wanted.
        include_embeddings: Whether the stored vectors are wanted.
        fusion: How HYBRID joins both lists.
        lexical_weight: With ``WEIGHTED``, w.
        cosine_map: With ``WEIGHTED``, A.
        filter: What the results' metadata must meet, None for nothing; not yet checked against the fields there are.
        include_metadata: Whether the metadata is wanted.
    """

    mode: SearchMode
    k: int
    embedding: FloatVector | None = None
    text: str = ""
    encoder_sha256: str | None = None
    include_texts: bool = False
    include_embeddings: bool = False
    fusion: Fusion = Fusion.WEIGHTED
    lexical_weight: float = DEFAULT_LEXICAL_WEIGHT
    cosine_map: CosineMap = IDENTITY
    filter: Filter | None = None
    include_metadata: bool = False


@dataclass(frozen=True, slots=True)
class SearchHits:
    """The answer to a search, best first; the sequences run parallel.

    Attributes:
        ids: Record ids.
        scores: Cosine, BM25 or fused score, by mode; fp32 [len(ids)].
        cosines: fp32 [len(ids)] where an embedding was searched with, else empty.
        bm25: fp32 [len(ids)] where words were searched for, else empty.
        best_bm25: Of any record for the words that meets the filter, 0 where none matches.
        titles: Titles, empty when not asked for.
        texts: Texts, empty when not asked for.
        metadata: All of each record's, empty when not asked for.
        vectors: The stored vectors, fp16 [len(ids), d], if asked for.
        encoder: The index's encoder, None while the index is empty and has none.
        stage_ms: Milliseconds by stage: ``dense``, ``lexical``, ``fusion``, ``gather``.
    """

    ids: list[str]
    scores: FloatVector
    cosines: FloatVector
    bm25: FloatVector
    best_bm25: float
    titles: list[str]
    texts: list[str]
    metadata: list[Metadata]
    vectors: HalfMatrix | None
    encoder: Encoder | None
    stage_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class WordScores:
    """What a query's words give some records.

    Attributes:
        scores: Id to BM25, 0 where no word stands; ids that are not in the index are absent.
        best: The best BM25 of any record.
    """

    scores: Mapping[str, float]
    best: float


@dataclass(frozen=True, slots=True)
class IndexDescription:
    """What an index holds.

    Attributes:
        record_count: Records in it.
        encoder: To which encoder it belongs, None while nothing was ever stored.
        dense_index: What searches the vectors.
        lexical_index: What searches the texts.
        path: The index folder.
        fields: What its metadata has, by name: that of some record.
    """

    record_count: int
    encoder: Encoder | None
    dense_index: str
    lexical_index: str
    path: str
    fields: Mapping[str, FieldType]
