"""Where the ``search`` model finds its sidecar."""

from __future__ import annotations

import tempfile
from pathlib import Path

import grpc
import pytest

from resrank.core.errors import RetrievalError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.serving.retriever import SidecarRetriever


class _Sidecar(retrieval_pb2_grpc.RetrievalServiceServicer):
    async def Search(self, request: pb.SearchRequest, context: object) -> pb.SearchResponse:
        return pb.SearchResponse(ids=["found"])


@pytest.mark.parametrize(("by_socket", "by_port"), [(True, True), (True, False), (False, True)])
async def test_a_socket_goes_before_an_address(
    monkeypatch: pytest.MonkeyPatch, *, by_socket: bool, by_port: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        server = grpc.aio.server()
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(_Sidecar(), server)
        socket = Path(folder, "s")
        server.add_insecure_port(f"unix:{socket}")
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        monkeypatch.setenv("RESRANK_RETRIEVAL_SOCKET", str(socket) if by_socket else "")
        monkeypatch.setenv("RESRANK_RETRIEVAL_URL", f"127.0.0.1:{port if not by_socket else 1}" if by_port else "")
        try:
            assert (await SidecarRetriever.from_environment().search(pb.SearchRequest(), None)).ids == ["found"]
        finally:
            await server.stop(None)


async def test_without_either_a_search_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESRANK_RETRIEVAL_SOCKET", "RESRANK_RETRIEVAL_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RetrievalError, match="was started without RESRANK_RETRIEVAL_SOCKET"):
        await SidecarRetriever.from_environment().search(pb.SearchRequest(), None)
