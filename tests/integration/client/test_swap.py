"""Two checkpoints behind two Tritons, two collections in one sidecar, and an alias that moves both under load."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from resrank.client import ResRankClient, SearchResult
from resrank.core.errors import CollectionNotFoundError, EncoderMismatchError, InvalidInputError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.stack.cli.app import run
from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.triton_process import TritonProcess

from .conftest import EMBED, EMBED_PY, RERANK, SCORER, SCORER_PY, write_model

OLD, NEW = "e" * 64, "f" * 64
WORKERS = 4
VECTOR = [3.0, 1.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint: its encoder counts d, c, b and a, and its scores lie 10 higher."""
    repository = tmp_path_factory.mktemp("new") / "repository"
    write_model(repository, "rerank", RERANK.replace(OLD, NEW), None)
    write_model(repository, "scorer", SCORER, SCORER_PY.replace("scores = ", "scores = 10.0 + "))
    write_model(repository, "embed_query", f'name: "embed_query"\n{EMBED}', EMBED_PY.replace('"abcd"', '"dcba"'))
    return repository


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("index")) as process:
        with grpc.insecure_channel(process.address) as channel:
            stub = RetrievalServiceStub(channel)
            for name, encoder in (("docs@v1", OLD), ("docs@v2", NEW), ("docs@v3", NEW)):
                stub.CreateCollection(pb.CreateCollectionRequest(collection=name))
                records = [
                    pb.Record(id=f"{name}-{row}", text="ants dig", embedding=np.array(VECTOR, "<f2").tobytes())
                    for row in range(4)
                ]
                batch = pb.UpsertRequest(encoder_sha256=encoder, dimension=4, records=records, collection=name)
                stub.Upsert(iter([batch]))
        yield process


def alias(sidecar: SidecarProcess, *arguments: str) -> int:
    return run(["alias", *arguments, "--index", str(sidecar.index)])


def version_of(found: SearchResult) -> str:
    """Which version an answer is from; fails where two had a part in it: ids, query's vector and scores tell each."""
    assert len(found.passages) == 4
    (collection,) = {str(passage.id).rpartition("-")[0] for passage in found.passages}
    counts = np.array([2.01, 1.01, 0.01, 0.01]) if collection == "docs@v1" else np.array([0.01, 0.01, 1.01, 2.01])
    cosine = counts @ VECTOR / np.linalg.norm(counts) / np.linalg.norm(VECTOR)
    for passage in found.passages:
        assert passage.dense_score == pytest.approx(cosine, abs=1e-3)
        assert passage.rerank_score is not None
        assert (passage.rerank_score > 5) == (collection != "docs@v1")
    assert found.collection == collection
    assert (found.triton != "") == (collection != "docs@v1")
    return collection


class Load:
    """Searches in the name of an alias without pause, and what came of them."""

    def __init__(self, triton: TritonProcess, sidecar: SidecarProcess) -> None:
        self.answers: list[tuple[float, str]] = []  # when each was asked for, and of which version it is
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._client = ResRankClient(triton.grpc_address, retrieval=sidecar.address)
        self._workers = [threading.Thread(target=self._work) for _ in range(WORKERS)]

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                begun = time.monotonic()
                found = self._client.search("aab", 4, candidates=4, collection="docs")
                self.answers.append((begun, version_of(found)))
            except BaseException as error:
                self.errors.append(error)
                return

    def __enter__(self) -> Load:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()
        self._client.close()

    def go_on(self, answers: int = 30) -> set[str]:
        """Versions of the next answers, of those that are asked for from now on."""
        now = time.monotonic()
        while not self.errors and time.monotonic() < now + 60:
            versions = [version for begun, version in list(self.answers) if begun >= now]
            if len(versions) >= answers:
                return set(versions)
            time.sleep(0.005)
        return set()


def test_an_alias_moves_collection_and_checkpoint_under_load(
    triton: TritonProcess, sidecar: SidecarProcess, new_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 errors, every answer of one version; after a command has returned, no answer is of the version before."""
    assert alias(sidecar, "set", "docs", "docs@v1") == 0
    with Load(triton, sidecar) as load:
        with TritonProcess(new_repository) as new:
            assert load.go_on() == {"docs@v1"}
            assert alias(sidecar, "set", "docs", "docs@v2", "--triton", new.grpc_address) == 0
            assert load.go_on() == {"docs@v2"}
            assert alias(sidecar, "set", "docs", "docs@v3", "--triton", new.grpc_address) == 0  # the same encoder
            assert load.go_on() == {"docs@v3"}
            told = re.findall(r"(?m)^back to what it was: resrank (.*)$", capsys.readouterr().out)
            assert run(told[0].split()) == 0  # to what the first of them had moved
            assert load.go_on() == {"docs@v1"}
        assert load.go_on() == {"docs@v1"}  # with the other one gone
    assert load.errors == []
    assert {"docs@v1", "docs@v2", "docs@v3"} == {version for _, version in load.answers}
    assert alias(sidecar, "delete", "docs") == 0


def test_an_alias_is_refused_where_its_triton_serves_another_encoder(
    triton: TritonProcess, sidecar: SidecarProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert alias(sidecar, "set", "other", "docs@v2", "--triton", triton.grpc_address) == 1
    assert f"belongs to encoder {NEW}" in capsys.readouterr().err
    assert alias(sidecar, "set", "other", "docs@v9") == 1
    assert "there is no collection and no alias 'docs@v9'" in capsys.readouterr().err
    assert alias(sidecar, "set", "Other", "docs@v1") == 2
    assert alias(sidecar, "list") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no alias"


@pytest.mark.parametrize("call", ["search", "rerank_stored"])
def test_what_is_asked_of_a_collection_that_does_not_fit(
    make: Callable[..., Any], triton: TritonProcess, sidecar: SidecarProcess, call: str
) -> None:
    client = make(triton.grpc_address, retrieval=sidecar.address)
    about: Any = "aab" if call == "search" else ("aab", ["docs@v2-0", "docs@v1-0"])
    ask = (
        (lambda name: client.search(about, collection=name))
        if call == "search"
        else (lambda name: client.rerank_stored(*about, collection=name))
    )
    with pytest.raises(EncoderMismatchError, match=f"belongs to encoder {NEW}"):
        ask("docs@v2")
    with pytest.raises(CollectionNotFoundError, match="no collection and no alias 'docs@v9'"):
        ask("docs@v9")
    for name in ("../docs", "Docs", 7):
        with pytest.raises(InvalidInputError, match="collection: must be"):
            ask(name)
    found = ask("docs@v1")
    assert {passage.id.rpartition("-")[0] for passage in found.passages} == {"docs@v1"}


def test_the_server_route_hands_the_collection_on(
    make: Callable[..., Any], triton: TritonProcess, sidecar: SidecarProcess
) -> None:
    """The model of these tests tells what came with the request; what the real one finds is tested beside it."""
    client = make(triton.grpc_address, retrieval=sidecar.address)
    with pytest.raises(InvalidInputError, match=r'TOLD: .*"collection":\s?"docs@v1"'):
        client.search("aab", collection="docs@v1", route="server")
