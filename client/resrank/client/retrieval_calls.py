"""Requests to the retrieval sidecar."""

from __future__ import annotations

from collections.abc import Callable

from resrank.client.calls import Call, Server
from resrank.client.results import RetrievalHealth
from resrank.core.errors import Place
from resrank.core.sidecar.v1 import retrieval_pb2


def search(request: retrieval_pb2.SearchRequest) -> Call[retrieval_pb2.SearchResponse]:
    """Asks for candidates."""
    return Call(
        server=Server.RETRIEVAL,
        method="Search",
        subject="search",
        build=lambda _: request,
        parse=lambda response: response,
    )


def get(
    request: retrieval_pb2.GetRequest, locate: Callable[[Place], Place] | None = None
) -> Call[retrieval_pb2.GetResponse]:
    """Asks for passages by id."""
    return Call(
        server=Server.RETRIEVAL,
        method="Get",
        subject="passages by id",
        build=lambda _: request,
        parse=lambda response: response,
        locate=locate,
    )


def describe() -> Call[RetrievalHealth]:
    """Asks what the index holds and to which encoder it belongs."""
    return Call(
        server=Server.RETRIEVAL,
        method="Describe",
        subject="description of the index",
        build=lambda _: retrieval_pb2.DescribeRequest(),
        parse=lambda response: RetrievalHealth(
            encoder_sha256=response.encoder_sha256 or None,
            embedding_dim=response.dimension or None,
            passages=response.record_count,
        ),
    )


def alias(name: str) -> Call[retrieval_pb2.Alias | None]:
    """Asks for one alias; None where the name is none."""
    return Call(
        server=Server.RETRIEVAL,
        method="ListAliases",
        subject=f"alias '{name}'",
        build=lambda _: retrieval_pb2.ListAliasesRequest(name=name),
        parse=lambda response: response.aliases[0] if response.aliases else None,
    )
