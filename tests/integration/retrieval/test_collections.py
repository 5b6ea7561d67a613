"""Collections, aliases and backups of a real sidecar over gRPC."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest

from resrank.core.sidecar.backups import RecordsDigest
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

UpsertRequest = Callable[..., pb.UpsertRequest]


def into(collection: str, batch: pb.UpsertRequest) -> pb.UpsertRequest:
    batch.collection = collection
    return batch


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


def search(stub: Any, collection: str, text: str = "walrus") -> pb.SearchResponse:
    request = pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, k=1000, text=text, collection=collection)
    answer: pb.SearchResponse = stub.Search(request)
    return answer


def metrics(log: Path) -> list[str]:
    """The sidecar's own lines of its metrics page, whose address stands in its log."""
    (url,) = re.findall(r"metrics=(http://\S+)", log.read_text())
    lines = urlopen(url, timeout=10.0).read().decode().splitlines()
    return [line for line in lines if line.startswith("resrank_retrieval")]


def test_what_a_caller_got_wrong_is_no_failure_of_the_sidecar(
    start_sidecar: Any, upsert_request: UpsertRequest, tmp_path: Path
) -> None:
    stub = start_sidecar("--metrics-port", "0").stub
    stub.CreateCollection(pb.CreateCollectionRequest(collection="small", quota=pb.Quota(records=1)))
    stub.SetAlias(pb.SetAliasRequest(alias=pb.Alias(name="alias", collection="small")))
    for call, code in (
        (lambda: search(stub, "mistyped"), grpc.StatusCode.NOT_FOUND),
        (
            lambda: stub.CreateCollection(pb.CreateCollectionRequest(collection="small")),
            grpc.StatusCode.ALREADY_EXISTS,
        ),
        (
            lambda: stub.DropCollection(pb.DropCollectionRequest(collection="small")),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            lambda: stub.Upsert(iter([into("small", upsert_request(["a", "b"]))])),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ):
        assert refused(call)[0] is code
    counted = [
        line for line in metrics(tmp_path / "sidecar.log") if line.startswith("resrank_retrieval_requests_total")
    ]
    by_outcome = {
        outcome: sum(float(line.split()[-1]) for line in counted if f'outcome="{outcome}"' in line)
        for outcome in ("invalid", "failed", "shed")
    }
    assert by_outcome == {"invalid": 4, "failed": 0, "shed": 0}


def test_every_call_goes_to_the_collection_that_it_names(
    start_sidecar: Any, upsert_request: UpsertRequest, tmp_path: Path
) -> None:
    stub = start_sidecar("--metrics-port", "0").stub
    figures = len(metrics(tmp_path / "sidecar.log"))
    stub.CreateCollection(pb.CreateCollectionRequest(collection="docs@v1", quota=pb.Quota(records=3)))
    stub.SetAlias(pb.SetAliasRequest(alias=pb.Alias(name="docs", collection="docs@v1")))
    stub.Upsert(iter([upsert_request(["same", "one"], text="okapi")]))
    stub.Upsert(iter([into("docs", upsert_request(["same", "two"], seed=1, text="lemur", sha256="b" * 64))]))
    for asked, name, own, mine, theirs, encoder in (
        ("", "default", "one", "okapi", "lemur", "a" * 64),
        ("docs", "docs@v1", "two", "lemur", "okapi", "b" * 64),
    ):
        found = search(stub, asked, mine)
        assert (sorted(found.ids), found.collection) == (sorted([own, "same"]), name)
        assert search(stub, asked, theirs).ids == []
        got = stub.Get(pb.GetRequest(ids=["same", "one", "two"], include_texts=True, collection=asked))
        assert ({record.text for record in got.records}, len(got.missing_ids)) == ({mine}, 1)
        assert stub.List(pb.ListRequest(limit=10, collection=asked)).ids == sorted([own, "same"])
        described = stub.Describe(pb.DescribeRequest(collection=asked))
        assert (described.record_count, described.collection, described.encoder_sha256) == (2, name, encoder)
        copied = [record for part in stub.Backup(pb.BackupRequest(collection=asked)) for record in part.records]
        assert {record.text for record in copied} == {mine}
    embedding = np.ones(8, "<f4").tobytes()
    of_other = pb.SearchRequest(
        mode=pb.SEARCH_MODE_DENSE, k=1, embedding=embedding, encoder_sha256="a" * 64, collection="docs"
    )
    code, said = refused(lambda: stub.Search(of_other))
    assert (code, said[:28]) == (grpc.StatusCode.FAILED_PRECONDITION, "the index belongs to encoder")
    code, said = refused(lambda: stub.Upsert(iter([into("docs", upsert_request(["c", "d"], sha256="b" * 64))])))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert said.startswith("quota exceeded: the collection would hold too many records (limit 3, got 4)")
    listed = stub.ListCollections(pb.ListCollectionsRequest()).collections
    assert [(one.name, one.record_count, one.quota.records) for one in listed] == [("default", 2, 0), ("docs@v1", 2, 3)]
    assert stub.Delete(pb.DeleteRequest(ids=["same", "one"], collection="docs")).missing_ids == ["one"]
    assert (sorted(search(stub, "", "okapi").ids), search(stub, "docs", "lemur").ids) == (["one", "same"], ["two"])
    # Figures do not grow in number with collections.
    lines = metrics(tmp_path / "sidecar.log")
    assert len(lines) == figures
    assert {"resrank_retrieval_collections 2.0", "resrank_retrieval_index_records 3.0"} <= set(lines)


def test_bad_names_and_orders_are_refused_and_change_nothing(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    stub = start_sidecar().stub
    stub.CreateCollection(pb.CreateCollectionRequest(collection="v1"))
    stub.SetAlias(pb.SetAliasRequest(alias=pb.Alias(name="docs", collection="v1")))
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    exists, forbidden = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION

    def alias(name: str, collection: str, **fields: str) -> Callable[[], Any]:
        request = pb.SetAliasRequest(alias=pb.Alias(name=name, collection=collection, **fields))
        return lambda: stub.SetAlias(request)

    mixed = [into("v1", upsert_request(["a"])), into("docs", upsert_request(["b"]))]
    for call, code, said in (
        (lambda: search(stub, "../v1"), invalid, "collection: must be of a-z"),
        (
            lambda: search(stub, "x" * 65),
            invalid,
            "collection: name empty or too long, in characters (limit 1 to 64, got",
        ),
        (lambda: search(stub, "v2"), missing, "there is no collection and no alias 'v2'"),
        (lambda: stub.Upsert(iter([into("v2", upsert_request(["a"]))])), missing, "there is no collection"),
        (lambda: stub.Upsert(iter(mixed)), invalid, "collection: 'docs' after 'v1': a stream fills one collection"),
        (lambda: list(stub.Backup(pb.BackupRequest(collection="v2"))), missing, "there is no collection"),
        (lambda: list(stub.Backup(pb.BackupRequest(collection="V"))), invalid, "collection: must be of a-z"),
        (lambda: stub.CreateCollection(pb.CreateCollectionRequest()), invalid, "collection: name empty"),
        (lambda: stub.CreateCollection(pb.CreateCollectionRequest(collection="docs")), exists, "there is an alias"),
        (lambda: stub.CreateCollection(pb.CreateCollectionRequest(collection="v1")), exists, "there is a collection"),
        (
            lambda: stub.CreateCollection(pb.CreateCollectionRequest(collection="v3", quota=pb.Quota(bytes=2**64 - 1))),
            invalid,
            "quota.bytes: too large",
        ),
        (lambda: stub.DropCollection(pb.DropCollectionRequest(collection="v1")), forbidden, "the alias 'docs' names"),
        (lambda: stub.DropCollection(pb.DropCollectionRequest(collection="default")), forbidden, "the collection 'def"),
        (alias("more", "docs"), invalid, "alias.collection: 'docs' is an alias itself"),
        (alias("docs", "docs"), invalid, "alias.collection: 'docs' is an alias itself"),
        (alias("docs", "v2"), missing, "there is no collection"),
        (alias("v1", "v1"), exists, "'v1' is a collection"),
        (alias("docs", "v1", triton="http://x"), invalid, "alias.triton: 'http://x' is no address"),
        (lambda: stub.DeleteAlias(pb.DeleteAliasRequest(name="more")), missing, "there is no alias 'more'"),
    ):
        answered, details = refused(call)
        assert (answered, details[: len(said)]) == (code, said)
    assert [one.name for one in stub.ListCollections(pb.ListCollectionsRequest()).collections] == ["default", "v1"]
    assert stub.ListAliases(pb.ListAliasesRequest()).aliases == [pb.Alias(name="docs", collection="v1")]
    assert stub.ListAliases(pb.ListAliasesRequest(name="v1")).aliases == []
    assert stub.List(pb.ListRequest(limit=9, collection="v1")).ids == ["a"]  # the batch before the one refused


def changes(life: int, upsert_request: UpsertRequest) -> Iterator[tuple[str, str, str, Any]]:
    """Changes of names without end, each a step, the collection it is about, the method and the request."""
    for number in itertools.count():
        name, old = f"c{life}-{number}", f"c{life}-{number - 1}"
        yield "create", name, "CreateCollection", pb.CreateCollectionRequest(collection=name)
        yield "fill", name, "Upsert", into(name, upsert_request(["a", "b"]))
        yield "alias", name, "SetAlias", pb.SetAliasRequest(alias=pb.Alias(name="docs", collection=name))
        if number:
            yield "drop", old, "DropCollection", pb.DropCollectionRequest(collection=old)


def test_kill_9_leaves_of_every_change_of_names_all_or_nothing(
    start_sidecar: Any, upsert_request: UpsertRequest, index: Path
) -> None:
    """One life after the other ends in a run of changes: what was acknowledged holds, and at most one more."""
    sidecar = start_sidecar()
    expected: set[str] = set()
    target = ""
    for life in range(2):
        begun: list[tuple[str, str]] = []
        done: list[tuple[str, str]] = []

        def change(stub: Any, life: int, begun: list[tuple[str, str]], done: list[tuple[str, str]]) -> None:
            for step, name, method, request in changes(life, upsert_request):
                begun.append((step, name))
                try:
                    getattr(stub, method)(iter([request]) if method == "Upsert" else request)
                except grpc.RpcError:
                    return
                done.append((step, name))

        worker = threading.Thread(target=change, args=(sidecar.stub, life, begun, done))
        worker.start()
        while len(done) < 9 + 5 * life:
            time.sleep(0.001)
        sidecar.process.kill()
        worker.join()
        sidecar = start_sidecar()
        for step, name in done:
            if step == "create":
                expected.add(name)
            if step == "drop":
                expected.remove(name)
            if step == "alias":
                target = name
        (unsure,) = begun[len(done) :]
        found = {one.name for one in sidecar.stub.ListCollections(pb.ListCollectionsRequest()).collections}
        found.remove("default")
        assert found ^ expected <= ({unsure[1]} if unsure[0] in ("create", "drop") else set()), unsure
        (alias,) = sidecar.stub.ListAliases(pb.ListAliasesRequest()).aliases
        assert alias.collection == target or unsure == ("alias", alias.collection)
        assert len(search(sidecar.stub, "docs").ids) == 2
        assert {path.name for path in (index / "collections").iterdir()} == found  # nothing is left behind
        expected, target = found, alias.collection


def test_a_collection_is_dropped_beneath_its_readers(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    """Whoever searches, stores or copies meanwhile gets an answer or NOT_FOUND, and the folder goes."""
    sidecar = start_sidecar()
    stub = sidecar.stub
    outcomes: list[grpc.StatusCode] = []
    counts: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                counts.add(len(search(stub, "docs").ids))
                outcomes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                outcomes.append(error.code())  # type: ignore[attr-defined]

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(5):
            stub.CreateCollection(pb.CreateCollectionRequest(collection="docs"))
            stub.Upsert(iter([into("docs", upsert_request([f"{number}" for number in range(300)]))]))
            copy = stub.Backup(pb.BackupRequest(collection="docs"))
            parts = [next(copy)]
            stub.DropCollection(pb.DropCollectionRequest(collection="docs"))
            parts += copy  # to its end
            assert sum(len(part.records) for part in parts) == 300
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    assert counts <= {0, 300}
    folder = Path(stub.Describe(pb.DescribeRequest()).path) / "collections"
    until = time.monotonic() + 10
    while list(folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.01)
    assert list(folder.iterdir()) == []


def test_a_backup_is_of_one_moment_while_others_write(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    stub = start_sidecar().stub
    ids = [f"{number:03}" for number in range(600)]
    stub.Upsert(iter([upsert_request(ids)]))
    copy = stub.Backup(pb.BackupRequest())
    first = next(copy)
    assert (first.encoder_sha256, first.dimension, len(first.records)) == ("a" * 64, 8, 0)
    parts = [next(copy)]
    stub.Upsert(iter([upsert_request(ids, seed=1, text="other")]))
    stub.Delete(pb.DeleteRequest(ids=ids[300:]))
    parts += copy
    digest = RecordsDigest()
    for part in parts:
        digest.add(part.records)
    assert parts[-1].sha256 == digest.value()
    records = [record for part in parts for record in part.records]
    assert [record.id for record in records] == ids
    assert [record.embedding for record in records] == [record.embedding for record in upsert_request(ids).records]
    assert {record.text for record in records} == {"walrus"}


def test_readers_that_go_in_the_middle_of_a_backup_hold_nothing(
    start_sidecar: Any, upsert_request: UpsertRequest
) -> None:
    """As many as may be in flight go away, and as many others are served."""
    stub = start_sidecar("--max-inflight", "2").stub
    stub.CreateCollection(pb.CreateCollectionRequest(collection="docs"))
    stub.Upsert(iter([into("docs", upsert_request([f"{number}" for number in range(400)], text="x" * 20_000))]))
    assert sum(len(part.records) for part in stub.Backup(pb.BackupRequest(collection="docs"))) == 400
    for _ in range(3):
        copies = [stub.Backup(pb.BackupRequest(collection="docs")) for _ in range(2)]
        for copy in copies:
            next(copy)
        assert refused(lambda: search(stub, "docs"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        for copy in copies:
            copy.cancel()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                search(stub, "docs")
                break
            except grpc.RpcError:
                time.sleep(0.01)
    stub.DropCollection(pb.DropCollectionRequest(collection="docs"))
    folder = Path(stub.Describe(pb.DescribeRequest()).path) / "collections"
    while list(folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.01)
    assert list(folder.iterdir()) == []


def test_more_backups_than_can_be_kept_are_told_to_come_again(
    start_sidecar: Any, upsert_request: UpsertRequest
) -> None:
    stub = start_sidecar().stub
    stub.Upsert(iter([upsert_request([f"{number}" for number in range(400)], text="x" * 20_000)]))
    copies = [stub.Backup(pb.BackupRequest()) for _ in range(2)]
    for copy in copies:
        next(copy)
    code, details = refused(lambda: list(stub.Backup(pb.BackupRequest())))
    assert (code, details) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "2 backups are under way: call again when one has ended",
    )
    for copy in copies:
        assert sum(len(part.records) for part in copy) == 400
    assert sum(len(part.records) for part in stub.Backup(pb.BackupRequest())) == 400


def test_a_stop_ends_a_backup_that_nobody_reads(
    start_sidecar: Any, upsert_request: UpsertRequest, tmp_path: Path
) -> None:
    sidecar = start_sidecar("--drain-s", "0")
    sidecar.stub.Upsert(iter([upsert_request([f"{number}" for number in range(400)], text="x" * 20_000)]))
    copy = sidecar.stub.Backup(pb.BackupRequest())
    next(copy)
    sidecar.process.terminate()
    assert sidecar.process.wait(timeout=20) == 0
    assert refused(lambda: list(copy))[0] is grpc.StatusCode.UNAVAILABLE
    assert "Traceback" not in (tmp_path / "sidecar.log").read_text()
