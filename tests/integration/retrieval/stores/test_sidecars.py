"""Sidecars over a store of another server: killed, several at once, and with the server away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from resrank.core.search import SearchMode
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.retrieval.catalog import Catalog
from resrank.retrieval.records import SearchQuery, StoredRecord
from resrank.stack.cli.app import run
from support.postgres_server import PASSWORD, PASSWORD_IN_URL, PostgresServer

DIMENSION = 8
SECRETS = (PASSWORD, PASSWORD_IN_URL, "wr0ng")


class Sidecar:
    """A sidecar in a process of its own, told of its store by the environment."""

    def __init__(self, url: str, log: Path) -> None:
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "resrank.retrieval", "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "RESRANK_STORE": url},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("resrank.retrieval listening on "), log.read_text()
        self.channel = grpc.insecure_channel(line.split()[-1])
        self.stub = RetrievalServiceStub(self.channel)

    def kill(self) -> None:
        """``kill -9``, or an end to what is left."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def count(self) -> int:
        return self.stub.Describe(pb.DescribeRequest()).record_count


StartSidecar = Callable[[str], Sidecar]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartSidecar]:
    with ExitStack() as running:

        def started(url: str) -> Sidecar:
            sidecar = Sidecar(url, tmp_path / "sidecar.log")
            running.callback(sidecar.kill)
            return sidecar

        yield started
    logged = (tmp_path / "sidecar.log").read_text()
    assert not any(secret in logged for secret in SECRETS)
    assert "Traceback" not in logged


def upsert_request(ids: list[str], seed: int = 0) -> pb.UpsertRequest:
    vectors = np.random.default_rng(seed).normal(size=(len(ids), DIMENSION)).astype("<f2")
    return pb.UpsertRequest(
        encoder_sha256="a" * 64,
        dimension=DIMENSION,
        records=[
            pb.Record(id=id_, text="walrus", embedding=vector.tobytes())
            for id_, vector in zip(ids, vectors, strict=True)
        ],
    )


@pytest.mark.parametrize("kind", ["postgresql", "milvus"], indirect=True)
def test_what_was_acknowledged_survives_kill_9_of_the_sidecar(
    store_url: str, start: StartSidecar, open_catalog: Callable[[str], Catalog]
) -> None:
    sidecar = start(store_url)
    batch = upsert_request([f"id{number}" for number in range(20)])
    sidecar.stub.Upsert(iter([batch]))
    sidecar.stub.Delete(pb.DeleteRequest(ids=["id7"]))
    sidecar.kill()
    expected = {record.id: record.embedding for record in batch.records if record.id != "id7"}
    with open_catalog(store_url).collection("default") as held:
        found = held.store.get([record.id for record in batch.records], include_texts=True, include_embeddings=True)
        assert {id_: packed(stored) for id_, stored in found.items()} == expected
        query = unit(batch.records[5].embedding)
        hits = held.store.search(SearchQuery(SearchMode.DENSE, 1000, embedding=query))
        assert sorted(hits.ids) == sorted(expected)


def packed(stored: StoredRecord) -> bytes:
    assert stored.vector is not None
    return stored.vector.astype("<f2").tobytes()


def unit(embedding: bytes) -> NDArray[np.float32]:
    wide = np.frombuffer(embedding, "<f2").astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def test_of_two_sidecars_one_is_killed_and_nothing_acknowledged_is_lost(
    postgres: PostgresServer, start: StartSidecar
) -> None:
    url = postgres.emptied()
    sidecars = [start(url), start(url)]
    acknowledged: list[list[str]] = [[], []]

    def fill(which: int) -> None:
        for number in range(200):
            names = [f"{which}-{number}-{row}" for row in range(20)]
            try:
                sidecars[which].stub.Upsert(iter([upsert_request(names, seed=number)]))
            except (grpc.RpcError, ValueError):  # the second of a channel that was closed
                return
            acknowledged[which] += names
            if which == 1 and number == 40:
                return

    threads = [threading.Thread(target=fill, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    while len(acknowledged[0]) < 300:
        pass
    sidecars[0].kill()
    for thread in threads:
        thread.join()
    survivor = sidecars[1]
    # The password is in no list of processes, and in no answer.
    assert not any(secret in Path(f"/proc/{survivor.process.pid}/cmdline").read_text() for secret in SECRETS)
    assert survivor.stub.Describe(pb.DescribeRequest()).path.startswith("postgresql://resrank:***@127.0.0.1:")
    names = acknowledged[0] + acknowledged[1]
    for place in range(0, len(names), 1000):
        assert not survivor.stub.Get(pb.GetRequest(ids=names[place : place + 1000])).missing_ids
    # What was under way is there as a whole or not at all.
    assert survivor.count() - len(names) in (0, 20)


def test_what_cannot_be_served_is_one_sentence_without_the_password(postgres: PostgresServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "resrank.retrieval", "--port", "0", "--store", postgres.url(password="wr0ng")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert not any(secret in ended.stderr for secret in SECRETS)
    warning, sentence = ended.stderr.splitlines()
    assert "give the URL in RESRANK_STORE" in warning
    assert re.fullmatch(r"resrank\.retrieval: .*resrank:\*\*\*@.*password authentication failed.*", sentence)


def test_commands_take_a_store_in_place_of_a_folder(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESRANK_STORE", postgres.emptied())
    assert run(["collection", "create", "docs"]) == 0
    assert run(["index", "describe", "--collection", "docs", "--output", "json"]) == 0
    described = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert described["collection"] == "docs"
    assert described["path"].startswith("postgresql://resrank:***@")
    for collection in ("docs", "default"):
        assert run(["alias", "set", "now", collection]) == 0
    assert capsys.readouterr().out.endswith("back to what it was: resrank alias set now docs\n")
    assert run(["index", "verify"]) == 2
    assert run(["collection", "list", "--store", f"postgresql://u:{PASSWORD}@host/x"]) == 2
    said = capsys.readouterr().err
    assert "is no index folder" in said
    assert "percent-encode" in said
    assert not any(secret in said for secret in SECRETS)
