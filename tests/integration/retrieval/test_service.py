from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from resrank.core.filters import F
from resrank.core.sidecar.filter_messages import filter_message
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

SERVICE = "resrank.retrieval.v1.RetrievalService"
UpsertRequest = Callable[..., pb.UpsertRequest]


def embedding(request: pb.UpsertRequest, row: int) -> bytes:
    return np.frombuffer(request.records[row].embedding, "<f2").astype("<f4").tobytes()


def dense(packed: bytes, k: int = 10, **options: Any) -> pb.SearchRequest:
    return pb.SearchRequest(mode=pb.SEARCH_MODE_DENSE, k=k, embedding=packed, **options)


def test_create_read_update_delete(start_sidecar: Any, upsert_request: UpsertRequest, index: Path) -> None:
    stub = start_sidecar().stub
    assert stub.Search(dense(b"\0\0\x80\x3f")).ids == []
    first, second = upsert_request(["a", "b", "c"]), upsert_request(["c", "d"], seed=1, text="zebra")
    answer = stub.Upsert(iter([first, second]))
    assert (answer.inserted, answer.updated, answer.batches) == (4, 1, 2)

    found = stub.Search(dense(embedding(first, 1), 3, include_texts=True, include_embeddings=True))
    assert found.ids[0] == "b"
    assert found.scores[0] == pytest.approx(1, abs=1e-6)
    assert (found.titles[0], found.texts[0]) == ("title b", "walrus")
    matrix = np.frombuffer(found.embeddings, "<f2").reshape(len(found.ids), found.dimension)
    assert matrix[0].tobytes() == first.records[1].embedding
    assert found.encoder_sha256 == "a" * 64
    assert found.timings.total_ms >= found.timings.dense_ms > 0
    bare = stub.Search(dense(embedding(first, 1), 3))
    assert (bare.ids, bare.titles, bare.texts, bare.embeddings) == (found.ids, [], [], b"")

    words = pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, k=10, text="Zebras!")
    assert sorted(stub.Search(words).ids) == ["c", "d"]
    both = pb.SearchRequest(mode=pb.SEARCH_MODE_HYBRID, k=1, text="zebra", embedding=embedding(second, 1))
    assert stub.Search(both).scores == pytest.approx([2 / 61], rel=0.02)

    got = stub.Get(pb.GetRequest(ids=["d", "x", "a"], include_texts=True, include_embeddings=True))
    assert [(record.id, record.text, dict(record.metadata)) for record in got.records] == [
        ("d", "zebra", {"n": "d"}),
        ("a", "walrus", {"n": "a"}),
    ]
    assert got.records[0].embedding == second.records[1].embedding
    assert got.missing_ids == ["x"]
    assert len(stub.Get(pb.GetRequest(ids=["a"])).records[0].content_sha256) == 32
    zebras = stub.Search(words)
    scored = stub.Get(pb.GetRequest(ids=["d", "x", "a"], text="Zebras!"))
    assert scored.lexical_scores == pytest.approx([zebras.lexical_scores[list(zebras.ids).index("d")], 0.0])
    assert scored.max_lexical_score == pytest.approx(max(zebras.lexical_scores))
    assert not stub.Get(pb.GetRequest(ids=["a"], text="?!")).lexical_scores  # no word to look for

    removed = stub.Delete(pb.DeleteRequest(ids=["a", "nobody"]))
    assert (removed.deleted, removed.missing_ids) == (1, ["nobody"])
    about = stub.Describe(pb.DescribeRequest())
    assert (about.record_count, about.dimension, about.encoder_sha256) == (3, 8, "a" * 64)
    assert (about.dense_index, about.path) == ("Flat", str(index))


def test_health_and_reflection(start_sidecar: Any) -> None:
    channel = start_sidecar().channel
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(reflection.get_services())
    described = DescriptorPool(reflection).FindServiceByName(SERVICE)
    first = ["Search", "Upsert", "Delete", "Get", "List", "Describe"]
    assert [method.name for method in described.methods][: len(first)] == first


INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
BAD = [
    (lambda stub: stub.Search(pb.SearchRequest()), INVALID, "mode: must be DENSE"),
    (lambda stub: stub.Search(dense(b"", 5)), INVALID, "embedding: DENSE needs a query embedding"),
    (lambda stub: stub.Search(dense(b"\0" * 32, 5)), INVALID, "embedding: is a zero vector"),
    (lambda stub: stub.Search(dense(np.ones(7, "<f4").tobytes())), INVALID, "embedding: .*limit 8, got 7"),
    (lambda stub: stub.Search(dense(np.ones(8, "<f4").tobytes(), 0)), INVALID, r"k: .*limit 1 to 1000, got 0"),
    (
        lambda stub: stub.Search(dense(np.ones(8, "<f4").tobytes(), encoder_sha256="b" * 64)),
        PRECONDITION,
        f"{'a' * 64}.*{'b' * 64}",
    ),
    (lambda stub: stub.Get(pb.GetRequest()), INVALID, "ids: too few"),
    (lambda stub: stub.Get(pb.GetRequest(ids=["a"], encoder_sha256="b")), INVALID, "encoder_sha256: must be 64"),
    (
        lambda stub: stub.Get(pb.GetRequest(ids=["a"], encoder_sha256="b" * 64)),
        PRECONDITION,
        f"{'a' * 64}.*{'b' * 64}",
    ),
    (lambda stub: stub.List(pb.ListRequest(limit=0)), INVALID, r"limit: .*limit 1 to 1000, got 0"),
    (lambda stub: stub.List(pb.ListRequest(limit=1001)), INVALID, r"limit: .*limit 1 to 1000, got 1001"),
    (lambda stub: stub.Delete(pb.DeleteRequest(ids=["a", "a"])), INVALID, r"ids\[1\]: id 'a' stands"),
    (lambda stub: stub.Upsert(iter([pb.UpsertRequest()])), INVALID, "encoder_sha256"),
]


@pytest.mark.parametrize(("call", "code", "sentence"), BAD)
def test_bad_input_gets_its_status_and_the_server_lives_on(
    start_sidecar: Any, upsert_request: UpsertRequest, call: Any, code: grpc.StatusCode, sentence: str
) -> None:
    stub = start_sidecar().stub
    stub.Upsert(iter([upsert_request(["a"])]))
    with pytest.raises(grpc.RpcError, match=sentence) as caught:
        call(stub)
    assert caught.value.code() is code
    assert stub.Describe(pb.DescribeRequest()).record_count == 1


def typed(*years: int) -> pb.UpsertRequest:
    vectors = np.random.default_rng(3).normal(size=(len(years), 8)).astype("<f2")
    records = [
        pb.Record(
            id=f"y{year}",
            text="walrus",
            embedding=vector.tobytes(),
            metadata={"lang": "en" if year % 2 else "de"},
            values={"year": pb.Value(number=year), "old": pb.Value(bool=year < 2000)},
        )
        for year, vector in zip(years, vectors, strict=True)
    ]
    return pb.UpsertRequest(encoder_sha256="a" * 64, dimension=8, records=records)


def test_filters_over_the_wire(start_sidecar: Any) -> None:
    sidecar = start_sidecar()
    stub = sidecar.stub
    stub.Upsert(iter([typed(1990, 1999, 2001, 2020, 2021)]))
    fields = [(field.name, field.type) for field in stub.Describe(pb.DescribeRequest()).fields]
    assert fields == [("lang", pb.FIELD_TYPE_STRING), ("old", pb.FIELD_TYPE_BOOL), ("year", pb.FIELD_TYPE_NUMBER)]

    def find(condition: pb.Filter) -> pb.SearchResponse:
        request = pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, k=10, text="walrus", filter=condition)
        request.include_metadata = True
        return stub.Search(request)

    found = find(filter_message((F("year") >= 2000) & (F("lang") == "en")))
    assert list(found.ids) == ["y2001", "y2021"]
    assert found.timings.filter_ms > 0
    assert [dict(metadata.values) for metadata in found.metadata] == [
        {"lang": pb.Value(string="en"), "old": pb.Value(bool=False), "year": pb.Value(number=year)}
        for year in (2001, 2021)
    ]
    (record,) = stub.Get(pb.GetRequest(ids=["y1999"], include_texts=True)).records
    assert dict(record.metadata) == {"lang": "en"}
    assert dict(record.values) == {"year": pb.Value(number=1999), "old": pb.Value(bool=True)}

    many = pb.Comparison(field="year", operator=pb.OPERATOR_IN, values=[pb.Value(number=n) for n in range(100_000)])
    deep = pb.Filter(negated=filter_message(F("year").exists()))
    for _ in range(40):
        deep = pb.Filter(negated=deep)
    for condition, sentence in (
        (
            filter_message(F("yaer") > 1),
            r"filter: no record has the field yaer: there are lang \(string\), old \(bool\)",
        ),
        (filter_message(F("year") == "2020"), 'filter: year = "2020": the field is a number, the value a string'),
        (pb.Filter(comparison=many), r"filter: too many values \(limit 1000, got 100000\)"),
        (deep, r"filter: nested too deeply, in levels \(limit 32, got 33\)"),
    ):
        with pytest.raises(grpc.RpcError, match=sentence) as caught:
            find(condition)
        assert caught.value.code() is INVALID

    # Written by hand, since no library makes it: each level is the field `negated` around the one before.
    packed = b""
    for _ in range(10_000):
        packed = b"\x22" + _varint(len(packed)) + packed
    request = pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, k=10, text="walrus").SerializeToString()
    with pytest.raises(grpc.RpcError, match="request: is not a valid protobuf message") as caught:
        sidecar.channel.unary_unary(f"/{SERVICE}/Search")(request + b"\x62" + _varint(len(packed)) + packed)
    assert caught.value.code() is INVALID

    other = typed(5)
    other.records[0].ClearField("metadata")
    other.records[0].values["lang"].bool = True
    with pytest.raises(grpc.RpcError, match=r"records\[0\]: metadata 'lang' of id 'y5' is of type bool") as caught:
        stub.Upsert(iter([other]))
    assert caught.value.code() is INVALID
    assert stub.Describe(pb.DescribeRequest()).record_count == 5


def _varint(number: int) -> bytes:
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*packed, number))


def test_bytes_that_are_no_message_are_the_callers_fault(start_sidecar: Any) -> None:
    sidecar = start_sidecar()
    invalid_utf8 = b"\x22\x02\xff\xfe"  # field 4, text
    for method in ("Search", "Get"):
        call = sidecar.channel.unary_unary(f"/{SERVICE}/{method}")
        for data in (invalid_utf8 if method == "Search" else b"\x0a\x01\xff", b"\xff\xff\xff"):
            with pytest.raises(grpc.RpcError) as caught:
                call(data)
            assert caught.value.code() is INVALID
            assert caught.value.details().startswith("request: is not a valid protobuf message")
    upsert = sidecar.channel.stream_unary(f"/{SERVICE}/Upsert")
    with pytest.raises(grpc.RpcError) as caught:
        upsert(iter([b"\xff\xff\xff"]))
    assert caught.value.code() is INVALID


def test_a_bad_batch_keeps_those_before_it_and_says_how_many(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    stub = start_sidecar().stub
    bad = upsert_request(["d", "e"])
    bad.records[1].embedding = b"\0" * 16
    with pytest.raises(grpc.RpcError, match=r"records\[1\]: embedding of id 'e' is a zero vector") as caught:
        stub.Upsert(iter([upsert_request(["a"]), upsert_request(["b"]), bad, upsert_request(["f"])]))
    assert ("resrank-stored-batches", "2") in [tuple(pair) for pair in caught.value.trailing_metadata()]
    assert stub.Get(pb.GetRequest(ids=["a", "b", "d", "e", "f"])).missing_ids == ["d", "e", "f"]


def test_another_encoder_is_refused_though_the_dimension_is_equal(
    start_sidecar: Any, upsert_request: UpsertRequest
) -> None:
    stub = start_sidecar().stub
    stub.Upsert(iter([upsert_request(["a"])]))
    with pytest.raises(grpc.RpcError, match=f"{'a' * 64}.*{'b' * 64}") as caught:
        stub.Upsert(iter([upsert_request(["x"], sha256="b" * 64)]))
    assert caught.value.code() is PRECONDITION
    assert stub.Describe(pb.DescribeRequest()).record_count == 1


def test_beyond_its_bound_the_sidecar_sheds(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    sidecar = start_sidecar("--max-inflight", "1", "--search-threads", "1")
    request = upsert_request([str(number) for number in range(1000)])
    sidecar.stub.Upsert(iter([request]))
    query = dense(embedding(request, 0), 1000, include_texts=True, include_embeddings=True)
    futures = [sidecar.stub.Search.future(query) for _ in range(40)]
    codes = [future.code() for future in futures]
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    shed = next(future for future in futures if future.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "slow down" in shed.details()
    assert sidecar.stub.Search(query).ids, "once the burst is over, it answers again"


def test_an_idle_upload_does_not_hold_up_searches(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    stub = start_sidecar("--max-inflight", "1", "--search-threads", "1").stub
    request = upsert_request(["a"])
    stub.Upsert(iter([request]))
    finish = threading.Event()

    def dawdle() -> Iterator[pb.UpsertRequest]:
        finish.wait(30)
        yield upsert_request(["b"])

    upload = stub.Upsert.future(dawdle())
    assert stub.Search(dense(embedding(request, 0)), timeout=10).ids == ["a"]
    finish.set()
    assert upload.result(timeout=10).inserted == 1


def test_searches_and_upserts_at_once(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    stub = start_sidecar().stub
    ids = [f"id{number}" for number in range(50)]
    versions = [upsert_request(ids, seed=seed, text=f"version{seed}") for seed in range(10)]
    stub.Upsert(iter(versions[:1]))
    done = threading.Event()
    torn: list[Any] = []

    def look() -> None:
        while not done.is_set():
            found = stub.Search(dense(embedding(versions[0], 0), 50, include_texts=True, include_embeddings=True))
            if len(set(found.texts)) != 1 or len(found.ids) != 50:
                torn.append(found.texts)
                return
            version = versions[int(found.texts[0].removeprefix("version"))]
            expected = b"".join(version.records[ids.index(id_)].embedding for id_ in found.ids)
            if found.embeddings != expected:
                torn.append("embeddings")

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in versions[1:]:
        stub.Upsert(iter([version]))
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_sigterm_lets_calls_finish_and_gives_the_folder_back(
    start_sidecar: Any, upsert_request: UpsertRequest, index: Path
) -> None:
    sidecar = start_sidecar()
    started, finish = threading.Event(), threading.Event()

    def upload() -> Iterator[pb.UpsertRequest]:
        yield upsert_request(["a"])
        started.set()
        finish.wait(30)
        yield upsert_request(["b"])

    call = sidecar.stub.Upsert.future(upload())
    assert started.wait(10)
    # The first record is in the store, so the call is under way in the server and not only sent.
    while not call.done() and sidecar.stub.Describe(pb.DescribeRequest()).record_count == 0:
        time.sleep(0.01)
    sidecar.process.send_signal(signal.SIGTERM)
    finish.set()
    assert call.result(timeout=10).inserted == 2
    assert sidecar.process.wait(timeout=20) == 0
    assert (index / "lock").read_text() == ""
    assert start_sidecar().stub.Describe(pb.DescribeRequest()).record_count == 2


def test_a_taken_port_is_one_sentence(start_sidecar: Any, tmp_path: Path) -> None:
    port = start_sidecar().address.rpartition(":")[2]
    command = [sys.executable, "-m", "resrank.retrieval", "--index", str(tmp_path / "other"), "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert f"resrank.retrieval: cannot listen on 127.0.0.1:{port}: choose another port" in result.stderr
    assert "Traceback" not in result.stderr
