from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from resrank.core.sidecar.v1 import retrieval_pb2 as pb

UpsertRequest = Callable[..., pb.UpsertRequest]


def test_what_was_acknowledged_survives_kill_9(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    sidecar = start_sidecar()
    expected: dict[str, bytes] = {}
    # Three lives: each adds, replaces and deletes, and ends without warning right after the acknowledgement.
    for life in range(3):
        batch = upsert_request([f"id{number}" for number in range(life * 10, life * 10 + 20)], seed=life)
        sidecar.stub.Upsert(iter([batch]))
        sidecar.stub.Delete(pb.DeleteRequest(ids=[f"id{life * 10}"]))
        sidecar.kill()
        expected.update((record.id, record.embedding) for record in batch.records)
        del expected[f"id{life * 10}"]
        sidecar = start_sidecar()
        stored = sidecar.stub.Get(pb.GetRequest(ids=sorted(expected), include_embeddings=True))
        assert {record.id: record.embedding for record in stored.records} == expected
        assert sidecar.stub.Describe(pb.DescribeRequest()).record_count == len(expected)
        query = np.frombuffer(batch.records[5].embedding, "<f2").astype("<f4").tobytes()
        found = sidecar.stub.Search(pb.SearchRequest(mode=pb.SEARCH_MODE_DENSE, k=1000, embedding=query))
        assert sorted(found.ids) == sorted(expected)
        words = sidecar.stub.Search(pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, k=1000, text="walrus"))
        assert sorted(words.ids) == sorted(expected)


def test_killed_in_the_middle_of_a_stream_every_batch_is_whole(
    start_sidecar: Any, upsert_request: UpsertRequest
) -> None:
    sidecar = start_sidecar()
    batches = [upsert_request([f"{number}-{row}" for row in range(50)], seed=number) for number in range(200)]
    call = sidecar.stub.Upsert.future(iter(batches))
    while sidecar.stub.Describe(pb.DescribeRequest()).record_count == 0:
        pass
    sidecar.kill()
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(timeout=10)
    stub = start_sidecar().stub
    count = stub.Describe(pb.DescribeRequest()).record_count
    assert count > 0
    assert count % 50 == 0
    for batch in batches[: count // 50]:
        assert stub.Get(pb.GetRequest(ids=[record.id for record in batch.records])).missing_ids == []


def test_a_full_disk_refuses_writes_and_serves_what_it_has(start_sidecar: Any, upsert_request: UpsertRequest) -> None:
    # No file of this process may grow beyond 600 KB: the write fails in the kernel, as on a full disk.
    sidecar = start_sidecar(largest_file=600_000)
    first = upsert_request(["a", "b", "c"])
    sidecar.stub.Upsert(iter([first]))
    stored = 0
    while True:
        batch = upsert_request([f"{stored}-{row}" for row in range(20)], text=f"okapi{stored} " * 300)
        answer = sidecar.stub.Upsert.future(iter([batch]))
        if answer.code() is not grpc.StatusCode.OK:
            break
        stored += 1
    assert answer.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert re.search(r"the disk refused to write .*: nothing was stored", answer.details())
    assert sidecar.stub.Describe(pb.DescribeRequest()).record_count == 3 + 20 * stored
    got = sidecar.stub.Get(pb.GetRequest(ids=["a", "b", "c"], include_embeddings=True))
    assert [record.embedding for record in got.records] == [record.embedding for record in first.records]
    unstored = pb.SearchRequest(mode=pb.SEARCH_MODE_LEXICAL, k=5, text=f"okapi{stored}")
    assert sidecar.stub.Search(unstored).ids == []
    sidecar.kill()
    again = start_sidecar()
    assert again.stub.Describe(pb.DescribeRequest()).record_count == 3 + 20 * stored
    assert again.stub.Upsert(iter([upsert_request(["later"])])).inserted == 1


def refused(index: Path) -> str:
    command = [sys.executable, "-m", "resrank.retrieval", "--index", str(index), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("resrank.retrieval: ")]
    return sentence


def test_a_second_owner_is_refused(start_sidecar: Any, index: Path) -> None:
    first = start_sidecar()
    assert f"is owned by process {first.process.pid}, which serves it at {first.address}" in refused(index)
    assert first.stub.Describe(pb.DescribeRequest()).record_count == 0


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.tex").write_text("\\documentclass{article}")
    assert "is not an index folder: it holds thesis.tex" in refused(folder)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]
    assert (folder / "thesis.tex").read_text() == "\\documentclass{article}"


def test_a_corrupt_store_is_refused(start_sidecar: Any, upsert_request: UpsertRequest, index: Path) -> None:
    sidecar = start_sidecar()
    sidecar.stub.Upsert(iter([upsert_request([str(number) for number in range(500)])]))
    sidecar.process.terminate()
    sidecar.process.wait()
    content = bytearray((index / "store.sqlite3").read_bytes())
    content[4096:40960] = b"\x5a" * (40960 - 4096)
    (index / "store.sqlite3").write_bytes(content)
    assert str(index / "store.sqlite3") in refused(index)
