"""The proto boundary: each rule, and that no message whatever gets past it with anything but a named error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from resrank.core import limits
from resrank.core.errors import InvalidInputError
from resrank.core.fusion import CosineMap, Fusion
from resrank.core.metadata import MetadataValue
from resrank.core.search import SearchMode
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.retrieval import catalog_wire, wire
from resrank.retrieval.records import Encoder, Record, RecordBatch
from support.metadata_strategies import metadata

SHA = "0123456789abcdef" * 4
ONE = np.array([1, 0, 0, 0], "<f2").tobytes()


def record(**changes: Any) -> pb.Record:
    return pb.Record(**{"id": "a", "title": "t", "text": "x", "embedding": ONE, **changes})


def batch(*records: pb.Record, **changes: Any) -> pb.UpsertRequest:
    return pb.UpsertRequest(**{"encoder_sha256": SHA, "dimension": 4, "records": records, **changes})


def search(**changes: Any) -> pb.SearchRequest:
    defaults = {"mode": pb.SEARCH_MODE_HYBRID, "k": 5, "embedding": np.ones(4, "<f4").tobytes(), "text": "words"}
    return pb.SearchRequest(**{**defaults, **changes})


def half(*numbers: float) -> bytes:
    return np.array(numbers, "<f2").tobytes()


def single(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (batch(), "records: too few or too many (limit 1 to 1000, got 0)"),
        (batch(*[record(id=str(n)) for n in range(1001)]), "records: too few or too many (limit 1 to 1000, got 1001)"),
        (batch(record(), encoder_sha256=""), "encoder_sha256: must be 64 lowercase hex digits, not ''"),
        (
            batch(record(), encoder_sha256=SHA.upper()),
            f"encoder_sha256: must be 64 lowercase hex digits, not '{SHA.upper()}'",
        ),
        (batch(record(), dimension=0), "dimension: out of range (limit 1 to 16384, got 0)"),
        (batch(record(), dimension=16385), "dimension: out of range (limit 1 to 16384, got 16385)"),
        (batch(record(), record(id="")), "records[1]: id empty or too long, in bytes (limit 1 to 512, got 0)"),
        (batch(record(id="é" * 257)), "records[0]: id empty or too long, in bytes (limit 1 to 512, got 514)"),
        (batch(record(id="a\0b")), "records[0]: id 'a\\x00b' holds a NUL character"),
        (batch(record(), record(id="b"), record()), "records[2]: id 'a' stands in the batch already, at 0"),
        (
            batch(record(text="x" * limits.MAX_PASSAGE_BYTES)),
            "records[0]: title and text of id 'a' too long, in bytes (limit 65536, got 65537)",
        ),
        (
            batch(record(metadata={"k": "v" * limits.MAX_METADATA_BYTES})),
            "records[0]: metadata of id 'a' too long, in bytes (limit 16384, got 16385)",
        ),
        (
            batch(
                record(
                    metadata={"k": "v" * 16000}, values={"n" * 256: pb.Value(strings=pb.StringList(values=["x" * 128]))}
                )
            ),
            "records[0]: metadata of id 'a' too long, in bytes (limit 16384, got 16385)",
        ),
        (
            batch(record(), record(id="b", values={"n": pb.Value()})),
            "records[1]: metadata 'n' has no value",
        ),
        (
            batch(record(metadata={"n": "1"}, values={"n": pb.Value(number=1)})),
            "records[0]: 'n' of id 'a' stands in metadata and in values",
        ),
        (
            batch(record(), record(id="b", embedding=half(1, 2, 3))),
            "records[1]: embedding of id 'b' must be 4 fp16 components, in bytes (limit 8, got 6)",
        ),
        (
            batch(record(), record(id="b", embedding=half(0, 0, -0.0, 0))),
            "records[1]: embedding of id 'b' is a zero vector",
        ),
        (
            batch(
                record(), record(id="b", embedding=half(1, 2, np.nan, 4)), record(id="c", embedding=half(0, 0, 0, 0))
            ),
            "records[1]: embedding of id 'b' contains NaN",
        ),
        (
            batch(record(embedding=half(1, -np.inf, 3, 4))),
            "records[0]: embedding of id 'a' contains Inf",
        ),
    ],
)
def test_a_bad_batch_is_refused_and_the_record_named(request_: pb.UpsertRequest, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wire.parse_batch(request_)
    assert str(caught.value) == sentence
    # The client reads the error back from the status message.
    parsed = InvalidInputError.parse(sentence)
    assert parsed is not None
    assert (parsed.field, parsed.limit, parsed.value) == (caught.value.field, caught.value.limit, caught.value.value)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (search(mode=0), "mode: must be DENSE, LEXICAL or HYBRID (limit 1 to 3, got 0)"),
        (search(mode=17), "mode: must be DENSE, LEXICAL or HYBRID (limit 1 to 3, got 17)"),
        (search(k=0), "k: out of range (limit 1 to 1000, got 0)"),
        (search(k=1001), "k: out of range (limit 1 to 1000, got 1001)"),
        (search(embedding=b""), "embedding: HYBRID needs a query embedding, the sidecar does not encode"),
        (search(mode=1, embedding=b""), "embedding: DENSE needs a query embedding, the sidecar does not encode"),
        (
            search(embedding=b"\0" * 7),
            "embedding: must be little-endian fp32, a multiple of 4 bytes (limit 65536, got 7)",
        ),
        (
            search(embedding=b"\0" * 65540),
            "embedding: must be little-endian fp32, a multiple of 4 bytes (limit 65536, got 65540)",
        ),
        (search(embedding=single(1, np.nan)), "embedding: contains NaN"),
        (search(embedding=single(1, 2, np.inf)), "embedding: contains Inf"),
        (search(embedding=single(0, -0.0)), "embedding: is a zero vector"),
        (search(text=" \n\t"), "text: HYBRID needs a query text, but it is empty"),
        (search(mode=2, text=""), "text: LEXICAL needs a query text, but it is empty"),
        (search(mode=2, text="?! …"), "text: holds no word that could be searched for"),
        (search(text="x" * 8193), "text: query too long, in bytes (limit 8192, got 8193)"),
        (search(encoder_sha256="abc"), "encoder_sha256: must be 64 lowercase hex digits, not 'abc'"),
    ],
)
def test_a_bad_search_is_refused(request_: pb.SearchRequest, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wire.parse_search(request_)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], "ids: too few or too many (limit 1 to 1000, got 0)"),
        (["a", ""], "ids[1]: id empty or too long, in bytes (limit 1 to 512, got 0)"),
        (["a", "b", "a"], "ids[2]: id 'a' stands in the request already"),
        (["\0"], "ids[0]: id '\\x00' holds a NUL character"),
    ],
)
def test_bad_ids_are_refused(ids: list[str], sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wire.parse_ids(ids)
    assert str(caught.value) == sentence


def test_a_good_batch_is_read_bit_for_bit() -> None:
    vectors = np.array([[1, -2, 6e-8, 65504], [0, 0, 0, -6e-8]], "<f2")
    parsed = wire.parse_batch(
        batch(
            record(id="b", metadata={"k": "v"}, embedding=vectors[0].tobytes()),
            record(id="a", title="", text="", embedding=vectors[1].tobytes()),
        )
    )
    assert parsed.encoder == Encoder(SHA, 4)
    assert [(r.id, r.title, r.text, dict(r.metadata)) for r in parsed.records] == [
        ("b", "t", "x", {"k": "v"}),
        ("a", "", "", {}),
    ]
    assert parsed.vectors.tobytes() == vectors.tobytes()


def test_what_a_mode_does_not_need_is_not_looked_at() -> None:
    dense = wire.parse_search(search(mode=1, text="x" * 9000))
    assert (dense.mode, dense.text) == (SearchMode.DENSE, "")
    lexical = wire.parse_search(search(mode=2, embedding=b"\0"))
    assert lexical.embedding is None


def test_a_request_of_before_there_was_a_choice_is_fused_by_ranks() -> None:
    assert wire.parse_search(search()).fusion is Fusion.RRF
    weighted = wire.parse_search(search(fusion=pb.FUSION_WEIGHTED))
    assert (weighted.fusion, weighted.lexical_weight, weighted.cosine_map) == (Fusion.WEIGHTED, 0.3, CosineMap(1, 0, 0))
    given_ = search(fusion=2, lexical_weight=0, cosine_map=pb.CosineMap(slope=2, center=0.5, offset=-1))
    parsed = wire.parse_search(given_)
    assert (parsed.lexical_weight, parsed.cosine_map) == (0, CosineMap(2, 0.5, -1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fusion": 3}, "fusion: must be RRF or WEIGHTED (limit 0 to 2, got 3)"),
        ({"fusion": 2, "lexical_weight": -1}, "lexical_weight: out of range (limit 0 to 10, got -1.0)"),
        ({"fusion": 2, "lexical_weight": float("nan")}, "lexical_weight: out of range (limit 0 to 10, got nan)"),
        (
            {"fusion": 2, "cosine_map": pb.CosineMap()},
            "cosine_map.slope: out of range (limit above 0, at most 1000, got 0.0)",
        ),
    ],
)
def test_a_fusion_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wire.parse_search(search(**changes))
    assert str(caught.value) == sentence
    assert wire.parse_search(search(**changes, mode=pb.SEARCH_MODE_DENSE)), "only HYBRID looks at them"


@given(st.lists(metadata, min_size=1, max_size=3))
def test_a_backup_restores_metadata_with_its_types(held: list[dict[str, MetadataValue]]) -> None:
    records = tuple(Record(str(place), "t", "x", each) for place, each in enumerate(held))
    stored = RecordBatch(Encoder(SHA, 4), records, np.ones((len(records), 4), np.float16))
    parts = [pb.BackupPart.FromString(part.SerializeToString()) for part in catalog_wire.records_parts(stored)]
    restored = [record for part in parts for record in part.records]
    assert wire.parse_batch(batch(*restored)).records == records


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_query_embeddings_are_normalised_whatever_their_scale(numbers: list[float]) -> None:
    request = search(mode=1, embedding=single(*numbers))
    if not any(numbers):
        with pytest.raises(InvalidInputError):
            wire.parse_search(request)
        return
    embedding = wire.parse_search(request).embedding
    assert embedding is not None
    assert float(np.linalg.norm(embedding.astype(np.float64))) == pytest.approx(1, abs=1e-6)
    exact = np.array(numbers, np.float64)
    assert float(embedding @ exact / np.linalg.norm(exact)) == pytest.approx(1, abs=1e-6)


@given(st.binary(max_size=300), st.sampled_from([pb.SearchRequest, pb.UpsertRequest, pb.DeleteRequest]))
def test_no_bytes_get_past_the_boundary_with_another_error(data: bytes, kind: type[Any]) -> None:
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    parse = {pb.SearchRequest: wire.parse_search, pb.UpsertRequest: wire.parse_batch}.get(
        kind, lambda request: wire.parse_ids(request.ids)
    )
    with suppress(InvalidInputError):
        parse(message)


@given(
    st.builds(
        pb.UpsertRequest,
        encoder_sha256=st.sampled_from([SHA, ""]),
        dimension=st.integers(0, 3),
        records=st.lists(
            st.builds(
                pb.Record,
                id=st.text(max_size=3).filter(lambda text: text.isprintable()),
                text=st.text(max_size=5).filter(lambda text: text.isprintable()),
                embedding=st.binary(max_size=6),
            ),
            max_size=4,
        ),
    )
)
def test_a_batch_that_passes_keeps_every_promise(request: pb.UpsertRequest) -> None:
    try:
        parsed = wire.parse_batch(request)
    except InvalidInputError:
        return
    assert len({record.id for record in parsed.records}) == len(request.records)
    assert all(record.id for record in parsed.records)
    assert parsed.vectors.shape == (len(request.records), request.dimension)
    assert np.isfinite(parsed.vectors).all()
    assert parsed.vectors.any(axis=1).all()
