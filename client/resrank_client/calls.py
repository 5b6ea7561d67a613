"""One request to one server, described apart from how it is sent, so that threads and asyncio share the description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Server(StrEnum):
    """The two servers a client speaks to, as messages name them."""

    TRITON = "Triton"
    RETRIEVAL = "the retrieval sidecar"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A unary request that is built when it is sent and whose answer is parsed when it comes.

    Attributes:
        server: Who is asked.
        method: The method's name in the server's stub.
        subject: What is asked, for messages: ``model 'rerank'``.
        build: Makes the protobuf request, given the seconds that are left for it.
        parse: Reads the protobuf response.
        row_in_list: Where a row of this request stands in the list that the caller gave, when the list was split.
    """

    server: Server
    method: str
    subject: str
    build: Callable[[float], Any]
    parse: Callable[[Any], T]
    row_in_list: Callable[[int], int] | None = None
