"""A sidecar that a second Triton is to be served beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from resrank.core.errors import InvalidInputError, ServerUnavailableError, StackError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.stack.cli.app import run
from resrank.stack.ports import choose_ports
from resrank.stack.running_sidecar import RunningSidecar
from support.tiny_manifest import ENCODER_SHA256, write_tiny_manifest

OTHER = "b" * 64


class _Sidecar(retrieval_pb2_grpc.RetrievalServiceServicer):
    def __init__(self, *encoders: str) -> None:
        self._encoders = encoders

    def ListCollections(self, request: object, context: object) -> pb.ListCollectionsResponse:
        collections = [pb.Collection(name=f"c{row}", encoder_sha256=sha) for row, sha in enumerate(self._encoders)]
        return pb.ListCollectionsResponse(collections=collections)


class _Guarded(retrieval_pb2_grpc.RetrievalServiceServicer):
    def ListCollections(self, request: object, context: grpc.ServicerContext) -> pb.ListCollectionsResponse:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "send the key")


@contextmanager
def serving(servicer: retrieval_pb2_grpc.RetrievalServiceServicer | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    if servicer is not None:
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield address
    server.stop(None).wait()


@pytest.mark.parametrize("encoders", [(ENCODER_SHA256,), (OTHER, ENCODER_SHA256), (OTHER, ""), ("",)])
def test_one_with_a_collection_for_it_is_joined(encoders: tuple[str, ...]) -> None:
    with serving(_Sidecar(*encoders)) as address:
        RunningSidecar.joined(address).require_place_for(ENCODER_SHA256)


def test_one_that_cannot_be_joined_says_why() -> None:
    with (
        serving(_Sidecar(OTHER, OTHER)) as address,
        pytest.raises(StackError, match=f"encoder {OTHER}, Triton serves encoder .* resrank collection create NAME"),
    ):
        RunningSidecar.joined(address).require_place_for(ENCODER_SHA256)
    with pytest.raises(ServerUnavailableError, match=f"no retrieval sidecar answers at {address}: start it"):
        RunningSidecar.joined(address).encoders()
    with (
        serving(None) as address,
        pytest.raises(StackError, match=f"what answers at {address} is no retrieval sidecar"),
    ):
        RunningSidecar.joined(address).encoders()
    with serving(_Guarded()) as address, pytest.raises(StackError, match=r"wants a key: give its socket, unix:PATH"):
        RunningSidecar.joined(address).encoders()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("sidecar.example:8003", "sidecar.example:8003 is on another machine"),
        ("10.0.0.1:8003", "on another machine"),
        ("http://localhost:8003", "without http://"),
        ("", "no address"),
    ],
)
def test_an_address_elsewhere_or_none_is_refused(target: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^retrieval_url: .*{said}"):
        RunningSidecar.joined(target)


@pytest.mark.parametrize(
    "options",
    [
        ["--index", "x"],
        ["--store", "postgresql://h/d"],
        ["--retrieval-port", "9003"],
        ["--retrieval-metrics-port", "9004"],
        ["--retrieval-socket", "/tmp/s"],
        ["--bearer-key-file", "key"],
    ],
)
def test_options_of_a_sidecar_of_ones_own_are_refused_beside_it(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(tmp_path), "--retrieval-url", "127.0.0.1:1", *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "leave out" in said
    assert options[0] in said


def test_the_doctor_looks_at_the_sidecar_in_place_of_what_one_would_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_manifest(tmp_path)
    ports = choose_ports("127.0.0.1", None, None)
    options = ["--triton-port", str(ports[0]), "--metrics-port", str(ports[1]), "--output", "json"]

    def found(address: str) -> dict[str, str]:
        run(["doctor", str(tmp_path), *options, "--retrieval-url", address])
        checks = json.loads(capsys.readouterr().out)["checks"]
        assert not {"FAISS", "SQLite FTS5", "port 8003", "port 8004"} & {check["name"] for check in checks}
        (one,) = [check for check in checks if check["name"] == "retrieval sidecar"]
        return one

    with serving(_Sidecar(OTHER, ENCODER_SHA256)) as address:
        assert (found(address)["status"], found(address)["detail"]) == ("ok", f"answers at {address}, 2 collections")
    assert found(address)["status"] == "failed"
    assert found(address)["detail"] == f"no retrieval sidecar answers at {address}"
